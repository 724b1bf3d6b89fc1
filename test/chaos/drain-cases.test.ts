import assert from 'node:assert/strict';
import test from 'node:test';
import { GodwitError } from '../../src/base/errors.ts';
import type { DrainStatus } from '../../src/contract/schemas.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { WriterCollector } from '../support/writer-collector.ts';

/** Drains that cannot simply go on, with real workers and machines that write all the time. */

const MIB = 2 ** 20;

async function drainState(
  fleet: Fleet,
  worker: FleetWorker,
  state: DrainStatus['state'],
): Promise<DrainStatus> {
  return fleet.until(`${worker.name} to be ${state}`, async () => {
    const status = await worker.client.drainStatus();
    return status.state === state ? status : null;
  });
}

/** Moves that ended well, over all workers. */
async function movesDone(fleet: Fleet, machineId: string): Promise<number> {
  const all = await Promise.all(fleet.workers.map((worker) => fleet.moves(worker, machineId)));
  return all.flat().filter(({ state }) => state === 'done').length;
}

async function ownerNames(fleet: Fleet, machineIds: readonly string[]): Promise<string[]> {
  const owners = await Promise.all(machineIds.map((id) => fleet.owners(id)));
  return owners.map((workers) => workers.map(({ name }) => name).join('+'));
}

test('nobody has room: the machine stays and runs, everybody says why, and it goes by itself when there is room', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    flags: { b: ['--memory', '300MiB'], c: ['--disk', '256MiB'] },
  });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const machine = await fleet.writerMachine(a, collector, {
    name: 'writer',
    config: { resources: { memoryBytes: 256 * MIB } },
  });
  const history = collector.history('writer');
  await b.client.createMachine({
    name: 'tenant',
    start: true,
    config: {
      command: ['sleep', 'infinity'],
      env: {},
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
      resources: { memoryBytes: 200 * MIB },
      network: 'host',
      metadata: {},
    },
  });
  const reason = /b memory: needs 256 MiB, has 100 MiB.*c disk: needs \d+ MiB, has 0 MiB/;

  const dry = await fleet.run('drain', 'a', '--dry-run');
  assert.equal(dry.exitCode, 3, dry.stderr);
  const drain = await fleet.run('drain', 'a', '--wait', '1s');
  assert.equal(drain.exitCode, 3, `${drain.stdout}${drain.stderr}`);
  assert.match(drain.stderr, reason);
  assert.match(drain.stderr, /next: Make room/);
  const { machines } = await drainState(fleet, a, 'waiting');
  assert.deepEqual(
    machines.map(({ name, state, runId }) => [name, state, runId]),
    [['writer', 'waiting', null]],
  );
  assert.match(machines[0]?.reason ?? '', reason);
  for (const ref of [machine.id, 'a']) {
    const { conditions } = await a.client.why(ref);
    assert.match(conditions.map(({ message }) => message).join(), reason);
    assert.ok(conditions.every(({ nextAction }) => nextAction !== ''));
  }
  const why = await fleet.run('why', 'writer');
  assert.equal(why.exitCode, 0, why.stderr);
  assert.match(why.stdout, reason);
  assert.equal((await a.client.showMachine(machine.id)).state, 'running');
  assert.deepEqual(await fleet.moves(a, machine.id), [], 'nothing was begun');
  await history.more(5);
  assert.equal(history.incarnations.length, 1);

  await b.client.destroyMachine('tenant', { force: true });
  await drainState(fleet, a, 'drained');
  assert.deepEqual(await ownerNames(fleet, [machine.id]), ['b']);
  await history.incarnation(1);
  history.assertSound();
});

test('two drains at once, one of them asked for twice: everything ends at the third worker, and no machine goes to and fro', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const ids: string[] = [];
  for (const [name, worker] of [
    ['one', a],
    ['two', a],
    ['three', b],
  ] as const) {
    ids.push((await fleet.writerMachine(worker, collector, { name })).id);
  }
  const [first] = await Promise.all([a.client.drain(), b.client.drain()]);
  const again = await a.client.drain();
  assert.equal(again.sinceMs, first.sinceMs, 'the second request adds nothing');
  await Promise.all([drainState(fleet, a, 'drained'), drainState(fleet, b, 'drained')]);
  assert.deepEqual(await ownerNames(fleet, ids), ['c', 'c', 'c']);
  for (const id of ids) {
    // One that left before the other worker knew of its own drain may have gone by way of it.
    const moves = await movesDone(fleet, id);
    assert.ok(moves >= 1 && moves <= 2, `${moves} moves`);
  }
  for (const name of ['one', 'two', 'three']) {
    await collector.history(name).more(3);
    collector.history(name).assertSound();
  }
  const drained = await a.client.drain();
  assert.deepEqual([drained.state, drained.sinceMs], ['drained', first.sinceMs]);

  // The last worker that takes machines: where should they go?
  const last = await fleet.run('drain', 'c', '--wait', '1s', '--json');
  assert.equal(last.exitCode, 3, last.stderr);
  const status = JSON.parse(last.stdout) as DrainStatus;
  assert.equal(status.state, 'waiting');
  for (const machine of status.machines) {
    assert.equal(machine.state, 'waiting');
    assert.match(machine.reason ?? '', /a is draining.*b is draining/);
    assert.match(machine.nextAction ?? '', /godwit undrain/);
  }
  await fleet.run('undrain', 'c');
  assert.equal((await fleet.worker('c').client.drainStatus()).desired, false);
  assert.deepEqual(await ownerNames(fleet, ids), ['c', 'c', 'c']);
});

test('a worker without others: a drain and a move say that there is nowhere to go', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['only']);
  const only = fleet.worker('only');
  const machine = await fleet.writerMachine(only, collector, { name: 'writer' });
  const drain = await fleet.run('drain', 'only', '--wait', '1s');
  assert.equal(drain.exitCode, 3, drain.stderr);
  assert.match(drain.stderr, /there is no other worker/);
  await only.client.undrain();
  const run = await only.ended((await only.client.moveMachine(machine.id, { target: null })).id);
  assert.deepEqual([run.state, run.error?.code], ['undone', 'MIGRATION_NO_CAPACITY']);
  await collector.history('writer').more(3);
  assert.equal(collector.history('writer').incarnations.length, 1, 'it was never stopped');
});

test('wrong input: each is refused with a code and a next action, and nothing is left of it', {
  skip: fleetNeeds,
}, async (t) => {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['a', 'b']);
  const a = fleet.worker('a');
  const machine = await fleet.writerMachine(a, collector, { name: 'writer' });
  const volume = await a.client.createVolume({
    name: 'free',
    lengthBytes: 64 * MIB,
    filesystem: 'ext4',
    encrypted: false,
  });
  const refused = async (call: Promise<unknown>, code: string) => {
    const error = await call.then(
      () => assert.fail(`no ${code}`),
      (reason: unknown) => reason,
    );
    assert.ok(error instanceof GodwitError, String(error));
    assert.equal(error.code, code, error.message);
    assert.notEqual(error.nextAction, '');
  };
  const create = (name: string, change: Partial<typeof machine.config>) =>
    a.client.createMachine({
      name,
      start: true,
      config: {
        command: ['sleep', 'infinity'],
        env: {},
        restart: { policy: 'no', retriesMax: 0 },
        stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
        resources: {},
        network: 'host',
        metadata: {},
        ...change,
      },
    });

  const { client } = a;
  await refused(client.showMachine('nobody'), 'MACHINE_NOT_FOUND');
  await refused(client.moveMachine('nobody', { target: null }), 'MACHINE_NOT_FOUND');
  await refused(client.moveMachine('writer', { target: 'nowhere' }), 'WORKER_PEER_NOT_FOUND');
  await refused(client.moveMachine('writer', { target: 'a' }), 'WORKER_MOVE_TO_ITSELF');
  await refused(client.showRun('r_none'), 'JOURNAL_UNKNOWN_RUN');
  await refused(client.cancelRun('r_none'), 'JOURNAL_UNKNOWN_RUN');
  await refused(client.showVolume('none'), 'WORKER_NOT_FOUND');
  await refused(client.why('nobody'), 'WORKER_NOT_FOUND');
  await refused(client.destroyVolume(machine.volumeId!), 'WORKER_VOLUME_HELD');
  await refused(client.destroyMachine('writer', { force: false }), 'MACHINE_RUNNING');
  await refused(create('writer', {}), 'MACHINE_NAME_TAKEN');
  await refused(create('x', { volume: { volumeId: 'v_none', mountPath: '/data' } }), 'VOLUME_NOT_FOUND');
  await refused(
    create('x', { volume: { volumeId: volume.id, mountPath: '/proc' } }),
    'MACHINE_BAD_MOUNT_PATH',
  );
  await refused(create('x', { command: [] }), 'API_INVALID_REQUEST');
  await refused(create('Not a name', {}), 'API_INVALID_REQUEST');
  await refused(create('x', { user: 'no-such-user' }), 'MACHINE_UNKNOWN_USER');
  await refused(create('x', { hostFolders: ['/no/such/folder'] }), 'MACHINE_BAD_HOST_FOLDER');
  await refused(create('x', { devices: ['/dev/no-such-device'] }), 'MACHINE_BAD_DEVICE');
  await refused(create('x', { volume: { volumeId: volume.id } }), 'MACHINE_VOLUME_OUT_OF_REACH');
  await refused(client.showMachine('x'), 'MACHINE_NOT_FOUND');

  // Known only once it runs, so the machine stays, stopped, and can be destroyed.
  await create('empty', { command: ['/no/such/program'] });
  await fleet.until('the end', async () => (await client.showMachine('empty')).state === 'failed');
  const why = await client.why('empty');
  assert.match(why.conditions.map(({ nextAction }) => nextAction).join(), /godwit machine logs empty/);
  await client.destroyMachine('empty', { force: true });
  await client.destroyVolume(volume.id);
  assert.deepEqual(
    a.shims().map(({ id }) => id),
    [machine.id],
  );

  for (const [words, exitCode] of [
    [['drain', 'nowhere'], 5],
    [['why', 'nobody'], 5],
    [['move', 'nobody'], 5],
    [['machine', 'show', 'nobody'], 5],
    [['drain', 'a', '--wait', 'soon'], 2],
    [['drain', 'a', '--to', 'nowhere'], 5],
    [['drain', 'a', '--to', 'nowhere', '--dry-run'], 5],
    [['drain', 'a', '--to', 'a'], 6],
    [['move', 'writer', '--to', 'nowhere'], 5],
  ] as const) {
    const { exitCode: got, stderr } = await fleet.run(...words);
    assert.equal(got, exitCode, `${words.join(' ')}: ${stderr}`);
    assert.match(stderr, /next: /, words.join(' '));
  }
  await client.undrain();
  await collector.history('writer').more(3);
  assert.equal(collector.history('writer').incarnations.length, 1);
  collector.history('writer').assertSound();
});
