import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { systemClock } from '../../src/base/clock.ts';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/client-uri.ts';
import { testConformance } from '../support/block-conformance.ts';
import { nbdClientOptions, startNbdClient } from '../support/nbd-pair.ts';
import { startNbdkit, startQemuNbd } from '../support/nbd-programs.ts';
import { patient, until } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { readPems, TestAuthority } from '../support/test-authority.ts';

/* Our NBD client against other people's servers. Those of ours are in nbd-server.test.ts. */

const MIB = 1024 * 1024;
const NBDKIT = requires('nbdkit');
const QEMU = requires('qemu-nbd', 'qemu-img');

async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program) ?? program, args, {
    timeout: patient(60_000),
  });
  return stdout;
}

const lengthOf = (path: string) => readFileSync(path).length;

for (const sr of ['', '--no-sr']) {
  if (NBDKIT === false) {
    testConformance(`nbdkit with the file plugin${sr === '' ? '' : ', without structured replies'}`, {
      open: async (t, { lengthBytes, writable, content }) => {
        const dir = scratchDir(t);
        const file = join(dir, 'disk');
        writeFileSync(file, content ?? '');
        truncateSync(file, lengthBytes);
        const flags = [...(sr === '' ? [] : [sr]), ...(writable ? [] : ['-r'])];
        const { path } = await startNbdkit(t, join(dir, 's'), ...flags, 'file', file);
        return startNbdClient(t, { path }, { exportName: '', readOnly: !writable, connections: 2 });
      },
      runs: 10,
    });
  }
}

test('nbdkit memory: what is written is read, holes are holes, over four connections', {
  skip: NBDKIT,
}, async (t) => {
  const { path } = await startNbdkit(t, join(scratchDir(t), 's'), 'memory', '64M');
  const client = await startNbdClient(t, { path }, { exportName: '', connections: 4 });
  assert.equal(client.lengthBytes, 64 * MIB);
  const written = Buffer.from(seededRandom(1).bytes(5 * MIB + 512));
  await client.write(MIB + 512, written);
  await client.flush();
  const back = Buffer.alloc(written.length);
  await client.read(MIB + 512, back);
  assert.ok(back.equals(written));
  const extents = await client.extents(0, client.lengthBytes, 100);
  assert.equal(extents[0]!.kind, 'hole');
  assert.equal(extents.at(-1)!.kind, 'hole');
  assert.equal(
    extents.reduce((sum, extent) => sum + extent.lengthBytes, 0),
    client.lengthBytes,
  );
  await client.discard(0, client.lengthBytes);
  assert.deepEqual(await client.extents(0, client.lengthBytes, 9), [
    { offsetBytes: 0, lengthBytes: 64 * MIB, kind: 'hole' },
  ]);
  await until('four connections', () => client.statistics, { is: ({ connections }) => connections >= 4 });
});

test('nbdkit --filter=log: the requests are those that they should be', { skip: NBDKIT }, async (t) => {
  const dir = scratchDir(t);
  const log = join(dir, 'log');
  const { path } = await startNbdkit(t, join(dir, 's'), '--filter=log', 'memory', '4M', `logfile=${log}`);
  const client = await startNbdClient(t, { path }, { exportName: '' });
  await client.write(4096, Buffer.alloc(4096, 1), { fua: true });
  await client.write(8192, Buffer.alloc(4096, 1));
  await client.flush();
  await client.discard(0, 4096);
  await client.writeZeroes(4096, 4096);
  await client.trim(8192, 4096);
  await client.read(0, Buffer.alloc(3 * MIB));
  await client.close();
  const lines = readFileSync(log, 'utf8');
  assert.match(lines, /Write id=\d+ offset=0x1000 count=0x1000 fua=1/);
  assert.match(lines, /Write id=\d+ offset=0x2000 count=0x1000 fua=0/);
  assert.match(lines, /Flush id=/);
  assert.match(lines, /Zero id=\d+ offset=0x0 count=0x1000 trim=1 fua=0/);
  assert.match(lines, /Zero id=\d+ offset=0x1000 count=0x1000 trim=0 fua=0/);
  assert.match(lines, /Trim id=\d+ offset=0x2000 count=0x1000/);
  assert.equal([...lines.matchAll(/\bRead id=\d+ offset=\S+ count=0x100000/g)].length, 3);
  assert.match(lines, /Disconnect/);
});

test('nbdkit --filter=error: each error arrives under its name, and the connection lives', {
  skip: NBDKIT,
}, async (t) => {
  const args = [
    '--filter=error',
    'memory',
    '4M',
    'error-pread=EIO',
    'error-pwrite=ENOSPC',
    'error-zero=EPERM',
  ];
  const { path } = await startNbdkit(t, join(scratchDir(t), 's'), ...args, 'error-rate=100%');
  const client = await startNbdClient(t, { path }, { exportName: '' });
  const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);
  await assert.rejects(client.read(0, Buffer.alloc(4096)), (error) => {
    return isGodwitError(error, 'NBD_REQUEST_FAILED') && error.values.error === 'EIO';
  });
  await assert.rejects(client.write(0, Buffer.alloc(4096)), code('BLOCK_NO_SPACE'));
  await assert.rejects(client.discard(0, 4096), code('BLOCK_READ_ONLY'));
  assert.equal(client.state, 'connected');
  assert.equal(client.statistics.reconnects, 0);
});

test('nbdkit --filter=error at random: what succeeds is right, what fails says so', {
  skip: NBDKIT,
}, async (t) => {
  const dir = scratchDir(t);
  const { path } = await startNbdkit(
    t,
    join(dir, 's'),
    '--filter=error',
    'pattern',
    '4M',
    'error-pread-rate=30%',
  );
  const client = await startNbdClient(t, { path }, { exportName: '' });
  const buffers = Array.from({ length: 200 }, () => Buffer.alloc(4096));
  const results = await Promise.allSettled(buffers.map((buffer, index) => client.read(4096 * index, buffer)));
  const failed = results.filter(({ status }) => status === 'rejected').length;
  assert.ok(failed > 0 && failed < 200, `${failed} failed`);
  results.forEach((result, index) => {
    // The pattern plugin: each 8 bytes hold their own offset.
    if (result.status === 'fulfilled')
      assert.equal(buffers[index]!.readBigUInt64BE(8), BigInt(4096 * index + 8));
  });
});

test('nbdkit --filter=delay: slow answers overtake each other and none is lost', {
  skip: NBDKIT,
}, async (t) => {
  const { path } = await startNbdkit(
    t,
    join(scratchDir(t), 's'),
    '--filter=delay',
    'pattern',
    '4M',
    'delay-read=30ms',
  );
  const client = await startNbdClient(t, { path }, { exportName: '', keepAliveIntervalMs: 10 });
  const buffers = Array.from({ length: 100 }, (_, index) => Buffer.alloc(512 * (1 + (index % 9))));
  await Promise.all(buffers.map((buffer, index) => client.read(4096 * index, buffer)));
  buffers.forEach((buffer, index) => {
    assert.equal(buffer.readBigUInt64BE(8), BigInt(4096 * index + 8));
  });
  assert.equal(client.statistics.reconnects, 0);
});

test('nbdkit --filter=blocksize-policy: what the server asks for is kept', { skip: NBDKIT }, async (t) => {
  const policy = (minimum: string) => [
    '--filter=blocksize-policy',
    'pattern',
    '4M',
    `blocksize-minimum=${minimum}`,
    'blocksize-preferred=64K',
    'blocksize-maximum=128K',
    'blocksize-error-policy=error',
  ];
  const dir = scratchDir(t);
  const server = await startNbdkit(t, join(dir, 'a'), ...policy('4K'));
  const client = await startNbdClient(t, server, { exportName: '' });
  assert.equal(client.blockBytes, 4096);
  const all = Buffer.alloc(MIB);
  await client.read(4096, all);
  assert.equal(all.readBigUInt64BE(MIB - 8), BigInt(4096 + MIB - 8));
  await assert.rejects(client.read(512, Buffer.alloc(512)), (error) =>
    isGodwitError(error, 'BLOCK_BAD_RANGE'),
  );

  const coarse = await startNbdkit(t, join(dir, 'b'), ...policy('64K').with(1, 'memory'));
  const wide = await startNbdClient(t, coarse, { exportName: '' });
  assert.equal(wide.blockBytes, 4096);
  await wide.write(65536, Buffer.alloc(65536, 7));
  const part = Buffer.alloc(8192);
  await wide.read(65536 - 4096, part);
  assert.deepEqual([part[0], part[4095], part[4096], part[8191]], [0, 0, 7, 7]);
  await assert.rejects(wide.write(4096, part), (error) => isGodwitError(error, 'NBD_UNALIGNED'));
  const extents = await wide.extents(4096, 2 * 65536, 10);
  assert.equal(
    extents.reduce((sum, extent) => sum + extent.lengthBytes, 0),
    2 * 65536,
  );
});

test('nbdkit and qemu-nbd list their exports', { skip: NBDKIT || QEMU }, async (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'disk-a'), Buffer.alloc(MIB));
  writeFileSync(join(dir, 'disk-b'), Buffer.alloc(2 * MIB));
  const folder = await startNbdkit(t, join(dir, 'k'), 'file', `dir=${dir}`);
  const names = await NbdClient.listExports({ address: folder, clock: systemClock });
  assert.ok(names.some(({ name }) => name === 'disk-a') && names.some(({ name }) => name === 'disk-b'));
  const { address, exportName } = parseNbdUri(`nbd+unix:///disk-b?socket=${join(dir, 'k')}`);
  const client = await startNbdClient(t, address, { exportName });
  assert.equal(client.lengthBytes, 2 * MIB);
  await assert.rejects(
    NbdClient.connect(nbdClientOptions(address, { exportName: 'disk-c' })),
    (error) => isGodwitError(error) && ['NBD_EXPORT_UNKNOWN', 'NBD_REFUSED'].includes(error.code),
  );
  const qemu = await startQemuNbd(
    t,
    join(dir, 'q'),
    '-f',
    'raw',
    '-x',
    'one',
    '-D',
    'a raw disk',
    join(dir, 'disk-a'),
  );
  assert.deepEqual(await NbdClient.listExports({ address: qemu, clock: systemClock }), [
    { name: 'one', description: 'a raw disk' },
  ]);
});

for (const format of ['raw', 'qcow2']) {
  test(`qemu-nbd with ${format}: written through us, compared by qemu-img`, { skip: QEMU }, async (t) => {
    const dir = scratchDir(t);
    const disk = join(dir, 'disk');
    await run('qemu-img', 'create', '-q', '-f', format, disk, '32M');
    const server = await startQemuNbd(t, join(dir, 's'), '-f', format, '--discard=unmap', '-x', 'disk', disk);
    const client = await startNbdClient(t, server, { connections: 2 });
    const expected = Buffer.alloc(32 * MIB);
    const random = seededRandom(7);
    for (let count = 0; count < 40; count += 1) {
      const bytes = Buffer.from(random.bytes(512 * (1 + random.below(400))));
      const offset = 512 * random.below((24 * MIB) / 512);
      await client.write(offset, bytes);
      bytes.copy(expected, offset);
    }
    await client.discard(2 * MIB, 4 * MIB);
    expected.fill(0, 2 * MIB, 6 * MIB);
    await client.writeZeroes(10 * MIB + 512, MIB);
    expected.fill(0, 10 * MIB + 512, 11 * MIB + 512);
    await client.flush();
    const back = Buffer.alloc(expected.length);
    await client.read(0, back);
    assert.ok(back.equals(expected));
    const extents = await client.extents(0, client.lengthBytes, 1000);
    for (const { offsetBytes, lengthBytes, kind } of extents) {
      const part = expected.subarray(offsetBytes, offsetBytes + lengthBytes);
      if (kind === 'hole') assert.ok(part.equals(Buffer.alloc(lengthBytes)), `hole at ${offsetBytes}`);
    }
    assert.ok(extents.some(({ kind }) => kind === 'hole'));
    await client.close();
    await server.stop();
    const file = join(dir, 'expected');
    writeFileSync(file, expected);
    assert.match(await run('qemu-img', 'compare', '-f', format, '-F', 'raw', disk, file), /identical/);
    assert.equal(lengthOf(file), 32 * MIB);
  });
}

test('TLS against nbdkit and qemu-nbd: with the right certificates, and not without', {
  skip: NBDKIT || QEMU || requires('openssl'),
}, async (t) => {
  const dir = scratchDir(t);
  const authority = new TestAuthority(dir);
  authority.issue('server');
  const tls = readPems(authority.issue('client'));
  const servers = [
    await startNbdkit(
      t,
      join(dir, 'k'),
      ...['--tls=require', `--tls-certificates=${dir}`, '--tls-verify-peer', 'pattern', '4M'],
    ),
  ];
  writeFileSync(join(dir, 'disk'), Buffer.alloc(4 * MIB, 3));
  const creds = `tls-creds-x509,id=tls0,endpoint=server,dir=${dir},verify-peer=yes`;
  servers.push(
    await startQemuNbd(
      t,
      join(dir, 'q'),
      ...['--object', creds, '--tls-creds', 'tls0', '-f', 'raw', '-x', '', join(dir, 'disk')],
    ),
  );
  for (const [index, server] of servers.entries()) {
    const base = { exportName: '', connections: 2 };
    const client = await startNbdClient(t, server, { ...base, tls: { mode: 'require', ...tls } });
    const buffer = Buffer.alloc(3 * MIB);
    await client.read(4096, buffer);
    if (index === 0) assert.equal(buffer.readBigUInt64BE(MIB), BigInt(MIB + 4096));
    else assert.ok(buffer.every((byte) => byte === 3));
    const refused = (tlsOptions: Parameters<typeof nbdClientOptions>[1], codes: string[]) =>
      assert.rejects(NbdClient.connect(nbdClientOptions(server, { ...base, ...tlsOptions })), (error) => {
        return isGodwitError(error) && codes.includes(error.code);
      });
    await refused({ tls: { mode: 'off' } }, ['NBD_TLS_REQUIRED']);
    await refused({ tls: { mode: 'require', ...tls, ca: tls.certificate } }, ['NBD_TLS_FAILED']);
    await refused({ tls: { mode: 'require', ...tls, hostname: 'other.example' } }, ['NBD_TLS_FAILED']);
    const listed = await NbdClient.listExports({
      address: server,
      clock: systemClock,
      tls: { mode: 'require', ...tls },
    });
    assert.equal(listed.length, 1);
  }
});
