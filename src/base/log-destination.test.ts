import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { logDestination } from './log-destination.ts';

/**
 * Writes lines to its standard error, far more than a pipe holds, says that it has, and ends by
 * `process.exit`.
 */
const WRITER = `
  import { logDestination } from ${JSON.stringify(new URL('./log-destination.ts', import.meta.url).href)};
  import { writeSync } from 'node:fs';
  const log = logDestination(2);
  for (let line = 0; line < 40_000; line++) log.write('x'.repeat(100) + '\\n');
  await new Promise((resolve) => setImmediate(resolve));
  writeSync(1, 'written');
  process.exit(7);
`;

async function writerEnds(stderr: number | 'pipe'): Promise<void> {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', WRITER], {
    stdio: ['ignore', 'pipe', stderr],
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), patient(20_000));
  // Standard error is a pipe that nobody reads from.
  child.stderr?.pause();
  let said = '';
  child.stdout!.on('data', (text) => {
    said += text;
  });
  const [code, signal] = await once(child, 'exit');
  clearTimeout(timer);
  child.stderr?.destroy();
  assert.deepEqual([code, signal], [7, null]);
  assert.equal(said, 'written');
}

test('a process ends whose log is on a full disk, or goes to a reader that has stopped reading', async () => {
  const full = openSync('/dev/full', 'w');
  try {
    await writerEnds(full);
  } finally {
    closeSync(full);
  }
  await writerEnds('pipe');
});

test('what a file takes is there at once, and what was lost is counted', (t) => {
  const path = join(scratchDir(t), 'log');
  const fd = openSync(path, 'w');
  const log = logDestination(fd);
  log.write('one\n');
  assert.equal(readFileSync(path, 'utf8'), 'one\n');
  closeSync(fd);
  log.write('two\n');
  log.write('three\n');
  const again = openSync(path, 'a');
  assert.equal(again, fd, 'the descriptor is that of the file again');
  log.write('four\n');
  closeSync(again);
  assert.match(readFileSync(path, 'utf8'), /^one\n\n\{"level":40,"msg":"2 lines[^\n]*\}\nfour\n$/);
});
