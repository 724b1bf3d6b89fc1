import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { mustEndWell } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { Terminal } from '../support/terminal.ts';

/*
 * What stays exported when the command that asked for it, its terminal, the worker or the volume server dies
 * (docs/volumes.md, Serving a volume).
 */

const MIB = 2 ** 20;
const LENGTH_BYTES = 16 * MIB;
const skip = fleetNeeds || requires('nbdinfo', 'python3');

async function start(t: TestContext): Promise<{ fleet: Fleet; alpha: FleetWorker; socket: string }> {
  const fleet = await Fleet.start(t, ['alpha']);
  const alpha = fleet.worker('alpha');
  await alpha.client.createVolume({
    name: 'disk',
    lengthBytes: LENGTH_BYTES,
    filesystem: 'none',
    encrypted: false,
  });
  return { fleet, alpha, socket: join(scratchDir(t), 'disk.sock') };
}

/** A client that comes now is served. */
async function isServed(socket: string): Promise<void> {
  const size = await mustEndWell(findProgram('nbdinfo')!, ['--size', `nbd+unix:///disk?socket=${socket}`]);
  assert.equal(size.trim(), `${LENGTH_BYTES}`);
}

/** Nothing of it is left: no socket, no process, no lock. */
async function isFree(fleet: Fleet, alpha: FleetWorker, socket: string): Promise<void> {
  await fleet.until('nothing to be served', async () => {
    const { served } = await alpha.client.showVolume('disk');
    return served === null && !existsSync(socket) && alpha.shims().length === 0;
  });
}

test('a command that is killed leaves the export, which is shown, keeps others away, and ends by --stop', {
  skip,
}, async (t) => {
  const { fleet, alpha, socket } = await start(t);
  const words = ['volume', 'serve', 'disk', '--nbd', `unix:${socket}`];
  const serving = fleet.follow(...words);
  await serving.says('nbd+unix');
  serving.kill('SIGKILL');
  assert.equal((await serving.ended).exitCode, null);
  await isServed(socket);
  const { served } = await alpha.client.showVolume('disk');
  assert.match(served?.location ?? '', /nbd\+unix/);
  const shown = await fleet.run('volume', 'show', 'disk');
  assert.match(shown.stdout, /served +nbd\+unix:\S+ \(read-only\)/);
  await assert.rejects(alpha.client.destroyVolume('disk'), (error) =>
    isGodwitError(error, 'WORKER_VOLUME_SERVED'),
  );
  // The same again is refused, and ends nothing.
  const again = await fleet.run(...words);
  assert.match(again.stderr, /WORKER_VOLUME_SERVED/);
  await isServed(socket);
  const stop = await fleet.run('volume', 'serve', 'disk', '--stop');
  assert.equal(stop.exitCode, 0, stop.stderr);
  await isFree(fleet, alpha, socket);
});

test('a terminal that is closed ends what the command in it serves; one that detached, nothing', {
  skip,
}, async (t) => {
  const { fleet, alpha, socket } = await start(t);
  const words = ['volume', 'serve', 'disk', '--nbd', `unix:${socket}`];
  const terminal = new Terminal(t, fleet.command(...words));
  await terminal.says(/nbd\+unix/);
  await isServed(socket);
  terminal.close();
  await terminal.gone();
  await isFree(fleet, alpha, socket);

  const detached = await fleet.run(...words, '--detach');
  assert.equal(detached.exitCode, 0, detached.stderr);
  await isServed(socket);
  await alpha.client.stopServing('disk');
  await isFree(fleet, alpha, socket);
});

test('a worker that is killed, and a volume server, end nothing that is served; the command that waits ends it afterwards', {
  skip,
}, async (t) => {
  const { fleet, alpha, socket } = await start(t);
  const serving = fleet.follow('volume', 'serve', 'disk', '--nbd', `unix:${socket}`);
  await serving.says('nbd+unix');
  await alpha.kill();
  await isServed(socket);
  await alpha.start();
  await fleet.until('it to be shown', async () => (await alpha.client.showVolume('disk')).served !== null);
  await isServed(socket);

  const [shim] = alpha.shims();
  process.kill(shim!.state.volumeServer!.pid, 'SIGKILL');
  await fleet.until('another server to serve', async () => {
    await isServed(socket);
    return true;
  });
  serving.interrupt();
  assert.equal((await serving.ended).exitCode, 0);
  await isFree(fleet, alpha, socket);
});
