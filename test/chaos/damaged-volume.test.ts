import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { VOLUME_FILES } from '../../src/volume/files.ts';
import type { VolumeRecord } from '../../src/volume/record.ts';
import { until } from '../support/patience.ts';
import { assertSameContent, moveRawVolume } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { testSeed } from '../support/seed.ts';
import { LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const LENGTH_BYTES = 40 * MIB;
const FLIPS = 6;
/** See clone/metadata.ts. */
const METADATA = { secondHeaderAt: 4096, bitmapAt: 8192, sectorBytes: 512 };
const skip = requires(...LAB_NEEDS);

test('a clone whose files are damaged, cut short, or of another volume: refused by name, nothing destroyed, and good again when they are', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const random = seededRandom(testSeed());
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: LENGTH_BYTES,
    content: { offsetBytes: 0, lengthBytes: 24 * MIB },
    paused: true,
  });
  const { target, targetStore, source, id } = move;
  // A clone in the middle: some written, some read, most of it still at the source.
  const payload = join(lab.dir, 'payload');
  await tool('dd', 'if=/dev/urandom', `of=${payload}`, 'bs=1M', 'count=4', 'status=none');
  for (const to of [target.loop, expectedPath]) {
    await tool('dd', `if=${payload}`, `of=${to}`, 'bs=1M', 'seek=9', 'conv=notrunc,fsync', 'status=none');
  }
  await tool('dd', `if=${target.loop}`, 'of=/dev/null', 'bs=1M', 'skip=20', 'count=2', 'iflag=direct');
  await target.server.call('flush');
  await target.server.stop();

  const record = await targetStore.get(id);
  const folder = targetStore.folder(id);
  const path = {
    data: join(folder, VOLUME_FILES.data),
    metadata: join(folder, VOLUME_FILES.cloneMetadata),
    record: join(folder, VOLUME_FILES.record),
    validity: join(lab.validityDir, readdirSync(lab.validityDir)[0]!),
  };
  const good = Object.entries(path).map(([name, file]) => ({ name, file, bytes: readFileSync(file) }));
  const bytesOf = (name: keyof typeof path) => good.find((one) => one.name === name)!.bytes;
  const digest = (file: string) => createHash('sha256').update(readFileSync(file)).digest('hex');

  const open = (as: VolumeRecord = record) =>
    lab.attach(targetStore, as, { access: 'writable', source: source.source, paused: true });
  /**
   * With these bytes in the file it is refused, and no file is changed by that. Then the file is as it was.
   */
  const refused = async (name: keyof typeof path, bytes: Uint8Array | number, code: RegExp) => {
    if (typeof bytes === 'number') truncateSync(path[name], bytes);
    else writeFileSync(path[name], bytes);
    const before = good.map(({ file }) => digest(file));
    await assert.rejects(open(), { code }, `${name}: ${typeof bytes === 'number' ? bytes : 'damaged'}`);
    assert.deepEqual(
      good.map(({ file }) => digest(file)),
      before,
      `${name}: refused without a change`,
    );
    writeFileSync(path[name], bytesOf(name));
  };
  /**
   * The same after a boot of the host: then what is durable is all there is, and is looked at whole. Before,
   * the live map knows better, and the disk is not asked.
   */
  const refusedAfterBoot = async (bytes: Uint8Array, code: RegExp) => {
    rmSync(path.validity);
    writeFileSync(path.metadata, bytes);
    const files = [path.data, path.metadata, path.record];
    const before = files.map(digest);
    await assert.rejects(open(), { code }, 'metadata: damaged, after a boot');
    assert.deepEqual(files.map(digest), before, 'refused without a change');
    for (const { file, bytes: sound } of good) writeFileSync(file, sound);
  };
  const flipped = (bytes: Uint8Array, ...offsets: number[]) => {
    const copy = Uint8Array.from(bytes);
    for (const offset of offsets) copy[offset]! ^= 1 << random.below(8);
    return copy;
  };

  const metadata = bytesOf('metadata');
  const sectors = Math.ceil(LENGTH_BYTES / 4096 / 4032);
  for (let flip = 0; flip < FLIPS; flip++) {
    const at = METADATA.bitmapAt + random.below(sectors * METADATA.sectorBytes);
    await refusedAfterBoot(flipped(metadata, at), /^CLONE_METADATA_CORRUPT$/);
  }
  const [one, other] = [random.below(512), METADATA.secondHeaderAt + random.below(512)];
  await refused('metadata', flipped(metadata, one, other), /^CLONE_METADATA_CORRUPT$/);
  await refused('metadata', new Uint8Array(metadata.length), /^CLONE_METADATA_BLANK$/);
  await refused('metadata', 4096, /^CLONE_METADATA_SHORT$/);
  await refused('data', LENGTH_BYTES - 4096, /^BLOCK_SHORT_FILE$/);
  await refused('data', 0, /^BLOCK_SHORT_FILE$/);
  await refused('validity', flipped(bytesOf('validity'), 56 + random.below(16)), /^VOLUME_VALIDITY_CORRUPT$/);
  await refused('validity', 4096, /^VOLUME_VALIDITY_CORRUPT$/);
  await refused('record', bytesOf('record').subarray(0, 40), /^VOLUME_RECORD_CORRUPT$/);
  await refused('record', new Uint8Array(bytesOf('record').length), /^VOLUME_RECORD_CORRUPT$/);

  // Files that are sound, and not the ones.
  const incoming = (what: Partial<VolumeRecord>) => targetStore.createIncoming({ ...record, ...what });
  for (const [name, foreign, code] of [
    ['elsewhere', await incoming({ id: 'v_elsewhere' }), /^CLONE_WRONG_VOLUME$/],
    [
      'later',
      await (await lab.store('later')).createIncoming({ ...record, generation: 3 }),
      /^CLONE_WRONG_GENERATION$/,
    ],
  ] as const) {
    const store = name === 'later' ? await lab.store('later') : targetStore;
    await refused('metadata', readFileSync(join(store.folder(foreign.id), VOLUME_FILES.cloneMetadata)), code);
  }
  const asOther = (change: Partial<VolumeRecord>) => `${JSON.stringify({ ...record, ...change }, null, 2)}\n`;
  for (const change of [
    { generation: 1 },
    { generation: 3 },
    { state: 'incoming' },
    { state: 'sealed' },
  ] as const) {
    await refused('record', Buffer.from(asOther(change)), /^VOLUME_FENCED$/);
  }
  await refused('record', Buffer.from(asOther({ id: 'v_elsewhere' })), /^VOLUME_(RECORD_CORRUPT|FENCED)$/);
  for (const generation of [1, 3]) {
    await assert.rejects(
      open({ ...record, generation }),
      { code: 'VOLUME_FENCED' },
      'a spec that is late, or early',
    );
  }

  // One of the two headers may be damaged: the other one repairs it.
  writeFileSync(path.metadata, flipped(metadata, one));
  const opened = await open();
  assert.deepEqual(
    readFileSync(path.metadata).subarray(0, METADATA.bitmapAt),
    metadata.subarray(0, METADATA.bitmapAt),
  );
  await opened.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await opened.until('hydrated', (hydration) => hydration.state === 'complete');
  await opened.server.call('finish');
  await assertSameContent(opened.loop, expectedPath);
});

test('the live map of a clone is removed under its guest: the next server knows that it does not know what the guest wrote', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: LENGTH_BYTES,
    content: { offsetBytes: 0, lengthBytes: 24 * MIB },
    paused: true,
  });
  const { target } = move;
  // Acknowledged, and not flushed: its bit is in the map only.
  await tool('dd', 'if=/dev/urandom', `of=${target.loop}`, 'bs=64k', 'count=1', 'seek=100', 'oflag=direct');
  for (const name of readdirSync(lab.validityDir)) rmSync(join(lab.validityDir, name));
  await target.killServer();
  const read = (mib: number) =>
    tool('dd', `if=${target.loop}`, 'of=/dev/null', 'bs=1M', `skip=${mib}`, 'count=1', 'iflag=direct');
  for (const mib of [6, 20]) await assert.rejects(read(mib), /Input\/output error/);
  const { atMs, reason } = (await target.status()).dataLoss!;
  assert.match(reason, /live map was removed/);
  await target.killServer();
  await assert.rejects(read(6), /Input\/output error/);
  // An operator goes on with what the source has there.
  await until(
    'it to be written down',
    () => existsSync(join(move.targetStore.folder(move.id), 'data-loss.json')),
    {
      is: (there) => there,
    },
  );
  await move.targetStore.acceptDataLoss(move.id, atMs);
  await target.killServer();
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('whole', ({ state }) => state === 'complete');
  await assertSameContent(target.loop, expectedPath);
  // Of one that is whole nothing depends on the map.
  await target.server.call('flush');
  for (const name of readdirSync(lab.validityDir)) rmSync(join(lab.validityDir, name));
  await target.killServer();
  assert.equal((await target.status()).dataLoss, undefined);
  await assertSameContent(target.loop, expectedPath);
});
