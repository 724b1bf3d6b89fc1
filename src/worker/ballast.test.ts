import assert from 'node:assert/strict';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { silentLogger } from '../base/logger.ts';
import { allocate } from '../sys/fallocate.ts';
import { Ballast } from './ballast.ts';

const MIB = 2 ** 20;

test('room is taken where there is plenty, given up when the disk is full, and taken again', async (t) => {
  const path = join(scratchDir(t), 'ballast');
  const clock = new FakeClock();
  let availableBytes = 500 * MIB;
  const look = async () => ({ totalBytes: 640 * MIB, availableBytes });
  const ballast = new Ballast({ path, look, allocate, clock, logger: silentLogger });
  t.after(() => ballast.close());
  await ballast.start();
  assert.equal(ballast.held, true);
  assert.equal(statSync(path).blocks * 512, 10 * MIB);

  availableBytes = 8 * MIB;
  await ballast.look();
  assert.equal(ballast.held, true, 'there is still some');
  availableBytes = 2 * MIB;
  // By itself, in time.
  await until('it is given up', () => clock.run(10_000).then(() => !ballast.held));
  assert.equal(existsSync(path), false);
  availableBytes = 12 * MIB;
  await ballast.look();
  assert.equal(ballast.held, false, 'not what it has just given up');
  availableBytes = 100 * MIB;
  await ballast.look();
  assert.equal(ballast.held, true);
});

test('what an earlier process had kept is given up by a worker that starts on a full disk', async (t) => {
  const path = join(scratchDir(t), 'ballast');
  writeFileSync(path, 'x');
  const look = async () => ({ totalBytes: 640 * MIB, availableBytes: 0 });
  const ballast = new Ballast({ path, look, allocate, clock: new FakeClock(), logger: silentLogger });
  t.after(() => ballast.close());
  await ballast.start();
  assert.equal(existsSync(path), false);
});

test('a disk that cannot be asked is no reason not to work', async (t) => {
  const look = () => Promise.reject(new Error('EIO'));
  const path = join(scratchDir(t), 'ballast');
  const ballast = new Ballast({ path, look, allocate, clock: new FakeClock(), logger: silentLogger });
  t.after(() => ballast.close());
  await ballast.start();
  assert.equal(ballast.held, false);
});
