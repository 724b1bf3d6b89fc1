import assert from 'node:assert/strict';
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { PAGE_BLOCKS, sharedMapMemory } from '../clone/map-memory.ts';
import { blockCountOf, ValidityMap } from '../clone/validity-map.ts';
import { bootId } from '../sys/boot-id.ts';
import {
  openValidityFile,
  removeValidityFile,
  type ValidityFile,
  type ValidityFileRequest,
} from './validity-file.ts';

const BOOT = '01234567-89ab-cdef-0123-456789abcdef';
const OTHER_BOOT = 'ffffffff-89ab-cdef-0123-456789abcdef';
const MIB = 2 ** 20;
const TIB = 2 ** 40;

function request(dir: string, changes: Partial<ValidityFileRequest> = {}): ValidityFileRequest {
  return {
    path: join(dir, 'validity'),
    volumeId: 'v_1',
    generation: 3,
    lengthBytes: 2 ** 30,
    bootId: BOOT,
    ...changes,
  };
}

function mapOf(file: ValidityFile, { lengthBytes }: ValidityFileRequest): ValidityMap {
  return new ValidityMap(file.memory, blockCountOf(lengthBytes));
}

/**
 * Opens, sets the bit of a block, closes; says whether the content was current and what the bit was before.
 */
function visit(wanted: ValidityFileRequest, block: number): { current: boolean; before: boolean } {
  const file = openValidityFile(wanted);
  const map = mapOf(file, wanted);
  const before = map.has(block);
  map.setRange(block, block + 1);
  const { current } = file;
  file.close();
  return { current, before };
}

test('bits outlive the mapping within one boot', (t) => {
  const dir = scratchDir(t);
  assert.deepEqual(visit(request(dir), 262_143), { current: false, before: false });
  assert.deepEqual(visit(request(dir), 262_143), { current: true, before: true });
  assert.deepEqual(visit(request(dir), 262_142), { current: true, before: false });
});

test('two mappings see one memory', (t) => {
  const dir = scratchDir(t);
  const first = openValidityFile(request(dir));
  const second = openValidityFile(request(dir));
  assert.notEqual(first.place.bitsAddress, second.place.bitsAddress);
  const owner = mapOf(first, request(dir));
  const beside = new ValidityMap(sharedMapMemory(second.place), owner.blockCount, { counted: false });
  owner.setRange(167, 168);
  assert.ok(beside.has(167) && !beside.has(168));
  owner.setRange(0, PAGE_BLOCKS);
  assert.ok(beside.hasAll(0, PAGE_BLOCKS));
  first.owed[3] = 2;
  assert.equal(second.owed[3], 2);
  first.wireBytes = 2 ** 40 + 1;
  assert.equal(second.wireBytes, 2 ** 40 + 1);
  first.close();
  second.close();
  assert.equal(openValidityFile(request(dir)).wireBytes, 2 ** 40 + 1);
});

test('another boot and an earlier generation start from zero', (t) => {
  const dir = scratchDir(t);
  visit(request(dir), 0);
  const fresh = { current: false, before: false };
  assert.deepEqual(visit(request(dir, { bootId: OTHER_BOOT }), 0), fresh);
  assert.deepEqual(visit(request(dir, { bootId: OTHER_BOOT, generation: 5 }), 0), fresh);
});

test('its folder is made again when somebody tidied it away; in one of somebody else nothing is made', (t) => {
  const dir = join(scratchDir(t), 'live');
  assert.deepEqual(visit(request(dir), 0), { current: false, before: false });
  rmSync(dir, { recursive: true });
  assert.deepEqual(visit(request(dir), 0), { current: false, before: false });
  assert.equal(statSync(dir).mode & 0o777, 0o700);

  const refused = (error: unknown) => isGodwitError(error, 'SYS_PATH_REFUSED');
  const open = scratchDir(t);
  chmodSync(open, 0o777);
  assert.throws(() => openValidityFile(request(open)), refused);
  if (process.geteuid?.() !== 0) return;
  const strange = scratchDir(t);
  chownSync(strange, 65_534, 65_534);
  assert.throws(() => openValidityFile(request(strange)), refused);
});

test('a filesystem that was mounted again starts from zero; one that is not known on either side drops nothing', (t) => {
  const dir = scratchDir(t);
  const shim = { supervisor: '17.4711' };
  visit(request(dir), 0);
  // Of an older version, which named no instance; then from where it cannot be told.
  assert.deepEqual(visit(request(dir, { instance: 'ext4:1', ...shim }), 0), { current: true, before: true });
  assert.deepEqual(visit(request(dir, { instance: null, supervisor: null }), 0), {
    current: true,
    before: true,
  });
  assert.deepEqual(visit(request(dir, { instance: 'ext4:1', ...shim }), 0), { current: true, before: true });
  assert.deepEqual(visit(request(dir, { instance: 'ext4:2', ...shim }), 0), {
    current: false,
    before: false,
  });
});

test('what a guest had not flushed is gone with the instance, if it is still the same guest', (t) => {
  const dir = scratchDir(t);
  const open = (instance: string, supervisor: string) => {
    const file = openValidityFile(request(dir, { instance, supervisor }));
    t.after(() => file.close());
    return file;
  };
  open('ext4:1', '17.4711').unflushed[0] = 1;
  assert.equal(open('ext4:1', '17.4711').guestLost, false);
  assert.equal(open('ext4:2', '17.4711').guestLost, true);
  open('ext4:2', '17.4711').unflushed[1] = 1; // in the middle of a flush
  assert.equal(open('ext4:3', '17.4711').guestLost, true);
  assert.equal(open('ext4:4', '17.4711').guestLost, false, 'all was flushed');
  open('ext4:4', '17.4711').unflushed[0] = 1;
  const { guestLost, current } = open('ext4:5', '18.1');
  assert.deepEqual({ guestLost, current }, { guestLost: false, current: false }, 'as after a power cut');
});

test('bytes that arrived and were not in place when a server was killed are added up', (t) => {
  const dir = scratchDir(t);
  for (const unplaced of [4096, 8192, 0]) {
    const file = openValidityFile(request(dir));
    file.unplacedBytes = unplaced;
    file.close();
  }
  const file = openValidityFile(request(dir));
  t.after(() => file.close());
  assert.deepEqual([file.unplacedBytes, file.refetchedBytes], [0, 12_288]);
});

test('what is not this map is refused and stays as it is', (t) => {
  const dir = scratchDir(t);
  visit(request(dir), 0);
  const foreign = [
    request(dir, { volumeId: 'v_2' }),
    request(dir, { generation: 2 }),
    request(dir, { lengthBytes: 2 ** 31 }),
  ];
  for (const wanted of foreign) {
    assert.throws(
      () => openValidityFile(wanted),
      (error) => isGodwitError(error, 'VOLUME_VALIDITY_FOREIGN'),
    );
  }
  assert.deepEqual(visit(request(dir), 0), { current: true, before: true });
  const path = join(dir, 'other');
  writeFileSync(path, 'not a map');
  assert.throws(
    () => openValidityFile(request(dir, { path })),
    (error) => isGodwitError(error, 'VOLUME_VALIDITY_FOREIGN'),
  );
  assert.equal(readFileSync(path, 'utf8'), 'not a map');
  const link = join(dir, 'link');
  symlinkSync(join(dir, 'validity'), link);
  assert.throws(
    () => openValidityFile(request(dir, { path: link })),
    (error) => isGodwitError(error, 'VOLUME_VALIDITY_FOREIGN'),
  );
});

test('a damaged header or a cut file of this boot is an error, at every byte', (t) => {
  const dir = scratchDir(t);
  const wanted = request(dir);
  visit(wanted, 0);
  const good = readFileSync(wanted.path);
  for (const offset of [8, 12, 16, 20, 52, 56, 64, 72, 200, 2047]) {
    const bad = Buffer.from(good);
    bad[offset]! ^= 0x40;
    writeFileSync(wanted.path, bad);
    assert.throws(
      () => openValidityFile(wanted),
      (error) => isGodwitError(error, 'VOLUME_VALIDITY_CORRUPT'),
      `byte ${offset}`,
    );
  }
  for (const lengthBytes of [10, 4095, 4096, good.length - 1]) {
    writeFileSync(wanted.path, good);
    truncateSync(wanted.path, lengthBytes);
    assert.throws(
      () => openValidityFile(wanted),
      (error) => isGodwitError(error, 'VOLUME_VALIDITY_CORRUPT'),
    );
  }
});

test('a map of 64 TiB takes space for what differs only: empty, with a bit here and there, and whole', (t) => {
  const dir = scratchDir(t);
  const wanted = request(dir, { lengthBytes: 64 * TIB, bootId: bootId() });
  const viewedBefore = process.memoryUsage().external;
  const file = openValidityFile(wanted);
  const map = mapOf(file, wanted);
  const takenBytes = () => statSync(wanted.path).blocks * 512;
  const emptyBytes = takenBytes();
  assert.ok(emptyBytes <= 64 * 128 * 1024, `${emptyBytes} bytes: 128 KiB for each TiB`);
  const far = [2 ** 31 - 1, 2 ** 32, 2 ** 32 + 2 ** 31, map.blockCount - 1];
  for (const block of far) map.setRange(block, block + 1);
  assert.ok(takenBytes() - emptyBytes <= far.length * 64 * 1024);
  const beside = new ValidityMap(sharedMapMemory(file.place), map.blockCount, { counted: false });
  for (const block of far)
    assert.ok(beside.has(block) && !beside.has(block - 2 ** 30) && !beside.has(block % 2 ** 30));
  const viewedBytes = process.memoryUsage().external - viewedBefore;
  assert.ok(viewedBytes < 64 * MIB, `${viewedBytes} bytes are viewed, which V8 collects for`);
  map.setRange(0, map.blockCount - 1);
  assert.ok(map.complete);
  assert.ok(takenBytes() <= emptyBytes + 64 * 1024, 'what is full takes none');
  file.close();
  const again = openValidityFile(wanted);
  assert.ok(again.current && mapOf(again, wanted).complete);
  again.close();
  removeValidityFile(wanted.path);
  removeValidityFile(wanted.path);
  assert.ok(!existsSync(wanted.path));
});

/** A map as version 1 had it: all bits from byte 4096 on, and nothing else. */
function writeFlat(wanted: ValidityFileRequest, blocks: readonly number[]): void {
  const bytes = Buffer.alloc(4096);
  bytes.write('GODWITVM', 0, 'latin1');
  bytes.writeUInt32LE(1, 8);
  bytes.write(wanted.bootId, 16, 'latin1');
  bytes.writeUInt32LE(wanted.volumeId.length, 52);
  bytes.writeBigUInt64LE(BigInt(wanted.generation), 56);
  bytes.writeBigUInt64LE(BigInt(wanted.lengthBytes), 64);
  bytes.write(wanted.volumeId, 72, 'latin1');
  bytes.writeUInt32LE(crc32(bytes.subarray(16, 2048)), 12);
  bytes.writeDoubleLE(123_456_789, 2048);
  bytes.writeUInt32LE(1, 2056);
  writeFileSync(wanted.path, bytes);
  truncateSync(wanted.path, 4096 + Math.ceil(Math.ceil(wanted.lengthBytes / 4096) / 32) * 4);
  const file = openSync(wanted.path, 'r+');
  for (const block of blocks) {
    const at = 4096 + Math.floor(block / 8);
    const byte = Buffer.alloc(1);
    readSync(file, byte, 0, 1, at);
    byte[0]! |= 1 << (block % 8);
    writeSync(file, byte, 0, 1, at);
  }
  closeSync(file);
}

test('a map that an older version left is taken over with every bit, and all of them are owed', (t) => {
  const dir = scratchDir(t);
  const wanted = request(dir, { lengthBytes: 4 * TIB - 3 * 4096, bootId: BOOT });
  const last = blockCountOf(wanted.lengthBytes) - 1;
  const whole = Array.from({ length: PAGE_BLOCKS }, (_, index) => 7 * PAGE_BLOCKS + index);
  const blocks = [0, 31, 32, 4031, 4032, 100_000, 2 ** 29, last, ...whole];
  writeFlat(wanted, blocks);
  const file = openValidityFile(wanted);
  assert.ok(file.current && file.tellsAll);
  assert.equal(file.wireBytes, 123_456_789);
  const map = mapOf(file, wanted);
  assert.equal(map.presentCount, blocks.length);
  for (const block of blocks) assert.ok(map.has(block), `block ${block}`);
  for (const block of blocks.slice(0, 8))
    assert.notEqual(file.owed[Math.floor(block / 4032)], 0, `block ${block}`);
  assert.equal(file.owed[2], 0, 'nothing of this sector is local');
  file.close();
  const again = openValidityFile(wanted);
  assert.ok(again.current);
  assert.equal(mapOf(again, wanted).presentCount, blocks.length);
  again.close();
  writeFlat({ ...wanted, bootId: OTHER_BOOT }, blocks);
  const fresh = openValidityFile(wanted);
  assert.ok(!fresh.current);
  assert.equal(mapOf(fresh, wanted).presentCount, 0);
  fresh.close();
});
