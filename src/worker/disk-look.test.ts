import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { DiskLook, diskConditions } from './disk-look.ts';

test('a data disk that refuses a write is named since it was first found; one that is full, or takes its time, is not', async () => {
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
  const [told] = diskConditions(trouble, 'w1');
  assert.match(told?.message ?? '', /data disk of w1 cannot be written: EROFS/);
  assert.deepEqual(diskConditions(null, 'w1'), []);
  write = failing('ENOSPC');
  assert.equal(await disk.look(), null);
  write = () => new Promise(() => {});
  assert.equal(await clock.runUntil(disk.look()), null);
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
