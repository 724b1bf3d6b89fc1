import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createXts } from '../../src/crypt/xts.ts';
import { unlockVolume } from '../../src/volume/encryption.ts';
import { type KeySource, VOLUME_FILES } from '../../src/volume/index.ts';
import type { VolumeStore } from '../../src/volume/store.ts';
import { requires } from '../support/requires.ts';
import { unmount } from '../support/unmount.ts';
import { digestFiles, LAB_NEEDS, tool, VolumeLab, writeFiles } from '../support/volume-lab.ts';

/**
 * What dm-crypt would make of a volume, without device-mapper: every sector is decrypted, zeros of the
 * ciphertext too, and the filesystem's own programs look at the outcome.
 */
const skip = requires(...LAB_NEEDS, 'e2fsck', 'mkfs.xfs', 'xfs_repair', 'fallocate');
const MIB = 2 ** 20;
const SECTOR_BYTES = 4096;

for (const filesystem of ['ext4', 'xfs'] as const) {
  test(`dm-crypt reads in a volume that was made for it what godwit reads: ${filesystem}`, {
    skip,
  }, async (t) => {
    const lab = new VolumeLab(t);
    const keyDir = join(lab.dir, 'keys');
    mkdirSync(keyDir, { mode: 0o700 });
    const keys: KeySource = { kind: 'file', path: join(keyDir, '{volume}') };
    const store = await lab.store('source');
    const lengthBytes = (filesystem === 'xfs' ? 320 : 128) * MIB;
    const made = await store.create({ name: 'data', lengthBytes, filesystem, keys, dmCrypt: true });
    assert.equal(made.encryption?.holes, 'none');
    await check(lab, store, made.id, keys, new Map());

    const target = await lab.attach(store, made, { access: 'writable', keys });
    const dir = await target.mount();
    const digests = writeFiles(dir, 'kept', 12, MIB);
    writeFiles(dir, 'gone', 8, MIB);
    await tool('sync', '-f', dir);
    for (let index = 0; index < 8; index++) await tool('rm', join(dir, `gone-${index}`));
    // Blocks that are reserved, written in part, and made zeros again.
    const sparse = join(dir, 'sparse');
    await tool('fallocate', '-l', String(4 * MIB), sparse);
    await tool(
      'dd',
      'if=/dev/urandom',
      `of=${sparse}`,
      'bs=4096',
      'seek=100',
      'count=300',
      'conv=notrunc',
      'status=none',
    );
    await tool('fallocate', '-z', '-o', String(150 * 4096), '-l', String(50 * 4096), sparse);
    await tool('sync', '-f', dir);
    digests.set('sparse', (await digestFiles(dir)).get('sparse')!);
    await target.unmount();
    // Zeroes and discards as the block layer sends them.
    await target.server.call('seal');
    await target.server.stop();
    await check(lab, store, made.id, keys, digests);
  });
}

async function check(
  lab: VolumeLab,
  store: VolumeStore,
  id: string,
  keys: KeySource,
  expected: ReadonlyMap<string, string>,
): Promise<void> {
  const { generation, encryption, filesystem } = await store.get(id);
  const { uuid, keyGeneration = 1 } = encryption!;
  const { volumeKey } = await unlockVolume({
    ...{ volumeId: id, generation, volumeDir: store.folder(id) },
    encryption: { uuid, keyGeneration, keys },
  });
  const image = join(lab.scratch(), 'image');
  const bytes = readFileSync(join(store.folder(id), VOLUME_FILES.data));
  createXts(volumeKey.bytes, SECTOR_BYTES).decrypt(bytes, bytes, 0);
  writeFileSync(image, bytes);
  if (filesystem === 'ext4') await tool('e2fsck', '-f', '-n', image);
  else await tool('xfs_repair', '-n', image);
  const dir = mkdtempSync(join(lab.dir, 'view-'));
  await tool('mount', '-o', filesystem === 'ext4' ? 'loop' : 'loop,nouuid', image, dir);
  try {
    assert.deepEqual(await digestFiles(dir), expected);
  } finally {
    await unmount(dir);
  }
}
