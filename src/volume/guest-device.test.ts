import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { testConformance } from '../../test/support/block-conformance.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { HeapMapMemory } from '../clone/map-memory.ts';
import { blockCountOf, ValidityMap } from '../clone/validity-map.ts';
import { GuestDevice, type GuestDeviceOptions } from './guest-device.ts';

const LENGTH_BYTES = 64 * 4096;

function guestOf(options: Partial<GuestDeviceOptions> = {}): GuestDevice {
  return new GuestDevice({
    device: new MemoryDevice({ lengthBytes: LENGTH_BYTES }),
    access: 'writable',
    validity: null,
    writeBack: async () => {},
    clock: systemClock,
    ...options,
  });
}

/** A memory device whose calls end when the test says so. */
class HeldDevice extends MemoryDevice {
  readonly #gate = Promise.withResolvers<void>();
  release(): void {
    this.#gate.resolve();
  }
  override async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.#gate.promise;
    await super.write(offsetBytes, from);
  }
}

function mapOf(present: readonly (readonly [first: number, end: number])[]): ValidityMap {
  const blockCount = blockCountOf(LENGTH_BYTES);
  const validity = new ValidityMap(new HeapMapMemory(blockCount), blockCount);
  for (const [first, end] of present) validity.setRange(first, end);
  return validity;
}

const isReadOnly = (error: unknown) => isGodwitError(error, 'BLOCK_READ_ONLY');

testConformance('GuestDevice', {
  open: async (t, want) => {
    const device = new MemoryDevice({
      lengthBytes: want.lengthBytes,
      ...(want.content && { content: want.content }),
    });
    const guest = guestOf({ device, access: want.writable ? 'writable' : 'readonly' });
    t.after(() => guest.close());
    return guest;
  },
});

test('in standby reads and writes wait, and go through when it ends', async () => {
  const guest = guestOf({ access: 'standby' });
  const done: string[] = [];
  const block = new Uint8Array(4096).fill(7);
  const write = guest.write(0, block).then(() => done.push('write'));
  const read = guest.read(4096, new Uint8Array(4096)).then(() => done.push('read'));
  assert.equal(guest.readNow(0, new Uint8Array(512)), false);
  assert.equal(guest.writeNow(0, block), false);
  await guest.flush();
  await systemClock.sleep(5);
  assert.deepEqual(done, []);
  await guest.setAccess('writable');
  await Promise.all([write, read]);
  assert.deepEqual(done.sort(), ['read', 'write']);
  const found = new Uint8Array(4096);
  await guest.read(0, found);
  assert.deepEqual(found, block);
});

test('a write that waited in standby is refused when what comes is read-only', async () => {
  const guest = guestOf({ access: 'standby' });
  const write = guest.write(0, new Uint8Array(512));
  write.catch(() => {});
  await guest.setAccess('readonly');
  await assert.rejects(write, isReadOnly);
});

test('after read-only holds, no write is on its way any more, and none is let in', async () => {
  const device = new HeldDevice({ lengthBytes: LENGTH_BYTES });
  const guest = guestOf({ device });
  const write = guest.write(0, new Uint8Array(512).fill(1));
  let sealed = false;
  const sealing = guest.setAccess('readonly').then(() => {
    sealed = true;
  });
  for (const refused of [
    guest.write(0, new Uint8Array(512)),
    guest.discard(0, 512),
    guest.writeZeroes(0, 512),
  ])
    await assert.rejects(refused, isReadOnly);
  assert.equal(guest.writeNow(0, new Uint8Array(512)), false);
  assert.equal(guest.writable, false);
  await systemClock.sleep(5);
  assert.equal(sealed, false, 'the write that was let in is still under way');
  device.release();
  await Promise.all([write, sealing]);
  const found = new Uint8Array(512);
  await guest.read(0, found);
  assert.equal(found[0], 1);
});

test('a device is dropped when its last call has ended, however busy the next one is', async () => {
  const first = new HeldDevice({ lengthBytes: LENGTH_BYTES });
  const second = new HeldDevice({ lengthBytes: LENGTH_BYTES });
  const guest = guestOf({ device: first, validity: mapOf([]) });
  const old = guest.write(0, new Uint8Array(512));
  let dropped = false;
  const dropping = guest.becomeWhole(second).then(() => {
    dropped = true;
  });
  const young = guest.write(512, new Uint8Array(512));
  assert.deepEqual(guest.hydration(0, 8192, 8), [{ offsetBytes: 0, lengthBytes: 8192, kind: 'hydrated' }]);
  await systemClock.sleep(5);
  assert.equal(dropped, false);
  first.release();
  await old;
  await dropping;
  second.release();
  await young;
});

test('what must be fetched is told as it is, block by block', () => {
  const runs = fc.uniqueArray(fc.integer({ min: 0, max: 63 }), { maxLength: 64 });
  const range = fc.tuple(fc.integer({ min: 0, max: 511 }), fc.integer({ min: 1, max: 512 }));
  fc.assert(
    fc.property(runs, range, fc.integer({ min: 1, max: 70 }), (present, [start, count], limit) => {
      const guest = guestOf({ validity: mapOf(present.map((block) => [block, block + 1])) });
      const offsetBytes = start * 512;
      const lengthBytes = Math.min(count * 512, LENGTH_BYTES - offsetBytes);
      const extents = guest.hydration(offsetBytes, lengthBytes, limit);
      assert.ok(extents.length >= 1 && extents.length <= limit);
      let at = offsetBytes;
      for (const [index, extent] of extents.entries()) {
        assert.equal(extent.offsetBytes, at);
        assert.ok(extent.lengthBytes > 0);
        assert.notEqual(extent.kind, extents[index - 1]?.kind, 'neighbours are merged');
        for (let byte = at; byte < at + extent.lengthBytes; byte += 512) {
          const isHere = present.includes(Math.floor(byte / 4096));
          assert.equal(extent.kind, isHere ? 'hydrated' : 'remote');
        }
        at += extent.lengthBytes;
      }
      if (extents.length < limit) assert.equal(at, offsetBytes + lengthBytes);
    }),
  );
});

test('it counts what the guest does, and keeps what it will want first', async () => {
  const guest = guestOf({ validity: mapOf([[0, 16]]) });
  const block = new Uint8Array(4096);
  await guest.read(0, block);
  await guest.read(20 * 4096, block);
  await guest.write(40 * 4096, block);
  await guest.write(40 * 4096 + 512, new Uint8Array(512));
  assert.equal(guest.readNow(4096, block), true);
  await guest.flush();
  const { reads, readBytes, writes, writeBytes, flushes, misses } = guest.statistics();
  assert.deepEqual(
    { reads, readBytes, writes, writeBytes, flushes, misses },
    // The read of a block that is not here, and the write of a part of one.
    { reads: 3, readBytes: 3 * 4096, writes: 2, writeBytes: 4096 + 512, flushes: 1, misses: 2 },
  );
  assert.deepEqual(guest.heat(), [0, 1, 2]);
});

test('dirty pages start on their way to the disk by themselves', async () => {
  let started = 0;
  const guest = guestOf({
    writeBack: async () => {
      started++;
    },
  });
  const all = new Uint8Array(LENGTH_BYTES);
  for (let written = 0; written < 130 * 2 ** 20; written += LENGTH_BYTES) await guest.write(0, all);
  assert.equal(started, 2);
});
