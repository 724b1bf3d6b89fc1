import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { DiskLook, diskConditions } from './disk-look.ts';

const W1 = { name: 'w1', dataDir: '/srv/w1' };

test('a data disk that refuses a write is named since it was first found; one that is full is not', async () => {
  const clock = new FakeClock();
  let write: () => Promise<void> = async () => {};
  const disk = new DiskLook('/data/probe', clock, () => write());
  assert.equal(await disk.look(), null);
  const failing = (code: string) => async () => {
    throw Object.assign(new Error(`${code}: read-only file system`), { code });
  };
  write = failing('EROFS');
  const foundAtMs = clock.wallMs();
  await disk.look();
  await clock.run(5_000);
  const trouble = await disk.look();
  assert.deepEqual(trouble, { message: 'EROFS: read-only file system', sinceMs: foundAtMs });
  const [told] = diskConditions(trouble, W1);
  assert.match(told?.message ?? '', /data disk of w1 cannot be written: EROFS/);
  assert.deepEqual(diskConditions(null, W1), []);
  write = failing('ENOSPC');
  assert.equal(await disk.look(), null);
});

test('a data disk that does not answer is named at the first look, at once at the next, by one write, and until it has answered', async () => {
  const clock = new FakeClock();
  const writes: PromiseWithResolvers<void>[] = [];
  const disk = new DiskLook('/data/probe', clock, () => {
    writes.push(Promise.withResolvers());
    return writes.at(-1)!.promise;
  });
  const sinceMs = clock.wallMs();
  const both = [disk.look(), disk.look()];
  assert.deepEqual(
    await clock.runUntil(Promise.all(both)),
    both.map(() => ({ message: null, sinceMs })),
  );
  await clock.run(60_000);
  const trouble = await disk.look();
  assert.deepEqual([trouble?.sinceMs, writes.length], [sinceMs, 1]);
  const [told] = diskConditions(trouble, W1);
  assert.match(told?.message ?? '', /^the data disk of w1 does not answer/);
  assert.match(told?.nextAction ?? '', /--target \/srv\/w1\)/);
  writes[0]!.resolve();
  await clock.run(0);
  const again = disk.look();
  writes[1]!.resolve();
  assert.equal(await again, null);
});

test("many who look at once are in nobody's way, and leave nothing behind", async (t) => {
  const dir = scratchDir(t);
  const disk = new DiskLook(join(dir, 'probe'), new FakeClock());
  assert.deepEqual(
    new Set(await Promise.all(Array.from({ length: 50 }, () => disk.look()))),
    new Set([null]),
  );
  assert.deepEqual(readdirSync(dir), []);
});
