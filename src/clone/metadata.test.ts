import assert from 'node:assert/strict';
import test from 'node:test';
import { crc32c } from '@node-rs/crc32';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { CloneMetadata, metadataLengthBytes, SECTOR_BLOCKS, SECTOR_WORDS } from './metadata.ts';

const GIB = 2 ** 30;
const identity = { volumeId: 'vol-1', generation: 7, lengthBytes: GIB };
const device = () => new MemoryDevice({ lengthBytes: metadataLengthBytes(GIB) });

async function sectorsOf(metadata: CloneMetadata): Promise<Map<number, Uint32Array>> {
  const sectors = new Map<number, Uint32Array>();
  await metadata.load((sector, words) => sectors.set(sector, words.slice()));
  return sectors;
}

async function flip(target: BlockDevice, offsetBytes: number): Promise<void> {
  const sector = new Uint8Array(512);
  const start = offsetBytes - (offsetBytes % 512);
  await target.read(start, sector);
  sector[offsetBytes % 512]! ^= 1;
  await target.write(start, sector);
}

test('bits written come back, and a fresh file has none and takes no space', async () => {
  const file = device();
  const created = await CloneMetadata.create(file, identity);
  assert.equal((await sectorsOf(created)).size, 0);
  assert.ok(file.allocatedBytes <= 8192);
  const words = new Uint32Array(3 * SECTOR_WORDS).fill(1);
  words[0] = 0xdeadbeef;
  await created.write([2, 3, 60], words);
  await created.flush();
  const opened = await sectorsOf(await CloneMetadata.open(file, identity));
  assert.deepEqual([...opened.keys()], [2, 3, 60]);
  assert.equal(opened.get(2)![0], 0xdeadbeef);
  assert.deepEqual(opened.get(60), words.slice(2 * SECTOR_WORDS));
});

test('making it again leaves no bit of the one before', async () => {
  const file = device();
  const first = await CloneMetadata.create(file, identity);
  await first.write([5], new Uint32Array(SECTOR_WORDS).fill(3));
  assert.equal((await sectorsOf(await CloneMetadata.create(file, { ...identity, generation: 8 }))).size, 0);
});

test('metadata of something else is refused, each with its own code', async () => {
  const file = device();
  await CloneMetadata.create(file, identity);
  const refused = (other: object, code: string) =>
    assert.rejects(CloneMetadata.open(file, { ...identity, ...other }), (error) =>
      isGodwitError(error, code),
    );
  await refused({ volumeId: 'vol-2' }, 'CLONE_WRONG_VOLUME');
  await refused({ generation: 8 }, 'CLONE_WRONG_GENERATION');
  await refused({ lengthBytes: GIB - 4096 }, 'CLONE_WRONG_LENGTH');
  await refused({ lengthBytes: 2 * GIB }, 'CLONE_WRONG_LENGTH');
  const bytes = new Uint8Array(file.lengthBytes - 512);
  await file.read(0, bytes);
  const cut = new MemoryDevice({ lengthBytes: bytes.length });
  await cut.write(0, bytes);
  await assert.rejects(CloneMetadata.open(cut, identity), (error) =>
    isGodwitError(error, 'CLONE_METADATA_SHORT'),
  );
  await assert.rejects(CloneMetadata.open(device(), identity), (error) =>
    isGodwitError(error, 'CLONE_METADATA_BLANK'),
  );
});

test('one damaged header copy is repaired, two are an error', async () => {
  for (const copy of [0, 4096]) {
    const file = device();
    await CloneMetadata.create(file, identity);
    await flip(file, copy + 40);
    await CloneMetadata.open(file, identity);
    await flip(file, 4096 - copy + 40);
    await CloneMetadata.open(file, identity); // the first one was repaired
    await flip(file, 3);
    await flip(file, 4096 + 500);
    await assert.rejects(CloneMetadata.open(file, identity), (error) =>
      isGodwitError(error, 'CLONE_METADATA_CORRUPT'),
    );
  }
});

test('any flipped bit of a written sector is an error that names it, never "no bits"', async () => {
  for (const offset of [0, 3, 4, 8, 300, 511]) {
    const file = device();
    const metadata = await CloneMetadata.create(file, identity);
    await metadata.write([4, 5], new Uint32Array(2 * SECTOR_WORDS).fill(0x80));
    await flip(file, 8192 + 5 * 512 + offset);
    await assert.rejects(sectorsOf(metadata), (error) => {
      return isGodwitError(error, 'CLONE_METADATA_CORRUPT') && error.values.sector === 5;
    });
  }
});

test('a flipped bit in a sector that was never written is an error too', async () => {
  const file = device();
  const metadata = await CloneMetadata.create(file, identity);
  await flip(file, 8192 + 9 * 512 + 100);
  await assert.rejects(sectorsOf(metadata), (error) => isGodwitError(error, 'CLONE_METADATA_CORRUPT'));
});

test('a sector in the wrong place, or of another clone, is an error', async () => {
  const file = device();
  const metadata = await CloneMetadata.create(file, identity);
  await metadata.write([4], new Uint32Array(SECTOR_WORDS).fill(1));
  const sector = new Uint8Array(512);
  await file.read(8192 + 4 * 512, sector);
  await file.write(8192 + 6 * 512, sector);
  await assert.rejects(sectorsOf(metadata), (error) => isGodwitError(error, 'CLONE_METADATA_CORRUPT'));

  const other = device();
  const otherMetadata = await CloneMetadata.create(other, { ...identity, generation: 8 });
  await other.write(8192 + 4 * 512, sector);
  await assert.rejects(sectorsOf(otherMetadata), (error) => isGodwitError(error, 'CLONE_METADATA_CORRUPT'));
});

test('bits beyond the end of the volume are an error', async () => {
  const lengthBytes = 10 * 4096;
  const file = new MemoryDevice({ lengthBytes: metadataLengthBytes(lengthBytes) });
  const metadata = await CloneMetadata.create(file, { ...identity, lengthBytes });
  const words = new Uint32Array(SECTOR_WORDS);
  words[0] = 1 << 10;
  await metadata.write([0], words);
  await assert.rejects(sectorsOf(metadata), (error) => isGodwitError(error, 'CLONE_METADATA_CORRUPT'));
});

test('a power cut at any point of making or writing leaves blank, or sound metadata with old or new sectors', async () => {
  for (let cutAt = 1; ; cutAt++) {
    const power = new PowerSupply(seededRandom(cutAt), cutAt);
    const file = new FaultDevice({ lengthBytes: metadataLengthBytes(GIB), power });
    let finished = false;
    try {
      const metadata = await CloneMetadata.create(file, identity);
      await metadata.write([1, 2, 3, 9], new Uint32Array(4 * SECTOR_WORDS).fill(5));
      await metadata.flush();
      await metadata.write([2, 3], new Uint32Array(2 * SECTOR_WORDS).fill(7));
      await metadata.flush();
      finished = true;
    } catch (error) {
      assert.ok(isGodwitError(error, 'BLOCK_POWER_LOST'));
    }
    power.restore();
    try {
      const sectors = await sectorsOf(await CloneMetadata.open(file, identity));
      for (const [, words] of sectors)
        assert.ok(words.every((word) => word === words[0] && (word === 5 || word === 7)));
    } catch (error) {
      assert.ok(isGodwitError(error, 'CLONE_METADATA_BLANK'), String(error));
      assert.ok(!finished);
    }
    if (finished) break;
  }
});

test('a sparse device is read only where it has data', async () => {
  const lengthBytes = 2 ** 40;
  const file = new MemoryDevice({ lengthBytes: metadataLengthBytes(lengthBytes) });
  let readBytes = 0;
  const counted: BlockDevice = {
    lengthBytes: file.lengthBytes,
    blockBytes: 512,
    writable: true,
    read: (offsetBytes, into) => {
      readBytes += into.length;
      return file.read(offsetBytes, into);
    },
    write: (offsetBytes, from) => file.write(offsetBytes, from),
    flush: () => file.flush(),
    discard: (offsetBytes, length) => file.discard(offsetBytes, length),
    writeZeroes: (offsetBytes, length) => file.writeZeroes(offsetBytes, length),
    close: () => file.close(),
    extents: (offsetBytes, length, limit) => file.extents(offsetBytes, length, limit),
  };
  const metadata = await CloneMetadata.create(counted, { ...identity, lengthBytes });
  await metadata.write([60_000], new Uint32Array(SECTOR_WORDS).fill(1));
  assert.deepEqual([...(await sectorsOf(metadata)).keys()], [60_000]);
  assert.ok(readBytes <= 8192, `${readBytes} bytes read`);
  assert.equal(SECTOR_BLOCKS, 4032);
});

const ONES = 0xffffffff;
const TIB = 2 ** 40;

test('sectors that are whole cost a bit each, and come back as runs', async () => {
  const large = { ...identity, lengthBytes: 64 * TIB - 7 * 4096 };
  const file = new MemoryDevice({ lengthBytes: metadataLengthBytes(large.lengthBytes) });
  const metadata = await CloneMetadata.create(file, large);
  const last = metadata.sectorCount - 1;
  const tail = Math.ceil(large.lengthBytes / 4096) - last * SECTOR_BLOCKS;
  // Across the end of a summary sector, behind 16 TiB, and the last one, which has fewer blocks.
  const behind = Math.floor((16 * TIB) / 4096 / SECTOR_BLOCKS) + 1;
  const runs = [
    [4030, 4034],
    [behind, behind + 2],
    [last, last + 1],
  ] as const;
  const sectors = runs.flatMap(([first, end]) =>
    Array.from({ length: end - first }, (_, index) => first + index),
  );
  const words = new Uint32Array(sectors.length * SECTOR_WORDS).fill(ONES);
  const ofLast = words.subarray(-SECTOR_WORDS);
  ofLast.fill(0);
  for (let bit = 0; bit < tail; bit++) ofLast[bit >>> 5]! |= 1 << (bit & 31);
  await metadata.write(sectors, words);
  assert.ok(file.allocatedBytes <= 8192 + 4 * 4096, `${file.allocatedBytes} bytes`);
  const found: (readonly [number, number])[] = [];
  const mixed: number[] = [];
  const opened = await CloneMetadata.open(file, large);
  const load = () =>
    opened.load(
      (sector) => mixed.push(sector),
      (first, end) => found.push([first, end]),
    );
  await load();
  assert.deepEqual(found, runs);
  assert.deepEqual(mixed, []);
  // One that becomes whole later has its old sector still.
  await opened.write([5], new Uint32Array(SECTOR_WORDS).fill(1));
  await opened.write([5], new Uint32Array(SECTOR_WORDS).fill(ONES));
  const everything = await sectorsOf(await CloneMetadata.open(file, large));
  assert.deepEqual(
    [...everything.keys()].toSorted((a, b) => a - b),
    [5, ...sectors],
  );
  assert.ok(everything.get(5)!.every((word) => word === ONES));
  assert.deepEqual(everything.get(last), ofLast);
});

test('any flipped bit of a summary sector is an error, and so is one beyond the end', async () => {
  const summaryAt = metadataLengthBytes(GIB) - 4096;
  for (const offset of [0, 4, 8, 300, 511]) {
    const file = device();
    const metadata = await CloneMetadata.create(file, identity);
    await metadata.write([4], new Uint32Array(SECTOR_WORDS).fill(ONES));
    await flip(file, summaryAt + offset);
    await assert.rejects(CloneMetadata.open(file, identity), (error) => {
      return isGodwitError(error, 'CLONE_METADATA_CORRUPT') && error.values.summary === true;
    });
  }
});

test('a power cut at any point of becoming whole leaves old bits or new ones', async () => {
  for (let cutAt = 1; ; cutAt++) {
    const power = new PowerSupply(seededRandom(cutAt));
    const file = new FaultDevice({ lengthBytes: metadataLengthBytes(GIB), power });
    const metadata = await CloneMetadata.create(file, identity);
    await metadata.write([7, 8], new Uint32Array(2 * SECTOR_WORDS).fill(1));
    await metadata.flush();
    power.cutAt = power.operations + cutAt;
    const words = new Uint32Array(3 * SECTOR_WORDS).fill(ONES);
    words.fill(3, 0, SECTOR_WORDS);
    await metadata
      .write([7, 8, 9], words)
      .then(() => metadata.flush())
      .catch(() => {});
    const survived = power.on;
    power.cut();
    power.restore();
    const found = await sectorsOf(await CloneMetadata.open(file.reopen(), identity));
    assert.ok([1, 3].includes(found.get(7)![0]!));
    assert.ok([1, ONES].includes(found.get(8)![0]!));
    assert.ok([undefined, ONES].includes(found.get(9)?.[0]));
    if (survived) {
      assert.deepEqual([found.get(7)![0], found.get(8)![0], found.get(9)![0]], [3, ONES, ONES]);
      return;
    }
  }
});

/** Turns fresh metadata into that of version 1, which had no summary. */
async function withoutSummary(): Promise<MemoryDevice> {
  const made = device();
  await CloneMetadata.create(made, identity);
  const header = new Uint8Array(512);
  await made.read(0, header);
  const view = new DataView(header.buffer);
  view.setUint32(8, 1, true);
  view.setUint32(508, crc32c(header.subarray(0, 508)), true);
  const file = new MemoryDevice({ lengthBytes: metadataLengthBytes(GIB) - 4096 });
  await file.write(0, header);
  await file.write(4096, header);
  return file;
}

test('metadata that an older version made is read and written as it is', async () => {
  const file = await withoutSummary();
  const metadata = await CloneMetadata.open(file, identity);
  const words = new Uint32Array(2 * SECTOR_WORDS).fill(ONES);
  words[0] = 5;
  await metadata.write([3, 4], words);
  const found = await sectorsOf(await CloneMetadata.open(file, identity));
  assert.deepEqual([...found.keys()], [3, 4]);
  assert.equal(found.get(3)![0], 5);
  assert.ok(found.get(4)!.every((word) => word === ONES));
  const sector = new Uint8Array(512);
  await file.read(8192 + 4 * 512, sector);
  assert.equal(new Uint32Array(sector.buffer)[2], ONES, 'where that version looks for it');
});
