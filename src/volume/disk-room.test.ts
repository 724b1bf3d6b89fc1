import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { Extent } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import {
  DiskRoom,
  diskReserveBytes,
  keptBytes,
  lastReserveBytes,
  RoomyDevice,
  roomyArrivals,
  type WhenFull,
} from './disk-room.ts';

const MIB = 2 ** 20;
const TOTAL_BYTES = 1024 * MIB;
const RESERVE_BYTES = diskReserveBytes(TOTAL_BYTES);
const isFull = (error: unknown) => isGodwitError(error, 'BLOCK_NO_SPACE');

/** A disk that several volumes share, and their rooms on it. */
class Disk {
  readonly clock = new FakeClock();
  freeBytes: number;
  /** Starts of MiB that a file has already. */
  readonly there = new Set<number>();
  looks = 0;

  constructor(freeBytes: number) {
    this.freeBytes = freeBytes;
  }

  room(t: TestContext, whenFull: WhenFull = 'pause'): DiskRoom {
    const room = new DiskRoom({
      look: async () => {
        this.looks++;
        return { totalBytes: TOTAL_BYTES, availableBytes: this.freeBytes };
      },
      extents: async (offsetBytes, lengthBytes): Promise<Extent[]> => [
        { offsetBytes, lengthBytes, kind: this.there.has(offsetBytes) ? 'data' : 'hole' },
      ],
      whenFull,
      clock: this.clock,
    });
    t.after(() => room.close({ refuse: false }));
    return room;
  }

  /** Writes MiB after MiB until it has to wait; how much that was. */
  async writeUntilFull(room: DiskRoom, offsetBytes = 0): Promise<number> {
    let bytes = 0;
    for (;;) {
      const admitted = room.admit(offsetBytes + bytes, MIB).then(() => true);
      const turn = (async () => {
        for (let turns = 0; turns < 20; turns++) await Promise.resolve();
        return false;
      })();
      if (!(await Promise.race([admitted, turn]))) return bytes;
      this.freeBytes -= MIB;
      room.done(MIB);
      bytes += MIB;
    }
  }
}

test('what is kept back follows the disk, up to 256 MiB', () => {
  assert.equal(diskReserveBytes(320 * MIB), 20 * MIB);
  assert.equal(diskReserveBytes(100 * 1024 * MIB), 256 * MIB);
  assert.equal(lastReserveBytes(100 * 1024 * MIB), 64 * MIB);
});

test('what volumes were promised long ago and have not written does not pass the reserve', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 900 * MIB);
  const rooms = Array.from({ length: 30 }, () => disk.room(t));
  for (const room of rooms) {
    await room.admit(0, MIB);
    room.done(MIB);
  }
  await disk.clock.run(2_000);
  const before = disk.looks;
  await disk.clock.run(60_000);
  assert.equal(disk.looks, before, 'who does not write does not look');
  // Somebody else takes the rest.
  disk.freeBytes = RESERVE_BYTES;
  for (const room of rooms) assert.equal(await disk.writeUntilFull(room), 0);
  assert.equal(disk.freeBytes, RESERVE_BYTES);
});

test('volumes that write side by side stop before the reserve, look seldom, and go on when there is room', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 200 * MIB);
  const rooms = [disk.room(t), disk.room(t), disk.room(t)];
  assert.equal(rooms[0]!.shortage(), null);
  const written: number[] = [];
  for (const room of rooms) written.push(await disk.writeUntilFull(room));
  assert.ok(written[0]! > 190 * MIB, 'the room is used');
  assert.ok(disk.freeBytes >= RESERVE_BYTES, `the reserve is whole: ${disk.freeBytes}`);
  assert.ok(disk.looks < 120, `${disk.looks} looks`);
  for (const room of rooms) assert.equal(room.shortage()?.waiting, 1);
  assert.equal(rooms[0]!.shortage()?.reserveBytes, RESERVE_BYTES);
  await disk.clock.run(10_000);
  for (const room of rooms) assert.equal(room.shortage()?.waiting, 1, 'it waits for as long as it takes');

  disk.freeBytes += 100 * MIB;
  await disk.clock.run(1_000);
  for (const room of rooms) assert.equal(room.shortage(), null);
});

test('many writes that wait are let in a portion at a time: all volumes go on, and none takes the reserve', async (t) => {
  const disk = new Disk(RESERVE_BYTES);
  const rooms = [disk.room(t), disk.room(t)];
  const done = [0, 0];
  for (const [index, room] of rooms.entries()) {
    for (let count = 0; count < 40; count++) {
      void room.admit(count * MIB, MIB).then(() => {
        disk.freeBytes -= MIB;
        room.done(MIB);
        done[index]! += 1;
      });
    }
  }
  await disk.clock.run(100);
  assert.deepEqual(done, [0, 0]);
  disk.freeBytes += 30 * MIB;
  await disk.clock.run(60_000);
  assert.ok(disk.freeBytes >= RESERVE_BYTES, `${disk.freeBytes - RESERVE_BYTES}`);
  assert.ok(Math.min(...done) >= 10, `both went on: ${done}`);
  assert.ok(done[0]! + done[1]! >= 28, `the room is used: ${done}`);
});

test('of many writes that come for one look no more are let in than it saw room for', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 10 * MIB);
  const room = disk.room(t);
  let admitted = 0;
  for (let count = 0; count < 100; count++) {
    void room.admit(count * MIB, MIB).then(async () => {
      admitted++;
      // It takes its time to reach the disk, and others look meanwhile.
      await disk.clock.sleep(5_000);
      disk.freeBytes -= MIB;
      room.done(MIB);
    });
  }
  await disk.clock.run(60_000);
  assert.ok(admitted >= 8 && admitted <= 10, `${admitted} were let in`);
  assert.ok(disk.freeBytes >= RESERVE_BYTES);
});

test('what is there already is written again, and the reserve is opened for who leaves', async (t) => {
  const disk = new Disk(RESERVE_BYTES - MIB);
  const room = disk.room(t);
  disk.there.add(8 * MIB);
  await room.admit(8 * MIB, MIB);
  assert.equal(room.shortage(), null);
  const waiting = room.admit(16 * MIB, MIB);
  await disk.clock.run(1_000);
  assert.equal(room.shortage()?.waiting, 1);
  await room.leave('running');
  await waiting;
  assert.equal(room.shortage(), null);
  const stopsAt = keptBytes(TOTAL_BYTES, 'running');
  assert.ok((await disk.writeUntilFull(room)) > 10 * MIB);
  assert.ok(disk.freeBytes >= stopsAt && stopsAt > lastReserveBytes(TOTAL_BYTES), 'half of it is for later');
  await room.leave('stopped');
  assert.ok((await disk.writeUntilFull(room)) > 10 * MIB);
  assert.ok(disk.freeBytes >= lastReserveBytes(TOTAL_BYTES));
  assert.equal(room.shortage()?.reserveBytes, lastReserveBytes(TOTAL_BYTES));
  await room.leave('no');
  assert.equal(room.shortage()?.reserveBytes, RESERVE_BYTES);
});

test('with `error` a write fails at once, and what is fetched is refused at the reserve with either', async (t) => {
  const disk = new Disk(RESERVE_BYTES);
  const failing = disk.room(t, 'error');
  await assert.rejects(failing.admit(0, 4096), isFull);
  assert.equal(failing.shortage()?.waiting, 0);
  const refused = disk.room(t, 'error');
  await assert.rejects(refused.admit(0, 4096), isFull);
  const file = new MemoryDevice({ lengthBytes: 8 * MIB });
  const arrivals = roomyArrivals(file, disk.room(t));
  await assert.rejects(arrivals.write(0, new Uint8Array(4096)), isFull);
  disk.freeBytes += 8 * MIB;
  await arrivals.write(0, new Uint8Array(4096).fill(7));
  const back = new Uint8Array(4096);
  await file.read(0, back);
  assert.equal(back[0], 7);
  // Who was refused does not write again: that there is room is found by who asks.
  await disk.clock.run(2_000);
  refused.shortage();
  await disk.clock.run(1);
  assert.equal(refused.shortage(), null);
});

test('a disk that refuses though it seemed to have room is asked again, and nothing of the write is lost', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 64 * MIB);
  const file = new MemoryDevice({ lengthBytes: 8 * MIB });
  let refusals = 3;
  const write = file.write.bind(file);
  file.write = async (offsetBytes, from) => {
    if (refusals-- > 0) {
      throw new GodwitError('BLOCK_NO_SPACE', 'full', { nextAction: 'make room' });
    }
    return write(offsetBytes, from);
  };
  const device = new RoomyDevice(file, disk.room(t));
  await disk.clock.runUntil(device.write(4096, new Uint8Array(4096).fill(9)));
  const back = new Uint8Array(4096);
  await device.read(4096, back);
  assert.equal(back[0], 9);
  assert.equal(refusals, -1);
});

test('a live map without memory makes a write wait, by name, and the disk is not blamed', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 64 * MIB);
  const file = new MemoryDevice({ lengthBytes: 8 * MIB });
  const [write, discard] = [file.write.bind(file), file.discard.bind(file)];
  let full = true;
  const check = () => {
    if (full) {
      const values = { path: '/dev/shm/map' };
      throw new GodwitError('VOLUME_NO_SPACE', 'full', { values, nextAction: 'make room' });
    }
  };
  file.write = async (...args) => {
    check();
    return write(...args);
  };
  file.discard = async (...args) => {
    check();
    return discard(...args);
  };
  const room = disk.room(t);
  const device = new RoomyDevice(file, room);
  const waiting = Promise.all([device.write(4096, new Uint8Array(4096).fill(9)), device.discard(0, 4096)]);
  await disk.clock.run(5_000);
  assert.deepEqual([room.shortage()?.map, room.shortage()?.waiting], ['/dev/shm/map', 2]);
  full = false;
  await disk.clock.runUntil(waiting);
  assert.equal(room.shortage(), null);
  full = true;
  const failing = new RoomyDevice(file, disk.room(t, 'error'));
  await assert.rejects(failing.discard(0, 4096), { code: 'VOLUME_NO_SPACE' });
});

test('a write that the disk refused is left to the next server when this one ends', async (t) => {
  const disk = new Disk(RESERVE_BYTES + 64 * MIB);
  for (const refuse of [false, true]) {
    const file = new MemoryDevice({ lengthBytes: 8 * MIB });
    file.discard = async () => {
      throw new GodwitError('BLOCK_NO_SPACE', 'full', { nextAction: 'make room' });
    };
    const room = disk.room(t);
    let answer = 'none';
    new RoomyDevice(file, room).discard(0, 4096).catch(() => {
      answer = 'refused';
    });
    await disk.clock.run(3_000);
    room.close({ refuse });
    await disk.clock.run(10_000);
    assert.equal(answer, refuse ? 'refused' : 'none');
  }
});

test('a server that ends leaves who waits to the next one, or tells it', async (t) => {
  const disk = new Disk(RESERVE_BYTES);
  const room = disk.room(t);
  let answered = false;
  const waiting = room.admit(0, MIB).finally(() => {
    answered = true;
  });
  waiting.catch(() => {});
  await disk.clock.run(1_000);
  room.close({ refuse: false });
  disk.freeBytes += 64 * MIB;
  await disk.clock.run(10_000);
  assert.equal(answered, false);
  room.close({ refuse: true });
  await assert.rejects(waiting, isFull);
});
