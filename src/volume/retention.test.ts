import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { silentLogger } from '../base/logger.ts';
import { Retention } from './retention.ts';

const DAY_MS = 86_400_000;
const KEEP_MS = 7 * DAY_MS;

function bench(t: TestContext) {
  const clock = new FakeClock();
  const path = join(scratchDir(t), '.retention.json');
  const make = () => new Retention({ path, clock, logger: silentLogger });
  const copy = (id: string, generation = 1) => ({ id, generation, destroyAfterMs: clock.wallMs() + KEEP_MS });
  return { clock, path, make, copy };
}

const ids = (copies: { id: string; generation: number }[]) =>
  copies.map(({ id, generation }) => `${id}@${generation}`);

test('a clock that is set by years destroys nothing, and keeps nothing for years', async (t) => {
  for (const jumpMs of [5 * 365 * DAY_MS, -5 * 365 * DAY_MS]) {
    const { clock, make, copy } = bench(t);
    const retention = make();
    const copies = [copy('v')];
    assert.deepEqual(await retention.over(copies, KEEP_MS), []);
    clock.stepWall(jumpMs);
    assert.deepEqual(await retention.over(copies, KEEP_MS), []);
    await clock.run(KEEP_MS - 1);
    assert.deepEqual(await retention.over(copies, KEEP_MS), []);
    await clock.run(1);
    assert.deepEqual(ids(await retention.over(copies, KEEP_MS)), ['v@1']);
  }
});

test('a clock that was wrong when a copy was seen first: it is kept for a day, or as long as any is', async (t) => {
  const { clock, make, copy } = bench(t);
  const copies = [copy('v')];
  clock.stepWall(400 * DAY_MS);
  const retention = make();
  assert.deepEqual(await retention.over(copies, KEEP_MS), []);
  await clock.run(DAY_MS);
  assert.deepEqual(ids(await retention.over(copies, KEEP_MS)), ['v@1']);
  const ahead = [{ ...copy('w'), destroyAfterMs: clock.wallMs() + 400 * DAY_MS }];
  assert.deepEqual(await retention.over(ahead, KEEP_MS), []);
  await clock.run(KEEP_MS);
  assert.deepEqual(ids(await retention.over(ahead, KEEP_MS)), ['w@1']);
});

test('time counts in which a worker was up, over its restarts; what cannot be read is begun anew', async (t) => {
  const { clock, path, make, copy } = bench(t);
  const copies = [copy('v')];
  const first = make();
  await first.over(copies, KEEP_MS);
  await clock.run(5 * DAY_MS);
  await first.over(copies, KEEP_MS);
  await clock.run(30 * DAY_MS);
  const second = make();
  assert.deepEqual(await second.over(copies, KEEP_MS), []);
  await clock.run(2 * DAY_MS);
  assert.deepEqual(ids(await second.over(copies, KEEP_MS)), ['v@1']);
  writeFileSync(path, '{"leftMs": {"v@1"');
  assert.deepEqual(await make().over([copy('v')], KEEP_MS), []);
});

test('of one volume the newest three are kept', async (t) => {
  const { make, copy } = bench(t);
  const copies = [...[9, 3, 5, 7, 1].map((generation) => copy('v', generation)), copy('other', 1)];
  assert.deepEqual(ids(await make().over(copies, KEEP_MS)), ['v@3', 'v@1']);
});
