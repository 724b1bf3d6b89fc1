import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { lineLogger } from './line-logger.ts';

test('a log that is a file is begun anew when it is long, and the last lines are there', (t) => {
  const path = join(scratchDir(t), 'log');
  const fd = openSync(path, 'a');
  t.after(() => closeSync(fd));
  const logger = lineLogger(fd, new FakeClock(), { pid: 7 });
  const child = logger.child({ peer: 'x'.repeat(1_000) });
  let longestBytes = 0;
  for (let index = 0; index < 5_000; index += 1) {
    child.info({ index }, 'a line');
    longestBytes = Math.max(longestBytes, statSync(path).size);
  }
  assert.ok(longestBytes > 4_000_000 && longestBytes < 4_200_000, `${longestBytes}`);
  assert.ok(statSync(path).size < 2_000_000);
  logger.error({}, 'the last');
  const last = JSON.parse(readFileSync(path, 'utf8').trimEnd().split('\n').at(-1)!);
  assert.deepEqual(last, { level: 50, time: last.time, pid: 7, msg: 'the last' });
});

test('a log that takes nothing ends nobody', () => {
  const fd = openSync('/dev/null', 'r');
  lineLogger(fd, new FakeClock()).warn({}, 'in vain');
  closeSync(fd);
});
