import assert from 'node:assert/strict';
import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { startTarget, TARGET_IQN } from '../../test/support/iscsi-pair.ts';
import { startNbdServer } from '../../test/support/nbd-pair.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { seededRandom, systemRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import {
  connectImportSource,
  detectFilesystem,
  inWholeBlocks,
  measureUse,
  openImportSource,
  parseImportSource,
} from './import-source.ts';

const OPTIONS = { clock: systemClock, random: systemRandom, logger: silentLogger };

test('NBD and iSCSI URIs and paths', () => {
  assert.equal(parseImportSource('nbd://host/a').kind, 'nbd');
  assert.deepEqual(parseImportSource('/images/a disk.raw'), { kind: 'file', path: '/images/a disk.raw' });
  assert.deepEqual(parseImportSource('iscsi://10.0.0.1/iqn.2003-01.org.x:disk/3'), {
    kind: 'iscsi',
    host: '10.0.0.1',
    port: 3260,
    targetIqn: 'iqn.2003-01.org.x:disk',
    lun: 3,
    chap: null,
    certificatesDir: null,
  });
  assert.deepEqual(parseImportSource('iscsi://ann%a%b:c@[::1]:4000/iqn.x/0'), {
    kind: 'iscsi',
    host: '::1',
    port: 4000,
    targetIqn: 'iqn.x',
    lun: 0,
    chap: { user: 'ann', secret: 'a%b:c' },
    certificatesDir: null,
  });
  assert.deepEqual(parseImportSource('iscsis://ann%a@h/iqn.x/0?tls-certificates=%2Fpki%2Fa'), {
    kind: 'iscsi',
    host: 'h',
    port: 3260,
    targetIqn: 'iqn.x',
    lun: 0,
    chap: { user: 'ann', secret: 'a' },
    certificatesDir: '/pki/a',
  });
});

test('what cannot be a source is refused, and a secret is not repeated', () => {
  const wrong = [
    '',
    'http://host/a',
    'iscsi://host',
    'iscsi://host/iqn',
    'iscsi://host/iqn/256',
    'iscsi://h:0/i/1',
    'iscsi://hunter2@h/i/1',
    'iscsis://ann%hunter2@h/i/1',
    'iscsi://ann%hunter2@h/i/1?tls-certificates=/pki',
    'iscsis://ann%hunter2@h/i/1?tls-certificates=%',
  ];
  for (const text of wrong) {
    assert.throws(
      () => parseImportSource(text),
      (error) =>
        isGodwitError(error, 'VOLUME_BAD_SOURCE') && !JSON.stringify(error.toWire()).includes('hunter2'),
      text,
    );
  }
});

test('the same disk from a file, over NBD and over iSCSI, with a tail of zeros up to a whole block', async (t) => {
  const lengthBytes = 1024 * 1024 + 512;
  const content = Buffer.alloc(lengthBytes);
  content.set(seededRandom(4).bytes(100_000), 5_000);
  content.fill(9, lengthBytes - 512);
  const path = join(scratchDir(t), 'disk.raw');
  writeFileSync(path, content);
  const device = new MemoryDevice({ lengthBytes, writable: false, content });
  const { address } = await startNbdServer(t, device);
  const { target } = await startTarget(t, device, {
    grant: { initiatorIqn: 'iqn.2026-11.dev.godwit:import', chap: null },
  });
  for (const text of [
    path,
    `nbd://127.0.0.1:${address.port}/disk`,
    `iscsi://127.0.0.1:${target.port}/${TARGET_IQN}/0`,
  ]) {
    const source = await connectImportSource(parseImportSource(text), OPTIONS);
    t.after(() => source.close());
    assert.equal(source.sourceLengthBytes, lengthBytes, text);
    assert.equal(source.lengthBytes, lengthBytes + 4096 - 512);
    const all = Buffer.alloc(source.lengthBytes, 0xee);
    await source.read(0, all, { priority: 'background' });
    assert.ok(all.subarray(0, lengthBytes).equals(content));
    assert.ok(all.subarray(lengthBytes).equals(Buffer.alloc(4096 - 512)));
    for (let at = 0; at < source.lengthBytes; ) {
      for (const extent of await source.extents(at, source.lengthBytes - at, 4)) {
        assert.equal(extent.offsetBytes, at);
        assert.equal(extent.lengthBytes % 4096, 0);
        const part = all.subarray(at, at + extent.lengthBytes);
        if (extent.kind === 'hole')
          assert.ok(part.equals(Buffer.alloc(part.length)), `${text}: hole at ${at}`);
        at += extent.lengthBytes;
      }
    }
    await assert.rejects(source.write(), (error) => isGodwitError(error, 'BLOCK_READ_ONLY'));
  }
});

test('another export of the same size behind the address is not taken for the one that was looked at first', async (t) => {
  const device = new MemoryDevice({ lengthBytes: 1024 * 1024, writable: false });
  const { server, address } = await startNbdServer(t, device, { share: { description: 'v1.3' } });
  const source = parseImportSource(`nbd://127.0.0.1:${address.port}/disk`);
  const look = await connectImportSource(source, OPTIONS);
  const { nbdExport, sourceLengthBytes } = look;
  await look.close();
  assert.deepEqual(nbdExport, { name: 'disk', description: 'v1.3', minimumBlockBytes: 512 });
  const expecting = { ...OPTIONS, sourceLengthBytes, nbdExport: nbdExport! };
  await (await connectImportSource(source, expecting)).close();
  // While nobody was connected: the volume server starts anew, and knows what the record says.
  await server.removeExport('disk');
  server.addExport({ name: 'disk', device, description: 'v2.1' });
  const changed = (error: unknown) => isGodwitError(error, 'NBD_EXPORT_CHANGED');
  await assert.rejects(connectImportSource(source, expecting), changed);
  const late = openImportSource(source, expecting);
  t.after(() => late.close());
  await assert.rejects(late.read(0, Buffer.alloc(4096)), changed);
  // A record of an earlier version says nothing of it.
  await (await connectImportSource(source, { ...OPTIONS, sourceLengthBytes })).close();
});

test('a file that is missing or not made of blocks is refused', async (t) => {
  const path = join(scratchDir(t), 'odd');
  writeFileSync(path, 'seven');
  for (const name of [path, `${path}.none`]) {
    await assert.rejects(connectImportSource(parseImportSource(name), OPTIONS), (error) =>
      isGodwitError(error, 'VOLUME_BAD_SOURCE'),
    );
  }
});

test('borders inside of blocks make them data', () => {
  const extent = (offsetBytes: number, lengthBytes: number, kind: 'data' | 'hole') => ({
    offsetBytes,
    lengthBytes,
    kind,
  });
  assert.deepEqual(
    inWholeBlocks(0, [extent(0, 6144, 'data'), extent(6144, 6144, 'hole'), extent(12288, 4096, 'data')]),
    [extent(0, 8192, 'data'), extent(8192, 4096, 'hole'), extent(12288, 4096, 'data')],
  );
  assert.deepEqual(inWholeBlocks(4096, [extent(4096, 512, 'hole'), extent(4608, 3584, 'data')]), [
    extent(4096, 4096, 'data'),
  ]);
});

test('how much of a source is in use: as far as there is time, and as far as it tells', async (t) => {
  const path = join(scratchDir(t), 'disk.raw');
  const lengthBytes = 8 * 1024 * 1024;
  writeFileSync(path, Buffer.alloc(0));
  truncateSync(path, lengthBytes);
  const device = await connectImportSource(parseImportSource(path), OPTIONS);
  t.after(() => device.close());
  assert.deepEqual(await measureUse(device, systemClock), { dataBytes: 0, unknownBytes: 0 });
  const file = openSync(path, 'r+');
  writeSync(file, Buffer.alloc(64 * 1024, 1), 0, 64 * 1024, 1024 * 1024);
  closeSync(file);
  assert.deepEqual(await measureUse(device, systemClock), { dataBytes: 64 * 1024, unknownBytes: 0 });
  assert.deepEqual(await measureUse(device, systemClock, 0), { dataBytes: 0, unknownBytes: lengthBytes });
  // Half of it is told, then there is an error.
  const half = lengthBytes / 2;
  const extents = async (offsetBytes: number) => {
    if (offsetBytes > 0) throw new Error('no answer');
    return [{ offsetBytes, lengthBytes: half, kind: 'data' as const }];
  };
  const told = await measureUse({ lengthBytes, extents }, systemClock);
  assert.deepEqual(told, { dataBytes: half, unknownBytes: half });
});

test('a source that is there and answers nothing is refused in time, with what is known of why', async () => {
  const never = () => new Promise<never>(() => {});
  const clock = new FakeClock();
  const silent = { lengthBytes: 2 ** 30, read: never, extents: never };
  const trouble = new GodwitError('NBD_SILENT', 'The NBD server does not answer', { nextAction: '-' });
  const source = { ...silent, state: 'connected', lastError: null, trouble };
  const refused = assert.rejects(
    detectFilesystem(source, clock),
    (error) => isGodwitError(error, 'VOLUME_BAD_SOURCE') && /does not answer/.test(error.message),
  );
  await clock.run(PATIENCE.importConnect.ms);
  await refused;
  const measured = measureUse(silent, clock);
  await clock.run(PATIENCE.importProbe.ms);
  assert.deepEqual(await measured, { dataBytes: 0, unknownBytes: 2 ** 30 });
  assert.equal(clock.pendingTimers, 0);
});
