import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { NbdServer, type NbdServerTls } from '../../src/nbd/server.ts';
import { NotYet, patient, until } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/* Our NBD server against other people's clients: libnbd, QEMU, nbdkit. */

const MIB = 1024 * 1024;
const LENGTH_BYTES = 64 * MIB;

async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program) ?? program, args, {
    timeout: patient(60_000),
    maxBuffer: 64 * MIB,
  });
  return stdout;
}

/** For timeout(1). */
function seconds(base: number): string {
  return String(patient(base * 1_000) / 1_000);
}

type Served = { server: NbdServer; uri: string; unixUri: string; file: string; dir: string; data: Buffer };

/** 8 MiB of data at 16 MiB in a file of 64 MiB, served on TCP and on a unix socket. */
async function serve(
  t: TestContext,
  options: {
    readOnly?: boolean;
    tls?: (dir: string) => Promise<NbdServerTls>;
    remoteFromBytes?: number;
  } = {},
): Promise<Served> {
  const dir = scratchDir(t);
  const file = join(dir, 'disk');
  writeFileSync(file, '');
  truncateSync(file, LENGTH_BYTES);
  const data = randomBytes(8 * MIB);
  const handle = await open(file, 'r+');
  await handle.write(data, 0, data.length, 16 * MIB);
  await handle.close();
  const device = await FileDevice.open({ file, lengthBytes: LENGTH_BYTES });
  const tls = options.tls === undefined ? {} : { tls: await options.tls(dir) };
  const path = join(dir, 'nbd.sock');
  const common = { clock: systemClock, logger: silentLogger, ...tls };
  const server = await NbdServer.listen({ address: { host: '127.0.0.1', port: 0 }, ...common });
  const unixServer = await NbdServer.listen({ address: { path }, ...common });
  t.after(async () => {
    await Promise.all([server.close(), unixServer.close()]);
    await device.close();
  });
  const { remoteFromBytes } = options;
  for (const each of [server, unixServer]) {
    each.addExport({
      name: 'disk',
      description: 'the disk of the test',
      device,
      readOnly: options.readOnly ?? false,
      ...(remoteFromBytes === undefined
        ? {}
        : { hydration: (offset, length) => hydrationOf(offset, length, remoteFromBytes) }),
    });
  }
  assert.ok('port' in server.address);
  const uri = `nbd://127.0.0.1:${server.address.port}/disk`;
  return { server, uri, unixUri: `nbd+unix:///disk?socket=${path}`, file, dir, data };
}

function hydrationOf(offsetBytes: number, lengthBytes: number, remoteFromBytes: number) {
  const hereBytes = Math.max(0, Math.min(lengthBytes, remoteFromBytes - offsetBytes));
  return [
    { offsetBytes, lengthBytes: hereBytes, kind: 'hydrated' as const },
    {
      offsetBytes: offsetBytes + hereBytes,
      lengthBytes: lengthBytes - hereBytes,
      kind: 'remote' as const,
    },
  ].filter((extent) => extent.lengthBytes > 0);
}

test('nbdinfo reads what the export is and can', { skip: requires('nbdinfo') }, async (t) => {
  const { uri } = await serve(t, { remoteFromBytes: 48 * MIB });
  const info = JSON.parse(await run('nbdinfo', '--json', uri));
  assert.equal(info.protocol, 'newstyle-fixed');
  assert.equal(info.structured, true);
  const [shown] = info.exports;
  assert.equal(shown['export-size'], LENGTH_BYTES);
  assert.equal(shown.description, 'the disk of the test');
  for (const what of ['cache', 'df', 'fast_zero', 'flush', 'fua', 'multi_conn', 'trim', 'zero']) {
    assert.equal(shown[`can_${what}`], true, what);
  }
  assert.equal(shown.is_read_only, false);
  assert.deepEqual(
    [shown.block_size_minimum, shown.block_size_preferred, shown.block_size_maximum],
    [512, 4096, 32 * MIB],
  );
  assert.deepEqual(shown.contexts, ['base:allocation', 'godwit:hydration']);
});

test('nbdinfo maps what is allocated and what is hydrated, and lists', {
  skip: requires('nbdinfo'),
}, async (t) => {
  const { uri, unixUri } = await serve(t, { remoteFromBytes: 48 * MIB });
  const map = JSON.parse(await run('nbdinfo', '--map', '--json', unixUri));
  assert.deepEqual(
    map.map((extent: { offset: number; length: number; type: number }) => [
      extent.offset,
      extent.length,
      extent.type,
    ]),
    [
      [0, 16 * MIB, 3],
      [16 * MIB, 8 * MIB, 0],
      [24 * MIB, 40 * MIB, 3],
    ],
  );
  const hydration = JSON.parse(await run('nbdinfo', '--map=godwit:hydration', '--json', uri));
  assert.deepEqual(
    hydration.map((extent: { length: number; type: number }) => [extent.length, extent.type]),
    [
      [48 * MIB, 0],
      [16 * MIB, 1],
    ],
  );
  const list = JSON.parse(await run('nbdinfo', '--list', '--json', uri.replace(/disk$/, '')));
  assert.equal(list.exports[0]['export-name'], 'disk');
});

test('nbdcopy copies out and in, over four connections', { skip: requires('nbdcopy') }, async (t) => {
  const { uri, unixUri, file, dir } = await serve(t);
  const copy = join(dir, 'copy');
  await run('nbdcopy', '--connections=4', uri, copy);
  assert.ok(readFileSync(copy).equals(readFileSync(file)));
  const fresh = randomBytes(LENGTH_BYTES);
  fresh.fill(0, 32 * MIB, 48 * MIB);
  writeFileSync(copy, fresh);
  await run('nbdcopy', '--connections=4', '--flush', copy, unixUri);
  assert.ok(readFileSync(file).equals(fresh));
  // What it did not have to send, it asked us to make a hole.
  assert.ok(statSync(file).blocks * 512 <= 48 * MIB + MIB);
});

test('qemu-img reads, compares, converts both ways and benches', {
  skip: requires('qemu-img'),
}, async (t) => {
  const { uri, unixUri, file, dir } = await serve(t);
  for (const each of [uri, unixUri]) {
    const info = JSON.parse(await run('qemu-img', 'info', '--output=json', '-f', 'raw', each));
    assert.equal(info['virtual-size'], LENGTH_BYTES);
    assert.match(await run('qemu-img', 'compare', '-f', 'raw', each, file), /identical/);
  }
  const copy = join(dir, 'copy.qcow2');
  await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, copy);
  assert.ok(statSync(copy).size < 12 * MIB, 'holes were not copied');
  await run('qemu-io', '-f', 'raw', '-c', `write -P 0x5a 0 ${4 * MIB}`, unixUri);
  await run('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', copy, unixUri);
  assert.match(await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', copy, file), /identical/);
  for (const extra of [[], ['-w', '--flush-interval=64']]) {
    const bench = ['bench', '-f', 'raw', '-c', '2000', '-d', '16', '-s', '4096', ...extra, uri];
    assert.match(await run('qemu-img', ...bench), /Run completed/);
  }
});

test('qemu-io patterns: write, zeroes with and without holes, discard, FUA', {
  skip: requires('qemu-io'),
}, async (t) => {
  for (const uri of ['uri', 'unixUri'] as const) {
    const served = await serve(t);
    const commands = [
      'write -P 0x11 0 1M',
      'write -z 64k 64k', // must not make a hole
      'write -zu 256k 64k', // may
      'discard 512k 64k',
      'write -f -P 0x22 768k 4k',
      'aio_write -P 0x33 800k 16k',
      'aio_flush',
      'flush',
      'read -P 0x11 0 64k',
      'read -P 0 64k 64k',
      'read -P 0x11 128k 128k',
      'read -P 0 256k 64k',
      'read -P 0 512k 64k',
      'read -P 0x22 768k 4k',
      'read -P 0x33 800k 16k',
      'read -P 0x11 1020k 4k',
      'read -P 0 2M 8M',
    ];
    // qemu-io ends with success although a pattern differs; it says so.
    const out = await run(
      'qemu-io',
      '-f',
      'raw',
      ...commands.flatMap((command) => ['-c', command]),
      served[uri],
    );
    assert.doesNotMatch(out, /failed|error/i);
    const content = readFileSync(served.file);
    assert.ok(content.subarray(16 * MIB, 24 * MIB).equals(served.data));
    assert.ok(content.subarray(256 * 1024, 320 * 1024).every((byte) => byte === 0));
    assert.equal(content[800 * 1024], 0x33);
  }
});

test('a read-only export takes no write from QEMU', { skip: requires('qemu-io') }, async (t) => {
  const { uri, file } = await serve(t, { readOnly: true });
  const before = readFileSync(file);
  await assert.rejects(run('qemu-io', '-f', 'raw', '-c', 'write 0 4k', uri), /Permission denied|read-only/i);
  assert.match(await run('qemu-io', '-r', '-f', 'raw', '-c', 'read 0 4k', uri), /read 4096/);
  assert.ok(readFileSync(file).equals(before));
});

test('nbdkit serves our export on: its nbd plugin is the client', {
  skip: requires('nbdkit', 'nbdcopy'),
}, async (t) => {
  const { unixUri, uri, file, dir } = await serve(t);
  const socket = join(dir, 'nbdkit.sock');
  const nbdkit = spawn(findProgram('nbdkit')!, ['-f', '-U', socket, 'nbd', `uri=${unixUri}`, 'shared=true']);
  t.after(() => stop(nbdkit));
  await listening(socket);
  const through = `nbd+unix:///?socket=${socket}`;
  assert.match(await run('qemu-img', 'compare', '-f', 'raw', through, file), /identical/);
  await run('qemu-io', '-f', 'raw', '-c', 'write -P 7 1M 1M', '-c', 'write -z 3M 1M', '-c', 'flush', through);
  assert.match(await run('qemu-img', 'compare', '-f', 'raw', through, uri), /identical/);
  assert.equal(readFileSync(file)[MIB], 7);
});

test('nbdfuse shows our export as a file', {
  skip: requires('nbdfuse', 'fusermount3', 'root'),
}, async (t) => {
  const { unixUri, file, dir } = await serve(t);
  const mount = join(dir, 'mount');
  mkdirSync(mount);
  const nbdfuse = spawn(findProgram('nbdfuse')!, [join(mount, 'nbd'), unixUri]);
  const unmount = () => run('timeout', seconds(10), 'fusermount3', '-u', '-z', mount).catch(() => {});
  t.after(async () => {
    await unmount();
    await stop(nbdfuse);
  });
  // The file is read by another process: this one serves what is under the mount.
  await until('the file', async () => {
    const list = await run('timeout', seconds(10), 'ls', mount);
    return list.includes('nbd') || new NotYet(list);
  });
  await run('timeout', seconds(30), 'cmp', join(mount, 'nbd'), file);
  await unmount();
});

/** A folder with an authority and what it signed, under the names that QEMU and libnbd (GnuTLS) look for. */
async function certificates(dir: string, clientAuthority: boolean): Promise<NbdServerTls> {
  const folder = join(dir, 'tls');
  mkdirSync(folder);
  const path = (name: string) => join(folder, name);
  const openssl = (...args: string[]) => run('openssl', ...args);
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  await openssl(
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    path('ca-key.pem'),
    '-out',
    path('ca-cert.pem'),
    '-subj',
    '/CN=authority',
    '-days',
    '2',
  );
  for (const who of ['server', 'client']) {
    writeFileSync(path(`${who}.ext`), 'subjectAltName=IP:127.0.0.1,DNS:localhost');
    await openssl(
      'req',
      ...newKey,
      '-keyout',
      path(`${who}-key.pem`),
      '-out',
      path(`${who}.csr`),
      '-subj',
      `/CN=${who}`,
    );
    await openssl(
      'x509',
      '-req',
      '-in',
      path(`${who}.csr`),
      '-CA',
      path('ca-cert.pem'),
      '-CAkey',
      path('ca-key.pem'),
      '-CAcreateserial',
      '-days',
      '2',
      '-extfile',
      path(`${who}.ext`),
      '-out',
      path(`${who}-cert.pem`),
    );
  }
  return {
    certificate: readFileSync(path('server-cert.pem')),
    privateKey: readFileSync(path('server-key.pem')),
    ...(clientAuthority ? { clientAuthority: readFileSync(path('ca-cert.pem')) } : {}),
  };
}

function tlsArguments(uri: string, dir: string): { qemu: string[]; nbdinfo: string } {
  const { port } = new URL(uri);
  return {
    qemu: [
      '--object',
      `tls-creds-x509,id=tls0,endpoint=client,dir=${join(dir, 'tls')}`,
      '--image-opts',
      `driver=nbd,host=127.0.0.1,port=${port},export=disk,tls-creds=tls0`,
    ],
    nbdinfo: `nbds://127.0.0.1:${port}/disk?tls-certificates=${join(dir, 'tls')}`,
  };
}

test('TLS 1.3 with certificates of clients: QEMU and libnbd', {
  skip: requires('qemu-img', 'nbdinfo', 'openssl'),
}, async (t) => {
  const { uri, dir, data } = await serve(t, { tls: (folder) => certificates(folder, true) });
  const { qemu, nbdinfo } = tlsArguments(uri, dir);
  assert.match(await run('nbdinfo', nbdinfo), /with TLS/);
  assert.match(await run('qemu-img', 'info', ...qemu), /virtual size: 64 MiB/);
  const out = await run(
    'qemu-io',
    ...qemu,
    '-c',
    'write -P 0x44 1M 2M',
    '-c',
    'flush',
    '-c',
    'read -P 0x44 1M 2M',
  );
  assert.doesNotMatch(out, /failed|error/i);
  const copy = join(dir, 'copy');
  await run('nbdcopy', nbdinfo, copy);
  const content = readFileSync(copy);
  assert.ok(content.subarray(16 * MIB, 24 * MIB).equals(data));
  assert.equal(content[2 * MIB], 0x44);
});

test('TLS is required where it is: the clear, a foreign authority and no certificate are refused', {
  skip: requires('qemu-img', 'nbdinfo', 'openssl'),
}, async (t) => {
  const { uri, dir } = await serve(t, { tls: (folder) => certificates(folder, true) });
  await assert.rejects(run('nbdinfo', uri), /not supported|TLS/);
  await assert.rejects(run('qemu-img', 'info', '-f', 'raw', uri), /TLS/);
  const foreign = join(dir, 'foreign');
  mkdirSync(foreign);
  await certificates(foreign, true);
  // Theirs is signed by another authority; ours is the one they know.
  writeFileSync(join(foreign, 'tls', 'ca-cert.pem'), readFileSync(join(dir, 'tls', 'ca-cert.pem')));
  await assert.rejects(run('nbdinfo', tlsArguments(uri, foreign).nbdinfo));
  const bare = join(dir, 'bare');
  mkdirSync(join(bare, 'tls'), { recursive: true });
  writeFileSync(join(bare, 'tls', 'ca-cert.pem'), readFileSync(join(dir, 'tls', 'ca-cert.pem')));
  await assert.rejects(run('nbdinfo', tlsArguments(uri, bare).nbdinfo));
});

test('optional TLS serves both', { skip: requires('nbdinfo', 'openssl') }, async (t) => {
  const { uri, dir } = await serve(t, {
    tls: async (folder) => ({ ...(await certificates(folder, false)), required: false }),
  });
  assert.match(await run('nbdinfo', uri), /without TLS/);
  assert.match(await run('nbdinfo', tlsArguments(uri, dir).nbdinfo), /with TLS/);
});

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  const cancel = systemClock.timer(patient(5_000), () => child.kill('SIGKILL'));
  await ended;
  cancel();
}

async function listening(socket: string): Promise<void> {
  await until('it to listen', () => run('nbdinfo', '--size', `nbd+unix:///?socket=${socket}`));
}
