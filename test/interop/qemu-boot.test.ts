import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { lstatSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { VolumeView } from '../../src/contract/schemas.ts';
import { bootDisk, qemuCommand } from '../support/boot-disk.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

const MIB = 2 ** 20;
const skip = fleetNeeds || requires('qemu-system-x86_64', 'nbdinfo');

test('a virtual machine boots from its volume through the NBD socket, and again where it is drained to', {
  skip,
}, async (t) => {
  const image = join(scratchDir(t), 'disk.raw');
  writeFileSync(image, bootDisk('godwit boots '));
  truncateSync(image, 64 * MIB);
  const fleet = await Fleet.start(t, ['alpha', 'beta']);
  const [alpha, beta] = [fleet.worker('alpha'), fleet.worker('beta')];
  const imported = await fleet.run('--json', 'volume', 'import', 'disk', image, '--worker', 'alpha');
  assert.equal(imported.exitCode, 0, imported.stderr);
  const volume = JSON.parse(imported.stdout) as VolumeView;

  const file = 'file.driver=nbd,file.server.type=unix,file.server.path=/run/godwit/disk.sock';
  const drive = `${file},file.reconnect-delay=60,format=raw,if=ide,discard=unmap`;
  const run = await fleet.run(
    ...['machine', 'run', '--name', 'vm', '--volume', 'disk', '--nbd', '--user', 'nobody', '--'],
    ...qemuCommand(drive),
  );
  assert.equal(run.exitCode, 0, run.stderr);
  await booted(fleet, alpha, 1);
  const machine = await alpha.client.showMachine('vm');
  const shown = await fleet.run('machine', 'show', 'vm');
  assert.match(shown.stdout, /at \/run\/godwit\/disk\.sock \(NBD\)/);

  const path = join(alpha.dataDir, 'run', machine.id, 'nbd', 'disk.sock');
  const { mode, uid } = lstatSync(path);
  const nobody = Number(execFileSync('id', ['-u', 'nobody']).toString());
  assert.deepEqual([mode & 0o777, uid], [0o600, nobody]);
  const location = `nbd+unix:///disk?socket=${path}`;
  const { exports } = JSON.parse(execFileSync(findProgram('nbdinfo')!, ['--json', location]).toString());
  assert.deepEqual([exports[0]['export-size'], exports[0].is_read_only], [64 * MIB, false]);
  await fleet.until('the socket to be shown', async () => {
    const { served } = await alpha.client.showVolume(volume.id);
    return served?.location === location && served.writable;
  });

  await fleet.until('the volume to be whole', async () => {
    return (await alpha.client.showVolume(volume.id)).state === 'ready';
  });
  const drain = await fleet.run('drain', 'alpha', '--wait', '10m');
  assert.equal(drain.exitCode, 0, drain.stdout + drain.stderr);
  await booted(fleet, beta, 2);
  assert.deepEqual(await fleet.owners(machine.id), [beta]);

  // A restart in place too: the digit is where it was written.
  await beta.client.restartMachine('vm');
  await booted(fleet, beta, 3);

  // Without a machine: a volume that is served to whoever comes.
  await beta.client.stopMachine('vm');
  await fleet.until('the volume to be whole', async () => {
    return (await beta.client.showVolume(volume.id)).state === 'ready';
  });
  const served = join(scratchDir(t), 's');
  await beta.client.serveVolume(volume.id, { protocol: 'nbd', listen: `unix:${served}`, writable: true });
  const [program, ...words] = qemuCommand(`file=nbd:unix:${served},format=raw,if=virtio`);
  const qemu = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => qemu.kill('SIGKILL'));
  let said = '';
  qemu.stdout.on('data', (chunk: Buffer) => {
    said += chunk.toString('latin1');
  });
  await fleet.until('boot 4', () => said.includes('godwit boots 4\r\n'));
});

/** The machine has said how often it has booted; each time is one more than the one before. */
async function booted(fleet: Fleet, worker: FleetWorker, times: number): Promise<void> {
  await fleet.until(`boot ${times} on ${worker.name}`, async () => {
    const { id } = await worker.client.showMachine('vm');
    const log = readFileSync(join(worker.dataDir, 'run', id, 'machine.log'), 'latin1');
    return log.includes(`godwit boots ${times}\r\n`);
  });
}
