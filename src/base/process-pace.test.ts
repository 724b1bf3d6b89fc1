import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { ProcessPace, type ProcessWork, parseProcessWork, readProcessWork } from './process-pace.ts';
import { listening } from './progress.ts';

test('the work of a process is read, whatever its name', () => {
  const stat = '71 (a) R 1) (x) D 1 71 71 0 -1 4194560 900 0 17 0 250 50 0 0 20 0 1 0 100 0 0';
  assert.deepEqual(parseProcessWork(stat), { state: 'D', processorMs: 3_000, majorFaults: 17 });
  for (const text of ['', 'x', '1 (a)', '1 (a) R', '1 (a) R x y z'])
    assert.equal(parseProcessWork(text), null);
  const own = readProcessWork(process.pid);
  assert.ok(own !== null && own.processorMs >= 0 && own.state.length === 1);
  assert.equal(readProcessWork(2 ** 30), null);
});

test('a process that does a little now and then is waited for; one that does nothing is quiet', () => {
  const clock = new FakeClock();
  const work: ProcessWork = { state: 'R', processorMs: 0, majorFaults: 0 };
  const pace = new ProcessPace(1, clock, { quietMs: 30_000, read: () => ({ ...work }) });
  let advances = 0;
  const look = () => listening({ advanced: () => advances++ }, () => pace.isQuiet());
  for (let second = 0; second < 3_600; second++) {
    clock.advance(1_000);
    if (second % 29 === 0) work.processorMs += 10;
    assert.equal(look(), false);
  }
  assert.ok(advances > 100);
  for (let second = 0; second < 25; second++) {
    clock.advance(1_000);
    assert.equal(look(), false);
  }
  work.state = 'D';
  for (let second = 0; second < 10; second++) {
    clock.advance(1_000);
    look();
  }
  assert.equal(look(), true);
  assert.match(pace.text(), /in state D, has used 1250 ms/);
});

test('while nobody looked, nothing was quiet', () => {
  const clock = new FakeClock();
  const pace = new ProcessPace(1, clock, {
    quietMs: 30_000,
    read: () => ({ state: 'R', processorMs: 5, majorFaults: 0 }),
  });
  clock.advance(20_000);
  assert.equal(pace.isQuiet(), false);
  clock.skip(3_600_000);
  assert.equal(pace.isQuiet(), false);
});
