import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import type { CreateMachineRequest } from '../../src/contract/schemas.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { plainConfig } from '../support/plain-config.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/*
 * Where a volume is served, as somebody named it: nothing else is touched there, and nobody gets in who was
 * not asked to.
 */

const MIB = 2 ** 20;

const ofRoot = (volumeId: string | null): CreateMachineRequest['config'] => ({
  ...plainConfig(volumeId, 'sleep', '1000'),
  restart: { policy: 'no', retriesMax: 0 },
});

test('serving a volume removes nothing that is there already, whoever asks', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['alpha']);
  const { client, dataDir } = fleet.worker('alpha');
  const make = (name: string) =>
    client.createVolume({ name, lengthBytes: 16 * MIB, filesystem: 'ext4', encrypted: false });
  const [volume, other] = [await make('disk'), await make('other')];
  const dir = scratchDir(t);
  const victim = join(dataDir, 'volumes', other.id, 'data.raw');
  writeFileSync(join(dir, 'file'), 'thesis');
  mkdirSync(join(dir, 'folder'));
  symlinkSync(victim, join(dir, 'link'));
  symlinkSync(join(dataDir, 'volumes', other.id), join(dir, 'way-in'));
  execFileSync('mknod', [join(dir, 'device'), 'b', '7', '200']);
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  const look = (path: string) => {
    const { ino, mode, size, ctimeNs } = lstatSync(path, { bigint: true });
    return `${ino} ${mode} ${size} ${ctimeNs}`;
  };
  const places = [victim, ...['file', 'folder', 'link', 'device', 'fifo'].map((name) => join(dir, name))];
  for (const path of places) {
    const before = look(path);
    const asked = client.serveVolume(volume.id, { protocol: 'nbd', listen: `unix:${path}`, writable: false });
    await assert.rejects(asked, (error: unknown) => isGodwitError(error, 'SYS_PATH_REFUSED'), path);
    assert.equal(look(path), before, path);
  }
  const { exitCode, stderr } = await fleet.run('volume', 'serve', 'disk', '--nbd', `unix:${victim}`);
  assert.notEqual(exitCode, 0);
  assert.match(stderr, /SYS_PATH_REFUSED/);
  // New names, too, have no place in the folders of godwit, by whatever way.
  for (const path of [join(dataDir, 'x'), join(dir, 'way-in', 'x'), join(dataDir, 'run', 'x'), '/proc/x']) {
    const asked = client.serveVolume(volume.id, { protocol: 'nbd', listen: `unix:${path}`, writable: false });
    await assert.rejects(asked, (error: unknown) => isGodwitError(error, 'SYS_PATH_REFUSED'), path);
  }
  assert.equal((await client.showVolume(other.id)).state, 'ready');
  // The data is there, and can be used.
  await client.createMachine({ name: 'm', start: true, config: ofRoot(other.id) });
  assert.equal(fleet.worker('alpha').shims().length, 1, 'nothing of what was refused is left');
});

/**
 * Greets an NBD server, chooses the export without a name and reads its first sector; exit code 0 when it
 * did. Knows the protocol, nothing of godwit.
 */
const READER = `
import socket, struct, sys
kind, place = sys.argv[1:3]
if kind == 'unix':
    s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(place)
else:
    s = socket.socket(); s.settimeout(5); s.connect(('127.0.0.1', int(place)))
f = s.makefile('rb')
assert f.read(18)[:16] == b'NBDMAGICIHAVEOPT'
s.sendall(struct.pack('>I', 3) + struct.pack('>QII', 0x49484156454F5054, 1, 0))
size, flags = struct.unpack('>QH', f.read(10))
s.sendall(struct.pack('>IHHQQI', 0x25609513, 0, 0, 1, 0, 512))
magic, error, cookie = struct.unpack('>IIQ', f.read(16))
assert (magic, error, len(f.read(512))) == (0x67446698, 0, 512)
print('read', size)
`;

test('a machine with the network of the host does not get at a volume that is served to others', {
  skip: fleetNeeds || requires('python3', 'nbdinfo'),
}, async (t) => {
  const fleet = await Fleet.start(t, ['alpha']);
  const { client } = fleet.worker('alpha');
  const { id } = await client.createVolume({
    name: 'disk',
    lengthBytes: 16 * MIB,
    filesystem: 'ext4',
    encrypted: false,
  });
  await client.createMachine({ name: 'intruder', start: true, config: ofRoot(null) });
  const tries = async (kind: 'unix' | 'tcp', place: string) => {
    const command = ['python3', '-c', READER, kind, place];
    return (await client.execInMachine('intruder', { command, timeoutMs: patient(60_000) })).exitCode === 0;
  };
  const serve = (listen: string, openToHost?: boolean) =>
    client.serveVolume(id, { protocol: 'nbd', listen, writable: true, ...(openToHost && { openToHost }) });

  const refused = serve('127.0.0.1:0');
  await assert.rejects(refused, (error: unknown) => isGodwitError(error, 'WORKER_SERVE_IN_CLEAR'));
  const { stderr } = await fleet.run('volume', 'serve', 'disk', '--nbd', '127.0.0.1:0');
  assert.match(stderr, /WORKER_SERVE_IN_CLEAR[\s\S]*--open-to-host/);

  const socket = join(scratchDir(t), 's');
  const { location } = await serve(`unix:${socket}`);
  assert.equal(lstatSync(socket).mode & 0o777, 0o600);
  assert.match(execFileSync(findProgram('nbdinfo')!, ['--size', location]).toString(), /^16777216/);
  assert.equal(await tries('unix', socket), false);
  await client.stopServing(id);
  // What a machine is shown is no place for a secret.
  const shown = scratchDir(t);
  const seeing = { ...ofRoot(null), hostFolders: [shown] };
  await client.createMachine({ name: 'seeing', start: false, config: seeing });
  const inSight = serve(`unix:${join(shown, 's')}`);
  await assert.rejects(inSight, (error: unknown) => isGodwitError(error, 'SYS_PATH_REFUSED'));

  // Asked for by its name it does what the name says, and this is how it would have been.
  const open = await serve('127.0.0.1:0', true);
  const [, port] = /:(\d+)\//.exec(open.location)!;
  assert.equal(await tries('tcp', port!), true);
  await client.stopServing(id);
  const log = readFileSync(join(fleet.dir, 'alpha.log'), 'utf8');
  assert.match(log, /open to every process and machine/);
});
