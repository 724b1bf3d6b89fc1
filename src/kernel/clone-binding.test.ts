import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { isGodwitError } from '../base/errors.ts';
import {
  addCounts,
  beginCounting,
  cloneMetadataBytes,
  createCloneMetadata,
  endCounting,
  readCloneBinding,
  removeCloneMetadata,
  requireCloneBinding,
  writeCloneBinding,
} from './clone-binding.ts';

const IDENTITY = { volumeId: 'v_1', generation: 2, lengthBytes: 256 * 2 ** 20 };
const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'godwit-plane-'));
  t.after(() => rm(path, { recursive: true }));
  return path;
}

test('metadata is made once, with its space, and known again', async (t) => {
  const dir = await folder(t);
  assert.equal(await readCloneBinding(dir), null);
  const made = await createCloneMetadata(dir, IDENTITY);
  const file = await stat(join(dir, 'clone.dm'));
  assert.equal(file.size, cloneMetadataBytes(IDENTITY.lengthBytes));
  assert.ok(file.blocks * 512 >= file.size, 'reserved');
  // What a commit of the kernel stands for: a second call must not blank it.
  await writeFile(join(dir, 'clone.dm'), 'what is local', { flag: 'r+' });
  assert.deepEqual(await createCloneMetadata(dir, IDENTITY), made);
  assert.deepEqual(await requireCloneBinding(dir, IDENTITY), made);
  await writeCloneBinding(dir, { ...made, whole: true });
  assert.equal((await requireCloneBinding(dir, IDENTITY)).whole, true);
  await removeCloneMetadata(dir);
  assert.equal(await readCloneBinding(dir), null);
});

test('metadata of another volume, of another generation, of none', async (t) => {
  const dir = await folder(t);
  await assert.rejects(requireCloneBinding(dir, IDENTITY), code('PLANE_METADATA_MISSING'));
  await createCloneMetadata(dir, IDENTITY);
  for (const other of [{ volumeId: 'v_2' }, { generation: 4 }, { lengthBytes: 2 ** 20 }]) {
    await assert.rejects(requireCloneBinding(dir, { ...IDENTITY, ...other }), code('PLANE_METADATA_WRONG'));
  }
});

test('what lies there of another volume is not believed of one that arrives, but made anew', async (t) => {
  const dir = await folder(t);
  await createCloneMetadata(dir, { ...IDENTITY, volumeId: 'v_2' });
  await writeFile(join(dir, 'clone.dm'), 'what is local', { flag: 'r+' });
  await createCloneMetadata(dir, IDENTITY);
  await requireCloneBinding(dir, IDENTITY);
  assert.ok((await readFile(join(dir, 'clone.dm'))).every((byte) => byte === 0));
});

test('a full disk is a typed error, and what there was room for is given back', {
  skip: requires('root', 'mount'),
}, async (t) => {
  const dir = await folder(t);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'godwit-test', dir], { timeout: patient(10_000) });
  try {
    await assert.rejects(createCloneMetadata(dir, IDENTITY), code('VOLUME_NO_SPACE'));
    assert.deepEqual(await readdir(dir), []);
  } finally {
    execFileSync('umount', [dir], { timeout: patient(10_000) });
  }
});

test('a binding that cannot be read is not taken for none', async (t) => {
  const dir = await folder(t);
  for (const text of ['', '{', 'null', '{"formatVersion":2}', '{"formatVersion":1,"volumeId":"v"}']) {
    await writeFile(join(dir, 'clone.dm.json'), text);
    await assert.rejects(readCloneBinding(dir), code('PLANE_METADATA_CORRUPT'), text);
  }
});

test('room for the bitmap of dm-clone, whatever the length', () => {
  for (const lengthBytes of [4096, 2 ** 30, 2 ** 40, 16 * 2 ** 40]) {
    const bitmap = lengthBytes / 4096 / 8;
    assert.ok(cloneMetadataBytes(lengthBytes) >= 2 * bitmap + 2 ** 20);
  }
});

test('what the guest wrote is added up over its devices, and not known after a power cut', async (t) => {
  const dir = await folder(t);
  const counts = { writes: 3, writeBytes: 12_288, discards: 1, discardBytes: 4096 };
  await endCounting(dir, counts);
  assert.equal(await readCloneBinding(dir), null, 'a volume that is no clone');
  const open = async () => {
    const binding = await requireCloneBinding(dir, IDENTITY);
    await writeCloneBinding(dir, { ...binding, freeMapTaken: true, guestWrites: beginCounting(binding) });
  };
  const past = async () => (await requireCloneBinding(dir, IDENTITY)).guestWrites?.past;
  await createCloneMetadata(dir, IDENTITY);
  await open();
  await endCounting(dir, counts);
  await endCounting(dir, counts);
  assert.deepEqual(await past(), counts, 'once a device');
  await open();
  // It was never there.
  await endCounting(dir, null);
  await open();
  await endCounting(dir, counts);
  assert.deepEqual(await past(), addCounts(counts, counts));
  await open();
  await open();
  await endCounting(dir, counts);
  assert.equal(await past(), null);
  await open();
  assert.equal(await past(), null, 'for good');
});

test('a clone that was opened by a version that did not count has unknown writes', async (t) => {
  const dir = await folder(t);
  const made = await createCloneMetadata(dir, IDENTITY);
  assert.deepEqual(beginCounting(made), { past: addCounts(null, null), counting: true });
  assert.deepEqual(beginCounting({ ...made, freeMapTaken: true }), { past: null, counting: true });
});
