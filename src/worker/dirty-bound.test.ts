import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { silentLogger } from '../base/logger.ts';
import { DirtyBound } from './dirty-bound.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

test('near the end of the disk each device has a bound; with room again it is lifted, once', async () => {
  const disk = { totalBytes: 100 * GIB, availableBytes: 50 * GIB };
  let devices = ['/dev/loop1'];
  const told: [string, number | null][] = [];
  const keeper = new DirtyBound({
    look: async () => disk,
    devices: async () => devices,
    bound: (device, bytesMax) => {
      told.push([device, bytesMax]);
      return true;
    },
    dirtyBytesMax: () => 4 * GIB,
    clock: new FakeClock(),
    logger: silentLogger,
  });
  const look = async () => {
    await keeper.look();
    return told.splice(0);
  };
  // A bound that an earlier process left is lifted.
  assert.deepEqual(await look(), [['/dev/loop1', null]]);
  assert.deepEqual(await look(), []);
  disk.availableBytes = 4 * GIB;
  const bound = (256 * MIB - 64 * MIB) / 2;
  assert.deepEqual(await look(), [['/dev/loop1', bound]]);
  devices = ['/dev/loop1', '/dev/loop2'];
  const both = devices.map((device) => [device, bound]);
  assert.deepEqual(await look(), both);
  disk.availableBytes = 4.5 * GIB;
  assert.deepEqual(await look(), both, 'it is not lifted at the very edge');
  disk.availableBytes = 50 * GIB;
  assert.deepEqual(
    await look(),
    devices.map((device) => [device, null]),
  );
  assert.deepEqual(await look(), []);

  // A machine that begins: before it writes, and not a look later.
  const cover = async (device: string | null) => {
    await keeper.cover(async () => device);
    return told.splice(0);
  };
  assert.deepEqual(await cover('/dev/loop3'), []);
  disk.availableBytes = 4 * GIB;
  assert.deepEqual(await cover('/dev/loop3'), [['/dev/loop3', bound]]);
  assert.deepEqual(await cover(null), []);
  disk.availableBytes = 50 * GIB;
  assert.equal((await look()).length, 2, 'and it is lifted with the others');
});

test('a small disk has a bound always, and one that cannot be looked at changes nothing', async () => {
  const told: (number | null)[] = [];
  let fails = false;
  const keeper = new DirtyBound({
    look: async () => {
      if (fails) throw new Error('no answer');
      return { totalBytes: 320 * MIB, availableBytes: 300 * MIB };
    },
    devices: async () => ['/dev/loop1'],
    bound: (_, bytesMax) => told.push(bytesMax) > 0,
    dirtyBytesMax: () => GIB,
    clock: new FakeClock(),
    logger: silentLogger,
  });
  await keeper.look();
  fails = true;
  await keeper.look();
  assert.deepEqual(told, [7.5 * MIB]);
});
