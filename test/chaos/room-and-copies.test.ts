import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PeerClient } from '../../src/api/peer-client.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import type { MachineConfig } from '../../src/contract/machine-config.ts';
import type { ApiEvent } from '../../src/contract/schemas.ts';
import { isAlive } from '../../src/host/process-identity.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';

/*
 * Room that is promised to one is promised to nobody else, and comes back; what godwit has taken down says
 * so wherever one looks; and what moves leave of a volume is counted, limited, and goes.
 */

const MIB = 2 ** 20;
const NEEDS_BYTES = 60 * MIB;
/** For one of them. */
const MEMORY_BYTES = 100 * MIB;
const DATA_BYTES = 8 * MIB;
/** Of one volume on a worker (src/volume/retention.ts). */
const COPIES_MAX = 3;

const BASE: Omit<MachineConfig, 'command'> = {
  env: {},
  restart: { policy: 'always', retriesMax: 10 },
  stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
  resources: { memoryBytes: NEEDS_BYTES },
  network: 'host',
  metadata: {},
};

function make({ client }: FleetWorker, name: string, script: string, change: Partial<MachineConfig> = {}) {
  const config: MachineConfig = { ...BASE, command: ['sh', '-c', script], ...change };
  return client.createMachine({ name, start: true, config });
}

/** What a worker that is asked to take a machine without a volume has free. */
async function offerOf({ name, url, client }: FleetWorker) {
  const peer = new PeerClient({ name, url, transport: client, logger: silentLogger, clock: systemClock });
  const machine = {
    ...{ machineId: 'm_nobody', machineName: 'nobody', group: null, memoryBytes: 0, cpus: 0 },
    ...{ volumeLengthBytes: 0, volumeUsedBytes: 0 },
  };
  return peer.offer({ sourceWorker: 'somebody', machine, planned: [] });
}

test('room for one is given once and comes back with a cancel, what is down because of godwit says so, and copies are counted, limited and given up', {
  skip: fleetNeeds,
}, async (t) => {
  let atTheEnd = () => {};
  // Before those of the fleet.
  t.after(() => atTheEnd());
  const memory = ['--memory', String(MEMORY_BYTES)];
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    // What arrives at c is not whole before it was asked to move on.
    flags: { a: ['--disk', '2GiB'], b: memory, c: [...memory, '--hydration-rate', '64KiB'] },
  });
  const [a, b, c] = [fleet.worker('a'), fleet.worker('b'), fleet.worker('c')];
  const listening = new AbortController();
  t.after(() => listening.abort());
  const events = a.listen(listening.signal);
  await oneRoom(fleet, [a, b, c]);
  await downOfAMove(fleet, [a, c], events, (machineId) => {
    // A fleet that is given up in the middle does not wait for it for an hour.
    atTheEnd = () => {
      const init = a.shims().find(({ id }) => id === machineId)?.state.machineInit;
      if (init && isAlive(init)) process.kill(init.pid, 'SIGKILL');
    };
  });
  await manyCopies(fleet, [a, b, c]);
});

type Three = readonly [FleetWorker, FleetWorker, FleetWorker];
const noRoom = /memory: needs 60 MiB, has 40 MiB/;

/** Two at once to where there is room for one, named and not. */
async function oneRoom(fleet: Fleet, [a, b, c]: Three): Promise<void> {
  const ids = new Map<string, string>();
  for (const name of ['one', 'two', 'three', 'four'])
    ids.set(name, (await make(a, name, 'exec sleep infinity')).id);
  const namesOn = async ({ client }: FleetWorker) => (await client.listMachines()).map(({ name }) => name);

  const named = await Promise.all(['one', 'two'].map((name) => fleet.run('move', name, '--to', 'b')));
  assert.deepEqual(named.map(({ exitCode }) => exitCode).sort(), [0, 3], JSON.stringify(named));
  const loser = named.find(({ exitCode }) => exitCode === 3)!;
  assert.match(loser.stdout, noRoom);
  assert.equal((await namesOn(b)).length, 1);

  // One has room, and both of them ask for it.
  const free = await Promise.all(['three', 'four'].map((name) => fleet.run('move', name)));
  assert.deepEqual(free.map(({ exitCode }) => exitCode).sort(), [0, 3], JSON.stringify(free));
  assert.match(free.find(({ exitCode }) => exitCode === 3)!.stdout, noRoom);
  assert.equal((await namesOn(c)).length, 1);
  for (const worker of [b, c]) {
    const [name] = await namesOn(worker);
    await worker.client.destroyMachine(ids.get(name!)!, { force: true });
  }
}

/** A machine that does not stop is down in its move, which holds room at its target until it is called off. */
async function downOfAMove(
  fleet: Fleet,
  [a, c]: readonly [FleetWorker, FleetWorker],
  events: ApiEvent[],
  made: (machineId: string) => void,
): Promise<void> {
  const { id } = await make(a, 'stubborn', 'trap "" TERM; while :; do sleep 1; done', {
    stop: { signal: 'SIGTERM', timeoutMs: 3_600_000 },
  });
  made(id);
  const asked = await fleet.run('move', 'stubborn', '--to', 'c', '--detach');
  assert.equal(asked.exitCode, 0, asked.stderr);
  const about = (code: string) => events.find((event) => event.code === code && event.subject === id);
  const down = await fleet.until('it to be told that it is down', () => about('machine-down'));
  const { sinceMs, runId } = down.data as { sinceMs: number; runId: string };
  assert.match(down.message, /^down: it moves to c \(step \w+\)$/);
  assert.ok(down.data.down === true && sinceMs <= down.atMs, JSON.stringify(down));

  const said = /^1 machine is down because of godwit, stubborn for .*: it moves to c \(step stop\)$/m;
  const top = await fleet.run('top', '--once');
  assert.equal(top.exitCode, 0, top.stderr);
  assert.match(top.stdout, said);
  assert.match(top.stdout, /^stubborn +a +\w+ \(down .*\)/m);
  assert.match((await fleet.run('machine', 'list')).stderr, said);
  const machines = JSON.parse((await fleet.run('--json', 'top', '--once')).stdout).machines as {
    id: string;
    down?: { sinceMs: number };
  }[];
  assert.deepEqual(
    machines.flatMap((machine) => (machine.down ? [[machine.id, machine.down.sinceMs]] : [])),
    [[id, sinceMs]],
  );

  // Its room is promised, to whoever asks.
  const rest = MEMORY_BYTES - NEEDS_BYTES;
  assert.equal((await c.client.worker()).free.memoryBytes, rest);
  assert.equal((await offerOf(c)).freeMemoryBytes, rest);
  const [other] = (await a.client.listMachines()).filter((machine) => machine.id !== id);
  const refused = await fleet.run('move', other!.name, '--to', 'c');
  assert.deepEqual([refused.exitCode, noRoom.test(refused.stdout)], [3, true], refused.stdout);

  const cancelled = await fleet.run('runs', 'cancel', runId);
  assert.equal(cancelled.exitCode, 0, cancelled.stderr);
  assert.equal((await fleet.ended(a, c, runId)).state, 'undone');
  const up = await fleet.until('it to be told that it is up', () => about('machine-up'));
  const { forMs } = up.data as { forMs: number };
  assert.ok(up.data.down === false && forMs >= 0 && up.data.runId === runId, JSON.stringify(up));
  assert.doesNotMatch((await fleet.run('top', '--once')).stdout, /because of godwit/);
  assert.equal((await c.client.worker()).free.memoryBytes, MEMORY_BYTES);
  const moved = await fleet.run('move', other!.name, '--to', 'c');
  assert.equal(moved.exitCode, 0, moved.stdout);
  await c.client.destroyMachine(other!.id, { force: true });
  await a.client.destroyMachine(id, { force: true });
}

/** One volume goes to and fro. */
async function manyCopies(fleet: Fleet, [a, b, c]: Three): Promise<void> {
  const volume = await a.client.createVolume({
    ...{ name: 'data', lengthBytes: 64 * MIB, filesystem: 'ext4', encrypted: false },
  });
  const fill = `dd if=/dev/urandom of=/data/x bs=1M count=${DATA_BYTES / MIB}`;
  const { id } = await make(a, 'mover', `${fill}; sync; touch /data/done; exec sleep infinity`, {
    volume: { volumeId: volume.id, mountPath: '/data' },
    resources: {},
    restart: { policy: 'no', retriesMax: 0 },
  });
  await fleet.until('what it writes', async () => {
    const command = ['test', '-e', '/data/done'];
    return (await a.client.execInMachine(id, { command, timeoutMs: 60_000 })).exitCode === 0;
  });
  await a.client.stopMachine(id);
  const copiesOn = async ({ client }: FleetWorker) =>
    (await client.listVolumes()).filter((each) => each.id === volume.id && each.state === 'retained');
  const freeOn = async ({ client }: FleetWorker) => (await client.worker()).free.diskBytes;

  let at = a;
  for (let moves = 1; moves <= 2 * COPIES_MAX + 1; moves++) {
    const [source, target] = at === a ? [a, b] : [b, a];
    const { id: runId } = await source.client.moveMachine(id, { target: target.name });
    assert.equal((await fleet.ended(source, target, runId)).state, 'done');
    at = target;
    const copies = await copiesOn(source);
    const left = Math.min(Math.ceil(moves / 2), COPIES_MAX);
    assert.equal(copies.length, left, `${source.name} after ${moves} moves`);
    for (const { usedBytes, generation } of copies)
      assert.ok(usedBytes >= DATA_BYTES, `${usedBytes} of generation ${generation}`);
  }
  const listed = await fleet.run('volume', 'list', '--all');
  for (const { name } of [a, b]) {
    const rows = listed.stdout.match(new RegExp(`^data +\\S+ +${name} .*retained@`, 'gm')) ?? [];
    assert.equal(rows.length, COPIES_MAX, listed.stdout);
  }

  // The disk has them, and who asks for room hears that.
  const room = async () => [await freeOn(a), (await offerOf(a)).freeDiskBytes] as const;
  const before = await room();
  await a.client.destroyVolume(volume.id, { force: true, copies: true });
  assert.deepEqual(await copiesOn(a), []);
  const after = await room();
  for (const index of [0, 1] as const)
    assert.ok(
      after[index] - before[index] >= COPIES_MAX * DATA_BYTES,
      `${index}: ${JSON.stringify([before, after])}`,
    );

  // What still arrives does not go on, and says so at once.
  await b.client.moveMachine(id, { target: 'c' });
  await fleet.until('it to be at c', async () => (await fleet.owners(id))[0]?.name === 'c');
  const refused = await fleet.run('move', 'mover', '--to', 'a');
  assert.equal(refused.exitCode, 3, refused.stderr);
  assert.match(
    refused.stderr,
    /^error MIGRATION_NOT_MOVABLE: mover cannot move yet: its volume still arrives from the worker that it came from$/m,
  );
  assert.match(refused.stderr, /next: It goes by itself when its volume is whole\. `godwit why mover` says/);
  assert.deepEqual(await fleet.moves(c, id), []);
}
