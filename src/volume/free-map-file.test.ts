import assert from 'node:assert/strict';
import { closeSync, openSync, readdirSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { encodeSealedMap } from '../freemap/sealed-map.ts';
import {
  bytesAvoided,
  freezeFreeMap,
  readFreeMapFile,
  readFreeRuns,
  readSealedFreeMap,
  removeFreeMap,
  writeFreeMap,
} from './free-map-file.ts';

const MIB = 2 ** 20;
const identity = { volumeId: 'v_1', generation: 3, lengthBytes: 16 * MIB };

test('a map is written and read, of its own generation only, and goes without a trace', async (t) => {
  const dir = scratchDir(t);
  assert.equal(await readFreeRuns(dir, identity), null);
  const runs = [{ first: 1, end: 700 }];
  await writeFreeMap(
    dir,
    encodeSealedMap(identity, () => runs),
  );
  assert.deepEqual(await readFreeRuns(dir, identity), runs);
  await assert.rejects(readFreeRuns(dir, { ...identity, generation: 5 }), { code: 'FREEMAP_WRONG_VOLUME' });
  writeFileSync(join(dir, 'free.map'), (await readFreeMapFile(dir))!.subarray(1));
  await assert.rejects(readFreeRuns(dir, identity), { code: 'FREEMAP_BAD_MAP' });
  await removeFreeMap(dir);
  await removeFreeMap(dir);
  assert.deepEqual(readdirSync(dir), []);
});

test('bytes avoided are those of unused blocks that the file holds, not its holes', async (t) => {
  const dir = scratchDir(t);
  const file = openSync(join(dir, 'data.raw'), 'w');
  writeSync(file, Buffer.alloc(MIB, 1), 0, MIB, 4 * MIB);
  closeSync(file);
  truncateSync(join(dir, 'data.raw'), identity.lengthBytes);
  assert.equal(await bytesAvoided(dir, identity), 0, 'there is no map');
  const first = (4 * MIB) / 4096;
  const runs = [
    { first: 0, end: first + 64 },
    { first: first + 128, end: (16 * MIB) / 4096 },
  ];
  await writeFreeMap(
    dir,
    encodeSealedMap(identity, () => runs),
  );
  assert.equal(await bytesAvoided(dir, identity), MIB - 64 * 4096);
});

test('what was told of a generation stays: a map that is written later is not the one that travelled', async (t) => {
  const dir = scratchDir(t);
  const mapOf = (generation: number, end: number) =>
    encodeSealedMap({ ...identity, generation }, () => [{ first: 1, end }]);
  // The server that was to read it was given up, and the machine went without one.
  await freezeFreeMap(dir, 3);
  await writeFreeMap(dir, mapOf(3, 700));
  assert.equal(await readSealedFreeMap(dir, 3), null);
  assert.equal(await readFreeRuns(dir, identity), null, 'the export leaves nothing out either');
  await freezeFreeMap(dir, 3);
  assert.equal(await readSealedFreeMap(dir, 3), null, 'the seal may be asked for again');
  // The next seal has its own, and keeps it.
  await writeFreeMap(dir, mapOf(5, 300));
  await freezeFreeMap(dir, 5);
  await writeFreeMap(dir, mapOf(5, 800));
  await removeFreeMap(dir);
  assert.deepEqual(await readFreeRuns(dir, { ...identity, generation: 5 }), [{ first: 1, end: 300 }]);
  assert.deepEqual(readdirSync(dir), ['free.map.g5']);
  // One of an earlier version, which froze nothing.
  await writeFreeMap(dir, mapOf(7, 100));
  assert.deepEqual(await readFreeRuns(dir, { ...identity, generation: 7 }), [{ first: 1, end: 100 }]);
});
