import assert from 'node:assert/strict';
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import type { HealthCheck, MachineConfig } from '../../src/contract/machine-config.ts';
import { isAlive } from '../../src/host/process-identity.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';

/** One machine, one volume, one worker that hangs: none of them holds up all the others. */

const MIB = 2 ** 20;

const BASE: Omit<MachineConfig, 'command' | 'volume'> = {
  env: {},
  restart: { policy: 'always', retriesMax: 10 },
  stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
  resources: {},
  network: 'host',
  metadata: {},
};

async function make(fleet: Fleet, name: string, script: string, change: Partial<MachineConfig> = {}) {
  const { client } = fleet.worker('a');
  const volume = await client.createVolume({
    name,
    lengthBytes: 64 * MIB,
    filesystem: 'ext4',
    encrypted: false,
  });
  const volumeOf = { volumeId: volume.id, mountPath: '/data' };
  const config: MachineConfig = { ...BASE, command: ['sh', '-c', script], volume: volumeOf, ...change };
  const machine = await client.createMachine({ name, start: true, config });
  await fleet.until(`${name} to have begun`, async () => {
    const { state } = await client.showMachine(name);
    return state === 'running' || state === 'restarting';
  });
  return machine;
}

/** In the superblock of its mounted filesystem, where the kernel has it: as if a later kernel had made it. */
function setUnknownFeature(worker: FleetWorker, machineId: string): void {
  const device = worker.shims().find(({ id }) => id === machineId)?.state.loopDevice;
  assert.ok(device);
  const fd = openSync(device, 'r+');
  const word = Buffer.alloc(4);
  readSync(fd, word, 0, 4, 1024 + 0x60);
  word.writeUInt32LE((word.readUInt32LE(0) | 0x4000_0000) >>> 0);
  writeSync(fd, word, 0, 4, 1024 + 0x60);
  fsyncSync(fd);
  closeSync(fd);
}

function killWorkload(worker: FleetWorker, machineId: string): void {
  const init = worker.shims().find(({ id }) => id === machineId)?.state.machineInit;
  if (init && isAlive(init)) process.kill(init.pid, 'SIGKILL');
}

test('a drain goes on past a stubborn machine, one that gets not healthy, one that crashes, one that the target cannot mount, a volume without machine and a worker that hangs', {
  skip: fleetNeeds,
}, async (t) => {
  let atTheEnd = () => {};
  // Before those of the fleet.
  t.after(() => atTheEnd());
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const [a, b, c] = [fleet.worker('a'), fleet.worker('b'), fleet.worker('c')];
  await a.client.createVolume({
    name: 'spare',
    lengthBytes: 16 * MIB,
    filesystem: 'ext4',
    encrypted: false,
  });
  await make(fleet, 'crashing', 'exit 3');
  const { id: stubborn } = await make(fleet, 'stubborn', 'trap "" TERM; while :; do sleep 1; done', {
    stop: { signal: 'SIGTERM', timeoutMs: 3_600_000 },
  });
  // A fleet that is given up in the middle does not wait for it for an hour.
  atTheEnd = () => killWorkload(a, stubborn);
  const health: HealthCheck = {
    kind: 'exec',
    command: ['test', '-e', '/tmp/ok'],
    intervalMs: 500,
    timeoutMs: 60_000,
    retries: 3,
    startPeriodMs: 3_600_000,
  };
  await make(
    fleet,
    'once',
    '[ -e /data/first ] || touch /tmp/ok; touch /data/first; sync; exec sleep infinity',
    { health },
  );
  await make(fleet, 'good', 'dd if=/dev/urandom of=/data/x bs=1M count=20; sync; exec sleep infinity');
  await fleet.until(
    'once to be healthy',
    async () => (await a.client.showMachine('once')).health.state === 'healthy',
  );
  const odd = await make(fleet, 'odd', 'exec sleep infinity');
  setUnknownFeature(a, odd.id);
  process.kill(c.pid, 'SIGSTOP');

  const dry = await fleet.run('drain', 'a', '--dry-run');
  assert.equal(dry.exitCode, 3, `${dry.stdout}${dry.stderr}`);
  const unmountable = /b cannot mount its volume: its kernel does not mount ext4 .*unknown bits 0x40000000/;
  assert.match(dry.stdout, unmountable);
  assert.match(dry.stdout, /volume spare stays: no machine has it/);
  for (const name of ['crashing', 'stubborn', 'once', 'good'])
    assert.match(dry.stdout, new RegExp(`${name} +b `), 'it can go to the worker that answers');

  const drain = await fleet.run('drain', 'a', '--wait', '1s');
  const said = `${drain.stdout}\n${drain.stderr}`;
  assert.equal(drain.exitCode, 3, said);
  process.kill(c.pid, 'SIGCONT');
  assert.match(drain.stdout, /^good: moved to b/m, said);
  assert.match(drain.stderr, /stubborn: stubborn is stopping: it has 3600 s from SIGTERM on/, said);
  assert.match(drain.stderr, unmountable, said);
  assert.deepEqual(await fleet.moves(a, odd.id), [], 'it was not stopped to find that out');
  assert.match(drain.stderr, /once: b boots the machine/, said);
  assert.match(
    drain.stderr,
    /crashing: it has moved to b, and was not healthy there: it ends whenever/,
    said,
  );
  assert.match(drain.stderr, /volume spare: no machine has it[\s\S]*next: godwit volume move spare/, said);
  const why = await fleet.run('why', 'a');
  assert.match(why.stdout, /the volume spare is here/, why.stderr);
  const { stderr: down } = await fleet.run('machine', 'list');
  assert.match(down, /2 machines are down because of godwit, (stubborn|once) for/);

  // A shim that hangs is one machine without an answer.
  const good = (await b.client.showMachine('good')).id;
  const shim = b.shims().find(({ id }) => id === good)!.state.shim.pid;
  process.kill(shim, 'SIGSTOP');
  const listed = await b.client.listMachines();
  const state = (name: string) => listed.find((machine) => machine.name === name)?.state;
  assert.deepEqual([state('good'), state('crashing') === 'silent'], ['silent', false]);
  await fleet.until(
    'why to say that the shim does not answer',
    async () => (await fleet.run('why', 'good')).stdout,
    { is: (text) => /its shim\) does not answer/.test(text) },
  );
  const metrics = async ({ url }: FleetWorker) => {
    const headers = { authorization: `Bearer ${fleet.token}` };
    return (await fetch(`${url}/metrics`, { headers })).text();
  };
  await fleet.until('the hung shim to be counted, by who does not wait for it', () => metrics(b), {
    is: (text) => /^godwit_machines\{state="silent"\} 1$/m.test(text),
  });
  const counted = await metrics(a);
  assert.match(counted, /^godwit_move_interruption_seconds_count\{phase="total"\} [1-9]/m, counted);
  assert.match(counted, /^godwit_peer_call_duration_seconds_count\{peer="b",question="handoff"\} [1-9]/m);
  assert.match(counted, /^godwit_runs_ended_total\{kind="migrate-out",state="done"\} [1-9]/m);
  assert.match(counted, /^godwit_drain_desired 1$/m);
  process.kill(shim, 'SIGCONT');
  await fleet.until('its answer', async () => (await b.client.showMachine('good')).state === 'running');

  // So is a volume server, whose shim is well: its machine waits, and only `why` can tell for what.
  const server = b.shims().find(({ id }) => id === good)!.state.volumeServer!.pid;
  process.kill(server, 'SIGSTOP');
  const hung = await fleet.run('why', 'good');
  assert.match(hung.stdout, new RegExp(`volume server of good does not answer.*pid ${server}.*SIGKILL`, 's'));
  process.kill(server, 'SIGKILL');
  await fleet.until(
    'another one to answer',
    async () => (await b.client.why('good')).conditions.length === 0,
  );

  // What cannot move for a reason that does not pass is told at once, and leaves nothing behind.
  const socket = `unix:${join(fleet.dir, 'spare.sock')}`;
  const served = await fleet.run('volume', 'serve', 'spare', '--nbd', socket, '--detach');
  assert.equal(served.exitCode, 0, served.stderr);
  const refused = await fleet.run('volume', 'move', 'spare', '--to', 'b');
  assert.deepEqual([refused.exitCode, /is served to other systems/.test(refused.stderr)], [3, true]);
  assert.equal((await a.client.showVolume('spare')).machineId, null);
  assert.equal((await fleet.run('volume', 'serve', 'spare', '--stop')).exitCode, 0);

  const moved = await fleet.run('volume', 'move', 'spare', '--to', 'b');
  assert.equal(moved.exitCode, 0, moved.stderr);
  const volumes = await b.client.listVolumes();
  assert.deepEqual(
    volumes.filter(({ name }) => name === 'spare').map((volume) => [volume.state, volume.machineId]),
    [['ready', null]],
  );
  assert.equal((await fleet.run('volume', 'show', 'spare')).exitCode, 0);
  await assert.rejects(a.client.showVolume('spare'), /knows nothing called spare/);

  // Its owner has the last word, wherever it is.
  await a.client.undrain();
  const [stopping] = (await a.client.listRuns({ state: 'unfinished', limit: 10 })).filter(
    ({ step }) => step === 'stop',
  );
  assert.equal((await fleet.run('runs', 'cancel', stopping!.id)).exitCode, 0);
  assert.equal((await a.ended(stopping!.id)).state, 'undone');
  const destroyed = await fleet.run('machine', 'destroy', 'stubborn', 'once', '--force', '--volume');
  assert.equal(destroyed.exitCode, 0, destroyed.stderr);
});
