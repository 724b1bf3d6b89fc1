import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { clock, line, longestFirst, type Suite, table } from './suites.ts';

const SUITE: Suite = {
  path: 'src/clone/x.test.ts',
  passed: 11,
  failed: 0,
  skipped: 0,
  durationMs: 1_260,
  output: '',
};

describe('what a run of tests says', () => {
  it('begins with what waits for minutes, then whole workers, and within a folder with the longest text', () => {
    const files = [
      { path: 'src/base/a.test.ts', bytes: 9_000 },
      { path: 'src/clone/short.test.ts', bytes: 10 },
      { path: 'src/clone/long.test.ts', bytes: 20 },
      { path: 'test/chaos/z.test.ts', bytes: 1 },
      { path: 'test/chaos/target-dies.test.ts', bytes: 1 },
      { path: 'test/chaos/slow-host.test.ts', bytes: 1 },
    ];
    assert.deepEqual(longestFirst(files), [
      'test/chaos/slow-host.test.ts',
      'test/chaos/target-dies.test.ts',
      'test/chaos/z.test.ts',
      'src/clone/long.test.ts',
      'src/clone/short.test.ts',
      'src/base/a.test.ts',
    ]);
  });

  it('has a line for a suite, with what failed or was skipped where something was', () => {
    const progress = { ended: 7, of: 120, elapsedMs: 65_400 };
    assert.equal(line(SUITE, progress), '[  7/120]  1:05  src/clone/x.test.ts: 11 passed, 1.3 s');
    assert.match(
      line({ ...SUITE, failed: 1, skipped: 2 }, progress),
      /11 passed, 1 FAILED, 2 skipped, 1\.3 s/,
    );
    assert.equal(clock(59_700), '1:00');
  });

  it('ends with the time of each folder and the slowest suites', () => {
    const chaos = { ...SUITE, path: 'test/chaos/y.test.ts', durationMs: 60_000 };
    const lines = table([SUITE, chaos, { ...SUITE, path: 'src/nbd/z.test.ts' }]).split('\n');
    assert.match(lines[0]!, /60\.0 s {2}test\/chaos \(1 suites\)/);
    assert.match(lines[1]!, /2\.5 s {2}src \(2 suites\)/);
    assert.match(lines[3]!, /60\.0 s {2}test\/chaos\/y/);
  });
});
