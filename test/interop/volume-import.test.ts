import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom, systemRandom } from '../../src/base/random.ts';
import { openClone } from '../../src/volume/clone-layer.ts';
import { DataGuard } from '../../src/volume/data-guard.ts';
import { connectImportSource, parseImportSource } from '../../src/volume/import-source.ts';
import { importSpec } from '../../src/volume/specs.ts';
import { VolumeStore } from '../../src/volume/store.ts';
import { startQemuNbd } from '../support/nbd-programs.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/* A volume as a clone of a disk of another system: usable at once, whole afterwards. */

const MIB = 1024 * 1024;
const OPTIONS = { clock: systemClock, random: systemRandom, logger: silentLogger };

async function importAndCompare(t: TestContext, location: string, content: Buffer): Promise<void> {
  const dir = scratchDir(t);
  const look = await connectImportSource(parseImportSource(location), OPTIONS);
  const { lengthBytes, sourceLengthBytes } = look;
  await look.close();
  const store = await VolumeStore.open(join(dir, 'volumes'), OPTIONS);
  const record = await store.createIncoming({
    id: 'v_imported',
    name: 'imported',
    lengthBytes,
    filesystem: 'none',
    generation: 1,
  });
  const volumeDir = store.folder(record.id);
  const validityDir = join(dir, 'validity');
  mkdirSync(validityDir);
  const source = { location, sourceLengthBytes };
  const spec = importSpec(record, { volumeDir, access: 'standby', validityDir, source });
  const hydrated = Promise.withResolvers<void>();
  const guard = new DataGuard({ ...spec, ...OPTIONS });
  const layer = await openClone(spec, { ...OPTIONS, guard, onHydrated: () => hydrated.resolve() });
  t.after(async () => {
    await layer.device.close();
    await layer.source.close();
    layer.validity.close();
  });
  await layer.source.login();
  const expected = Buffer.alloc(lengthBytes);
  content.copy(expected);
  // At once: a read falls through, a write stays.
  const early = Buffer.alloc(64 * 1024);
  await layer.device.read(MIB, early);
  assert.ok(early.equals(expected.subarray(MIB, MIB + early.length)));
  const written = Buffer.alloc(8192, 0x77);
  await layer.device.write(3 * MIB, written);
  written.copy(expected, 3 * MIB);
  layer.device.start();
  await hydrated.promise;
  await layer.device.finish();
  const all = Buffer.alloc(lengthBytes);
  await layer.device.read(0, all);
  assert.ok(all.equals(expected));
  const { wireBytes } = layer.device.hydrationStatus();
  assert.ok(wireBytes < content.length / 2, `holes do not travel: ${wireBytes} bytes did`);
}

function disk(): Buffer {
  const content = Buffer.alloc(16 * MIB + 512);
  content.set(seededRandom(3).bytes(2 * MIB), MIB - 512);
  content.fill(5, content.length - 512);
  return content;
}

test('from a file', async (t) => {
  const path = join(scratchDir(t), 'disk.raw');
  const content = disk();
  writeFileSync(path, Buffer.alloc(0));
  // With holes, as images have them.
  execFileSync('truncate', ['-s', String(content.length), path]);
  execFileSync('dd', [`of=${path}`, 'conv=notrunc,sparse', 'bs=4096', 'status=none'], { input: content });
  await importAndCompare(t, path, content);
});

test('from a qcow2 image that qemu-nbd exports', { skip: requires('qemu-nbd', 'qemu-img') }, async (t) => {
  const dir = scratchDir(t);
  const raw = join(dir, 'disk.raw');
  const image = join(dir, 'disk.qcow2');
  const content = disk();
  writeFileSync(raw, content);
  execFileSync(findProgram('qemu-img')!, ['convert', '-f', 'raw', '-O', 'qcow2', raw, image]);
  const { path } = await startQemuNbd(t, join(dir, 's'), '-f', 'qcow2', '-r', '-x', 'disk', image);
  await importAndCompare(t, `nbd+unix:///disk?socket=${path}`, content);
});
