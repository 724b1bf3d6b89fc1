import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { bootId } from '../sys/boot-id.ts';
import { openValidityFile, removeValidityFile, type ValidityFileRequest } from './validity-file.ts';

const BOOT = '01234567-89ab-cdef-0123-456789abcdef';
const OTHER_BOOT = 'ffffffff-89ab-cdef-0123-456789abcdef';
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

/** Opens, sets the word, closes; says whether the content was current and what the word was before. */
function visit(
  wanted: ValidityFileRequest,
  word: number,
  value: number,
): { current: boolean; before: number } {
  const file = openValidityFile(wanted);
  const before = file.words[word]!;
  file.words[word] = value;
  const { current } = file;
  file.close();
  return { current, before };
}

test('bits outlive the mapping within one boot', (t) => {
  const dir = scratchDir(t);
  assert.deepEqual(visit(request(dir), 8191, 0xdeadbeef), { current: false, before: 0 });
  assert.deepEqual(visit(request(dir), 8191, 1), { current: true, before: 0xdeadbeef });
  assert.equal(openValidityFile(request(dir)).words.length, 2 ** 30 / 4096 / 32);
});

test('two mappings see one memory', (t) => {
  const dir = scratchDir(t);
  const first = openValidityFile(request(dir));
  const second = openValidityFile(request(dir));
  assert.notEqual(first.address, second.address);
  Atomics.or(first.words, 5, 1 << 7);
  assert.equal(second.words[5], 1 << 7);
  first.wireBytes = 2 ** 40 + 1;
  assert.equal(second.wireBytes, 2 ** 40 + 1);
  first.close();
  second.close();
  assert.equal(openValidityFile(request(dir)).wireBytes, 2 ** 40 + 1);
});

test('another boot and an earlier generation start from zero', (t) => {
  const dir = scratchDir(t);
  visit(request(dir), 0, 7);
  assert.deepEqual(visit(request(dir, { bootId: OTHER_BOOT }), 0, 9), { current: false, before: 0 });
  assert.deepEqual(visit(request(dir, { bootId: OTHER_BOOT, generation: 5 }), 0, 9), {
    current: false,
    before: 0,
  });
});

test('what is not this map is refused and stays as it is', (t) => {
  const dir = scratchDir(t);
  visit(request(dir), 0, 7);
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
  assert.deepEqual(visit(request(dir), 0, 7), { current: true, before: 7 });
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
  visit(wanted, 0, 7);
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

test('the map of 1 TiB takes no space before it has bits, and goes with the clone', (t) => {
  const dir = scratchDir(t);
  const wanted = request(dir, { lengthBytes: TIB, bootId: bootId() });
  const file = openValidityFile(wanted);
  assert.equal(file.words.length, TIB / 4096 / 32);
  const status = statSync(wanted.path);
  assert.equal(status.size, 4096 + 32 * 2 ** 20);
  assert.ok(status.blocks * 512 <= 64 * 1024);
  file.close();
  removeValidityFile(wanted.path);
  removeValidityFile(wanted.path);
  assert.ok(!existsSync(wanted.path));
});
