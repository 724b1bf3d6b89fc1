import assert from 'node:assert/strict';
import { execFile, execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { CreateMachineRequest, ServeReply, VolumeView } from '../../src/contract/schemas.ts';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { TARGET_IQN } from '../support/iscsi-pair.ts';
import { startNbdkit, startQemuNbd } from '../support/nbd-programs.ts';
import { NotYet, patient, until } from '../support/patience.ts';
import { reservePorts } from '../support/ports.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';
import { startTgt } from '../support/tgt.ts';

/*
 * Disks of other systems become volumes, and volumes become disks of other systems: through workers, their
 * API and the command line.
 */

const MIB = 2 ** 20;

/** An ext4 image with a file of random bytes, another that nobody reads, and holes. */
function makeImage(
  t: TestContext,
  lengthBytes: number,
  ...options: string[]
): { path: string; content: Buffer } {
  const dir = scratchDir(t);
  const tree = join(dir, 'tree');
  mkdirSync(tree);
  const content = Buffer.from(seededRandom(11).bytes(4 * MIB));
  writeFileSync(join(tree, 'content'), content);
  writeFileSync(join(tree, 'unread'), seededRandom(12).bytes(16 * MIB));
  const path = join(dir, 'disk.raw');
  writeFileSync(path, '');
  truncateSync(path, lengthBytes);
  execFileSync(findProgram('mkfs.ext4')!, ['-q', '-F', ...options, '-d', tree, path]);
  return { path, content };
}

function sleeper(volume: VolumeView): CreateMachineRequest['config'] {
  return {
    command: ['sleep', '1000'],
    env: {},
    volume: { volumeId: volume.id, mountPath: '/data' },
    restart: { policy: 'no', retriesMax: 0 },
    stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
    resources: {},
    network: 'host',
    metadata: {},
  };
}

async function imported(fleet: Fleet, ...words: string[]): Promise<VolumeView> {
  const { stdout, stderr, exitCode } = await fleet.run('--json', 'volume', 'import', ...words);
  assert.equal(exitCode, 0, stderr);
  return JSON.parse(stdout) as VolumeView;
}

function whole(fleet: Fleet, worker: FleetWorker, volume: VolumeView): Promise<VolumeView> {
  return fleet.until(`${volume.name} to be whole`, async () => {
    const view = await worker.client.showVolume(volume.id);
    return view.state === 'ready' ? view : null;
  });
}

test('a file becomes a volume that nobody has to use', { skip: fleetNeeds }, async (t) => {
  const image = makeImage(t, 64 * MIB + 512);
  const fleet = await Fleet.start(t, ['alpha', 'small'], { flags: { small: ['--disk', '10MiB'] } });
  const alpha = fleet.worker('alpha');
  const volume = await imported(fleet, 'disk', image.path, '--worker', 'alpha');
  assert.equal(volume.lengthBytes, 64 * MIB + 4096);
  assert.equal(volume.filesystem, 'ext4', 'as its superblock says');
  await whole(fleet, alpha, volume);
  const folder = join(alpha.dataDir, 'volumes', volume.id);
  const expected = Buffer.alloc(volume.lengthBytes);
  readFileSync(image.path).copy(expected);
  assert.ok(readFileSync(join(folder, 'data.raw')).equals(expected));
  for (const name of ['source.json', 'clone.meta']) assert.throws(() => statSync(join(folder, name)), name);
  await fleet.until('its shim to end', () => alpha.shims().length === 0);

  // A host that has promised its disk: as a move would be, an import is refused before anything is made.
  const small = fleet.worker('small');
  const refused = await fleet.run('volume', 'import', 'disk-2', image.path, '--worker', 'small');
  assert.match(refused.stderr, /WORKER_IMPORT_NO_SPACE: no room for disk-2: it needs 2\d MiB, and 0 MiB/);
  assert.deepEqual(await small.client.listVolumes(), []);

  const own = join(folder, 'data.raw');
  await assert.rejects(alpha.client.importVolume({ name: 'copy', source: own }), (error: unknown) =>
    isGodwitError(error, 'VOLUME_BAD_SOURCE'),
  );
});

const NEEDS_QEMU = fleetNeeds || requires('qemu-nbd', 'qemu-img');
test('a machine starts at once on a qcow2 image', { skip: NEEDS_QEMU }, async (t) => {
  const image = makeImage(t, 64 * MIB);
  const qcow2 = `${image.path}.qcow2`;
  execFileSync(findProgram('qemu-img')!, ['convert', '-f', 'raw', '-O', 'qcow2', image.path, qcow2]);
  const socket = join(scratchDir(t), 's');
  const start = () => startQemuNbd(t, socket, '-f', 'qcow2', '-r', '-x', 'disk', qcow2);
  const source = await start();
  // So slow that it is not whole before everything here has happened.
  const fleet = await Fleet.start(t, ['alpha', 'beta'], {
    flags: { alpha: ['--hydration-rate', '64KiB', '--disk', '1GiB'] },
  });
  const alpha = fleet.worker('alpha');
  const volume = await imported(fleet, 'disk', `nbd+unix:///disk?socket=${socket}`, '--worker', 'alpha');
  assert.equal(volume.state, 'clone');
  // What will arrive is not free any more, whoever asks and whenever.
  const freeBytes = async () => (await alpha.client.worker()).free.diskBytes;
  const promised = await freeBytes();
  assert.ok(promised < 1024 * MIB - 20 * MIB * 1.1, `${promised}`);
  const sourceFile = join(alpha.dataDir, 'volumes', volume.id, 'source.json');
  assert.equal(statSync(sourceFile).mode & 0o777, 0o600);
  await fleet.until('it to hydrate for nobody', async () => {
    const { hydration } = await alpha.client.showVolume(volume.id);
    return hydration && hydration.transport === 'foreign' && hydration.blocksPresent > 0;
  });

  const machine = await alpha.client.createMachine({ name: 'reader', start: true, config: sleeper(volume) });
  const sum = () =>
    alpha.client.execInMachine(machine.id, {
      command: ['sha256sum', '/data/content'],
      timeoutMs: patient(60_000),
    });
  const expected = createHash('sha256').update(image.content).digest('hex');
  assert.equal((await sum()).stdout.split(' ')[0], expected);
  assert.equal((await alpha.client.showVolume(volume.id)).state, 'clone');

  await assert.rejects(alpha.client.destroyVolume(volume.id), (error: unknown) =>
    isGodwitError(error, 'WORKER_VOLUME_HELD'),
  );
  await assert.rejects(
    alpha.client.moveMachine(machine.id, { target: 'beta' }),
    (error) =>
      isGodwitError(error, 'MIGRATION_NOT_MOVABLE') && /disk that it is imported from/.test(error.message),
  );

  // The control process goes and comes; so does the machine. The volume goes on elsewhere each time.
  await alpha.kill();
  await alpha.start();
  // While what came is being written, the disk's figures and the volume's are not of the same moment.
  await fleet.until('as much to be promised as before', freeBytes, { is: (bytes) => bytes === promised });
  await alpha.client.destroyMachine(machine.id, { force: true });
  await fleet.until('it to hydrate for nobody again', async () => {
    return (await alpha.client.showVolume(volume.id)).hydration;
  });
  const { stdout } = await fleet.run('volume', 'show', 'disk');
  assert.match(stdout, /from a foreign disk/);
  await source.stop();
  await fleet.until('the source to be missed', async () => {
    const { hydration } = await alpha.client.showVolume(volume.id);
    return hydration?.state === 'source-lost';
  });
  await start();
  await fleet.until('the source to be back', async () => {
    const { hydration } = await alpha.client.showVolume(volume.id);
    return hydration?.state === 'running';
  });

  await alpha.client.destroyVolume(volume.id);
  assert.equal(await freeBytes(), 1024 * MIB);
  assert.equal(alpha.shims().length, 0);
  assert.deepEqual(await alpha.client.listVolumes(), []);
});

/** A volume with a machine that wrote on it, and what the volume is then, byte by byte. */
async function written(fleet: Fleet, worker: FleetWorker): Promise<{ volume: VolumeView; data: string }> {
  const volume = await worker.client.createVolume({
    name: 'disk',
    lengthBytes: 32 * MIB,
    filesystem: 'ext4',
    encrypted: false,
  });
  const machine = await worker.client.createMachine({ name: 'm', start: true, config: sleeper(volume) });
  const command = ['sh', '-c', 'head -c 3000000 /dev/urandom > /data/content'];
  assert.equal(
    (await worker.client.execInMachine(machine.id, { command, timeoutMs: patient(60_000) })).exitCode,
    0,
  );

  const held = await fleet.run('volume', 'serve', 'disk', '--nbd', '127.0.0.1:0', '--open-to-host');
  assert.equal(held.exitCode, 6, held.stderr);
  await worker.client.stopMachine(machine.id);
  return { volume, data: join(worker.dataDir, 'volumes', volume.id, 'data.raw') };
}

const NEEDS_CLIENTS = fleetNeeds || requires('nbdinfo', 'nbdcopy', 'qemu-img', 'iscsi-inq');
test('a volume is served over NBD and iSCSI', { skip: NEEDS_CLIENTS }, async (t) => {
  const fleet = await Fleet.start(t, ['alpha']);
  const alpha = fleet.worker('alpha');
  const { client } = alpha;
  const { volume, data } = await written(fleet, alpha);
  const dir = scratchDir(t);
  const run = (program: string, ...args: string[]) =>
    execFileSync(findProgram(program)!, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: patient(60_000),
    }).toString();

  // Until Ctrl-C.
  const socket = join(dir, 'disk.sock');
  const serving = fleet.follow('volume', 'serve', 'disk', '--nbd', `unix:${socket}`);
  const [location] = /nbd\+unix:\S+/.exec(await serving.says('nbd+unix'))!;
  const info = JSON.parse(run('nbdinfo', '--json', location)).exports[0];
  assert.deepEqual([info['export-size'], info.is_read_only], [volume.lengthBytes, true]);
  const copy = join(dir, 'copy.raw');
  run('nbdcopy', location, copy);
  assert.ok(readFileSync(copy).equals(readFileSync(data)));
  await fleet.until('it to be shown', async () => {
    const { served } = await client.showVolume(volume.id);
    return served?.location === location && !served.writable;
  });
  const isServed = (error: unknown) => isGodwitError(error, 'WORKER_VOLUME_SERVED');
  await assert.rejects(client.startMachine('m'), isServed);
  await assert.rejects(
    client.serveVolume(volume.id, { protocol: 'iscsi', listen: '127.0.0.1:0', writable: false }),
    isServed,
  );
  // The data path is no child of the control process.
  await alpha.kill();
  assert.match(run('nbdinfo', '--size', location), /^33554432/);
  await alpha.start();
  serving.interrupt();
  assert.equal((await serving.ended).exitCode, 0);
  assert.equal((await client.showVolume(volume.id)).served, null);

  // Writable: what a client wrote is what a machine reads.
  const reply = await client.serveVolume(volume.id, {
    protocol: 'nbd',
    listen: `unix:${socket}`,
    writable: true,
  });
  const image = makeImage(t, volume.lengthBytes);
  run('nbdcopy', '--flush', image.path, reply.location);
  const stop = await fleet.run('volume', 'serve', 'disk', '--stop');
  assert.equal(stop.exitCode, 0, stop.stderr);
  await client.startMachine('m');
  const command = ['sha256sum', '/data/content'];
  const { stdout } = await client.execInMachine('m', { command, timeoutMs: patient(60_000) });
  assert.equal(stdout.split(' ')[0], createHash('sha256').update(image.content).digest('hex'));
  await client.stopMachine('m');

  // iSCSI, with the secret that was told and not without it.
  const detached = await fleet.run('--json', 'volume', 'serve', 'disk', '--iscsi', '127.0.0.1:0', '--detach');
  assert.equal(detached.exitCode, 0, detached.stderr);
  const told = JSON.parse(detached.stdout) as { location: string; chap: { user: string; secret: string } };
  const login = (secret: string) => told.location.replace('//', `//${told.chap.user}%${secret}@`);
  assert.match(run('iscsi-inq', login(told.chap.secret)), /Vendor:/);
  assert.throws(() => run('iscsi-inq', login('not-the-secret-of-it')));
  run('qemu-img', 'convert', '-O', 'raw', login(told.chap.secret), copy);
  assert.ok(readFileSync(copy).equals(readFileSync(data)));
  const log = readFileSync(join(fleet.dir, 'alpha.log'), 'utf8');
  assert.ok(
    !log.includes(told.chap.secret) && !JSON.stringify(await client.listVolumes()).includes(told.chap.secret),
  );
  await client.stopServing(volume.id);
  await client.stopServing(volume.id);
  assert.ok(alpha.shims().every(({ id }) => !id.startsWith('s_')));
});

/** Speaks TLS for a program that does not, set up as docs/volumes.md says: its port. */
async function stunnel(t: TestContext, farPort: number, files: TlsFiles): Promise<number> {
  const [port] = await reservePorts(t, 1);
  const settings = join(scratchDir(t), 'stunnel.conf');
  const lines = [
    ...['foreground = yes', 'pid =', '[disk]', 'client = yes'],
    ...[`accept = 127.0.0.1:${port}`, `connect = 127.0.0.1:${farPort}`],
    ...[`cert = ${files.certFile}`, `key = ${files.keyFile}`, `CAfile = ${files.caFile}`],
    ...['verifyChain = yes', 'checkIP = 127.0.0.1'],
  ];
  writeFileSync(settings, `${lines.join('\n')}\n`);
  const child = spawn(findProgram('stunnel')!, [settings], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  const exited = once(child, 'exit');
  t.after(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  await until('stunnel to listen', () => /Configuration successful/.test(said) || new NotYet(said));
  return port!;
}

const NEEDS_TLS = fleetNeeds || requires('openssl', 'nbdinfo', 'nbdcopy', 'qemu-img', 'stunnel');
test('beyond the host a volume is served over TLS, NBD and iSCSI, to clients of the same authority', {
  skip: NEEDS_TLS,
}, async (t) => {
  const [authority, strangers] = [new TestAuthority(scratchDir(t)), new TestAuthority(scratchDir(t))];
  const [files, strange] = [authority.issue('client'), strangers.issue('client')];
  const fleet = await Fleet.start(t, ['alpha'], { tls: { alpha: authority.issue('server') } });
  const alpha = fleet.worker('alpha');
  const { volume, data } = await written(fleet, alpha);
  const { location } = await alpha.client.serveVolume(volume.id, {
    protocol: 'nbd',
    listen: '0.0.0.0:0',
    writable: false,
  });
  const [, port] = /^nbds:\/\/0\.0\.0\.0:(\d+)\/disk$/.exec(location)!;
  const place = `127.0.0.1:${port}/disk`;
  const copy = join(scratchDir(t), 'copy.raw');
  execFileSync(findProgram('nbdcopy')!, [`nbds://${place}?tls-certificates=${authority.dir}`, copy], {
    timeout: patient(60_000),
  });
  assert.ok(readFileSync(copy).equals(readFileSync(data)));
  const refused = (uri: string) =>
    assert.throws(
      () => execFileSync(findProgram('nbdinfo')!, [uri], { stdio: 'pipe', timeout: patient(20_000) }),
      (error: Error) => /nbdinfo: /.test(error.message),
      uri,
    );
  refused(`nbd://${place}`);
  refused(`nbds://${place}?tls-certificates=${strangers.dir}`);
  // Who trusts the authority and has no certificate of it.
  const anonymous = scratchDir(t);
  copyFileSync(authority.caFile, join(anonymous, 'ca-cert.pem'));
  refused(`nbds://${place}?tls-certificates=${anonymous}`);
  await alpha.client.stopServing(volume.id);

  // Initiators do not speak TLS by themselves; what imports does.
  const words = ['volume', 'serve', 'disk', '--iscsi', '0.0.0.0:0', '--tls', '--detach'];
  const served = await fleet.run('--json', ...words);
  assert.equal(served.exitCode, 0, served.stderr);
  const told = JSON.parse(served.stdout) as ServeReply;
  const [, iscsiPort, iqn] = /^iscsis:\/\/0\.0\.0\.0:(\d+)\/(iqn[^/]+)\/0$/.exec(told.location)!;
  const login = (at: number) => `${told.chap!.user}%${told.chap!.secret}@127.0.0.1:${at}/${iqn}/0`;
  const convert = async (at: number) => {
    const target = ['-O', 'raw', `iscsi://${login(at)}`, copy];
    return promisify(execFile)(findProgram('qemu-img')!, ['convert', ...target], {
      timeout: patient(60_000),
    });
  };
  rmSync(copy);
  await convert(await stunnel(t, Number(iscsiPort), files));
  assert.ok(readFileSync(copy).equals(readFileSync(data)));
  await assert.rejects(convert(Number(iscsiPort)), 'in the clear');
  const stranger = { ...strange, caFile: files.caFile };
  await assert.rejects(convert(await stunnel(t, Number(iscsiPort), stranger)), 'of another authority');
  const source = (dir: string) => `iscsis://${login(Number(iscsiPort))}?tls-certificates=${dir}`;
  const strangeImport = await fleet.run('volume', 'import', 'copy', source(strangers.dir));
  assert.match(strangeImport.stderr, /ISCSI_TLS_REFUSED/);
  const copied = await whole(fleet, alpha, await imported(fleet, 'copy', source(authority.dir)));
  const copiedData = readFileSync(join(alpha.dataDir, 'volumes', copied.id, 'data.raw'));
  assert.ok(copiedData.equals(readFileSync(data)));
});

test('clients of an encrypted volume see the plaintext, and what they write is encrypted', {
  skip: fleetNeeds || requires('nbdinfo', 'nbdcopy', 'qemu-io', 'iscsi-inq'),
}, async (t) => {
  const keyFile = join(scratchDir(t), 'key');
  writeFileSync(keyFile, 'k', { mode: 0o600 });
  const fleet = await Fleet.start(t, ['alpha'], { flags: { alpha: ['--key-file', keyFile] } });
  const { client, dataDir } = fleet.worker('alpha');
  const volume = await client.createVolume({ name: 'disk', lengthBytes: 32 * MIB, filesystem: 'ext4' });
  assert.equal(volume.encrypted, true);
  const data = join(dataDir, 'volumes', volume.id, 'data.raw');
  const run = (program: string, ...args: string[]) =>
    execFileSync(findProgram(program)!, args, { stdio: 'pipe', timeout: patient(60_000) }).toString();
  const serve = (writable: boolean) =>
    client.serveVolume(volume.id, {
      protocol: 'nbd',
      listen: `unix:${join(scratchDir(t), 's')}`,
      writable,
    });
  // Blocks of a sector of the encryption, or the kernel does not mount it.
  const image = makeImage(t, volume.lengthBytes, '-b', '4096');
  const { location } = await serve(true);
  const [info] = JSON.parse(run('nbdinfo', '--json', location)).exports;
  assert.equal(info.block_size_minimum, 4096, 'a sector of the encryption');
  run('nbdcopy', '--flush', image.path, location);
  const copy = join(scratchDir(t), 'copy.raw');
  run('nbdcopy', location, copy);
  assert.ok(readFileSync(copy).equals(readFileSync(image.path)));
  assert.ok(!readFileSync(data).includes(image.content.subarray(0, 64)), 'the plaintext is on the disk');
  // QEMU writes half a block by reading the rest of it.
  run('qemu-io', '-f', 'raw', '-c', `write -P 7 ${24 * MIB + 512} 512`, location);
  const said = run('qemu-io', '-f', 'raw', '-c', `read -P 7 ${24 * MIB + 512} 512`, location);
  assert.doesNotMatch(said, /failed/i);
  await client.stopServing(volume.id);

  // A machine reads what the client wrote.
  const machine = await client.createMachine({ name: 'm', start: true, config: sleeper(volume) });
  const command = ['sha256sum', '/data/content'];
  const { stdout } = await client.execInMachine(machine.id, { command, timeoutMs: patient(60_000) });
  assert.equal(stdout.split(' ')[0], createHash('sha256').update(image.content).digest('hex'));
  await client.stopMachine('m');
  // iSCSI does not encrypt: not even with a secret does the plaintext leave the host.
  const { id } = volume;
  await assert.rejects(
    client.serveVolume(id, { protocol: 'iscsi', listen: '10.0.0.1:0', writable: false }),
    (error: unknown) => isGodwitError(error, 'WORKER_SERVE_IN_CLEAR'),
  );
});

test('a volume is not served in the clear to everybody', { skip: fleetNeeds }, async (t) => {
  const fleet = await Fleet.start(t, ['alpha']);
  const { client } = fleet.worker('alpha');
  const { id } = await client.createVolume({
    name: 'disk',
    lengthBytes: 16 * MIB,
    filesystem: 'none',
    encrypted: false,
  });
  const refusals = [
    ['nbd', '10.0.0.1:0', 'WORKER_SERVE_IN_CLEAR'],
    ['nbd', '0.0.0.0:0', 'WORKER_SERVE_IN_CLEAR'],
    ['nbd', '127.0.0.1:0', 'WORKER_SERVE_IN_CLEAR'],
    ['nbd', '[::1]:0', 'WORKER_SERVE_IN_CLEAR'],
    ['iscsi', '0.0.0.0:0', 'WORKER_SERVE_IN_CLEAR'],
    ['iscsi', '[2001:db8::1]:0', 'WORKER_SERVE_IN_CLEAR'],
    ['iscsi', '10.0.0.1:0', 'WORKER_SERVE_IN_CLEAR', true],
    ['iscsi', 'unix:/tmp/x', 'WORKER_BAD_LISTEN'],
    ['nbd', 'unix:/tmp/x', 'WORKER_BAD_LISTEN', true],
    ['nbd', 'unix:x', 'WORKER_BAD_LISTEN'],
    ['nbd', '127.0.0.1', 'WORKER_BAD_LISTEN'],
    ['nbd', '127.0.0.1:65536', 'WORKER_BAD_LISTEN'],
    // There is no such address here: what the server says comes through.
    ['iscsi', '10.255.255.254:0', 'ISCSI_LISTEN_FAILED'],
  ] as const;
  for (const [protocol, listen, code, tls = false] of refusals) {
    const served = client.serveVolume(id, { protocol, listen, writable: false, ...(tls && { tls }) });
    await assert.rejects(served, (error: unknown) => isGodwitError(error, code), `${protocol} ${listen}`);
  }
  assert.equal(fleet.worker('alpha').shims().length, 0);
});

const NEEDS_TGT = fleetNeeds || requires('tgtd', 'tgtadm');
test('a disk of an iSCSI target becomes a volume, with the secret and not without', {
  skip: NEEDS_TGT,
}, async (t) => {
  const image = makeImage(t, 64 * MIB);
  const chap = { user: 'importer', secret: 'a-secret-of-an-array' };
  const tgt = await startTgt({ file: image.path, chap });
  t.after(() => tgt.close());
  const fleet = await Fleet.start(t, ['alpha']);
  const alpha = fleet.worker('alpha');
  const sourceOf = (login: string) => `iscsi://${login}127.0.0.1:${tgt.port}/${TARGET_IQN}/1`;
  for (const login of ['', `${chap.user}%not-the-secret-of-it@`]) {
    const refused = await fleet.run('volume', 'import', 'disk', sourceOf(login));
    assert.match(refused.stderr, /ISCSI_LOGIN_REFUSED/, login);
  }
  assert.deepEqual(await alpha.client.listVolumes(), []);

  const volume = await imported(fleet, 'disk', sourceOf(`${chap.user}%${chap.secret}@`));
  assert.deepEqual([volume.lengthBytes, volume.filesystem], [64 * MIB, 'ext4']);
  await whole(fleet, alpha, volume);
  const data = readFileSync(join(alpha.dataDir, 'volumes', volume.id, 'data.raw'));
  assert.ok(data.equals(readFileSync(image.path)));
  assert.doesNotMatch(alpha.logTail(), new RegExp(chap.secret));
});

const NEEDS_TLS_SERVER = fleetNeeds || requires('nbdkit', 'openssl');
test('a disk behind NBD with TLS becomes a volume, with certificates and not without', {
  skip: NEEDS_TLS_SERVER,
}, async (t) => {
  const image = makeImage(t, 64 * MIB);
  const [authority, strangers] = [new TestAuthority(scratchDir(t)), new TestAuthority(scratchDir(t))];
  for (const name of ['server', 'client']) authority.issue(name);
  strangers.issue('client');
  const socket = join(scratchDir(t), 's');
  const tls = ['--tls=require', `--tls-certificates=${authority.dir}`, '--tls-verify-peer'];
  await startNbdkit(t, socket, '-r', ...tls, 'file', image.path);
  const fleet = await Fleet.start(t, ['alpha']);
  const alpha = fleet.worker('alpha');
  const sourceOf = (scheme: string, dir?: string) =>
    `${scheme}:///?socket=${socket}${dir === undefined ? '' : `&tls-certificates=${dir}`}`;
  for (const [source, code] of [
    [sourceOf('nbd+unix'), 'NBD_TLS_FAILED'],
    [sourceOf('nbds+unix'), 'NBD_TLS_FAILED'],
    [sourceOf('nbds+unix', strangers.dir), 'NBD_TLS_FAILED'],
  ] as const) {
    const refused = await fleet.run('volume', 'import', 'disk', source);
    assert.match(refused.stderr, new RegExp(code), source);
  }
  assert.deepEqual(await alpha.client.listVolumes(), []);

  const volume = await imported(fleet, 'disk', sourceOf('nbds+unix', authority.dir));
  assert.deepEqual([volume.lengthBytes, volume.filesystem], [64 * MIB, 'ext4']);
  await whole(fleet, alpha, volume);
  const data = readFileSync(join(alpha.dataDir, 'volumes', volume.id, 'data.raw'));
  assert.ok(data.equals(readFileSync(image.path)));
});
