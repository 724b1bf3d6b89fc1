import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { clock, line, measuredSeconds, plan, type Suite, table } from './suites.ts';

const SUITE: Suite = {
  path: 'src/clone/x.test.ts',
  tests: 11,
  suites: 1,
  passed: 11,
  failed: 0,
  cancelled: 0,
  skipped: 0,
  todo: 0,
  durationMs: 1_260,
  output: '',
};

describe('what a run of tests says', () => {
  it('begins with the longest; quick ones of a folder share a process, and whole workers never do', () => {
    const paths = [
      'src/base/b.test.ts',
      'src/base/a.test.ts',
      'src/base/long.test.ts',
      'src/clone/c.test.ts',
      'test/chaos/new.test.ts',
      'test/chaos/slow.test.ts',
    ];
    const seconds = {
      'test/chaos/slow.test.ts': 200,
      'src/base/long.test.ts': 2,
      'src/base/gone.test.ts': 9,
    };
    assert.deepEqual(plan(paths, seconds), [
      ['test/chaos/slow.test.ts'],
      ['test/chaos/new.test.ts'],
      ['src/base/long.test.ts'],
      ['src/base/a.test.ts', 'src/base/b.test.ts'],
      ['src/clone/c.test.ts'],
    ]);
    const measured = [SUITE, { ...SUITE, path: 'src/base/x.test.ts', durationMs: 1_600 }];
    assert.deepEqual(measuredSeconds(measured), { 'src/base/x.test.ts': 2 });
  });

  it('knows the seconds of suites that are there', () => {
    const file = new URL('./suite-seconds.json', import.meta.url);
    const seconds = JSON.parse(readFileSync(file, 'utf8')) as Record<string, number>;
    assert.deepEqual(
      Object.keys(seconds).filter((path) => !existsSync(path)),
      [],
    );
  });

  it('has a line for a suite, with what failed or was skipped where something was', () => {
    const progress = { ended: 7, of: 120, elapsedMs: 65_400 };
    assert.equal(line(SUITE, progress), '[  7/120]  1:05  src/clone/x.test.ts: 11 passed, 1.3 s');
    assert.match(
      line({ ...SUITE, failed: 1, cancelled: 1, skipped: 2 }, progress),
      /11 passed, 2 FAILED, 2 skipped, 1\.3 s/,
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
