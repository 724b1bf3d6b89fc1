import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';

/** About as long as a line takes, so that a kill meets one as often as not, and it is no load of its own. */
const PAUSE_MS = 3;

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
  setTimeout(append, PAUSE_MS, number + 1);
}

append(1);
