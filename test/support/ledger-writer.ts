import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';

/**
 * Appends numbered lines to the file of its first argument, each one fsynced and then told on standard
 * output, until standard input ends. A process of its own: it waits in the kernel while a volume server is
 * away.
 */
const file = openSync(process.argv[2]!, 'a');
let ended = false;
process.stdin.on('end', () => {
  ended = true;
});
process.stdin.resume();

function append(number: number): void {
  if (ended) {
    closeSync(file);
    return;
  }
  writeSync(file, `${number}\n`);
  fsyncSync(file);
  process.stdout.write(`${number}\n`);
  setImmediate(append, number + 1);
}

append(1);
