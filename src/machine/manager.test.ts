import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { endShim, machineConfig, machineNeeds, runtimeFolder } from '../../test/support/machine.ts';
import { patient, until } from '../../test/support/patience.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import { identifyProcess } from '../host/process-identity.ts';
import { jailRuntime } from '../jail/runtime.ts';
import { localMachineHost, type MachineHost } from './machine-host.ts';
import { MachineManager, STOP_SLACK_MS, type VolumeProvider } from './manager.ts';
import { MachineStore } from './store.ts';

const SLEEP = 'while :; do sleep 0.05; done';
const skip = machineNeeds;

class TestVolumes implements VolumeProvider {
  readonly owners = new Map<string, string | null>();

  async attachSpec(): Promise<never> {
    throw new GodwitError('TEST_NO_ATTACH', 'no volumes here', { nextAction: '' });
  }
  async filesystem(volumeId: string) {
    if (!this.owners.has(volumeId)) throw new GodwitError('VOLUME_NOT_FOUND', volumeId, { nextAction: '' });
    return volumeId === 'v_raw' ? ('none' as const) : ('ext4' as const);
  }
  async assignMachine(volumeId: string, machineId: string | null) {
    const owner = this.owners.get(volumeId);
    if (owner && machineId && owner !== machineId)
      throw new GodwitError('VOLUME_IN_USE', volumeId, { nextAction: '' });
    this.owners.set(volumeId, machineId);
  }
}

async function fixture(t: TestContext) {
  const managers: MachineManager[] = [];
  const dir = runtimeFolder(t, async () => {
    for (const manager of managers) {
      for (const { id } of manager.records()) await endShim(manager.runtimeDir(id));
      manager.close();
    }
  });
  const volumes = new TestVolumes();
  const open = async (
    prepare: (store: MachineStore) => void = () => {},
    watch: (host: MachineHost) => MachineHost = (host) => host,
  ) => {
    const store = await MachineStore.open(dir);
    prepare(store);
    const manager = await MachineManager.open({
      store,
      volumes,
      runtimeRoot: join(dir, 'run'),
      hidden: [dir],
      host: watch(
        localMachineHost({
          clock: systemClock,
          logger: silentLogger,
          runtimes: { process: jailRuntime },
        }),
      ),
      clock: systemClock,
      random: systemRandom,
      logger: silentLogger,
    });
    managers.push(manager);
    return manager;
  };
  return { dir, volumes, open };
}

const refuses = (promise: Promise<unknown>, code: string) =>
  assert.rejects(promise, (error) => isGodwitError(error, code), code);

async function readAll(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  const all: Uint8Array[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all).toString();
}

test('a machine that is destroyed twice at once does not come back in between', { skip }, async (t) => {
  const { open, volumes } = await fixture(t);
  let onRemove = () => {};
  const manager = await open((store) => {
    const remove = store.remove.bind(store);
    store.remove = (id) => {
      onRemove();
      return remove(id);
    };
  });
  volumes.owners.set('v_1', null);
  const config = machineConfig('', { volume: { volumeId: 'v_1', mountPath: '/data' } });
  const { id } = await manager.create({ name: 'web', config });
  let second: Promise<void> | undefined;
  onRemove = () => {
    second = manager.destroy(id, { force: true });
    second.catch(() => {});
    // The volume is free, and somebody has a machine for it.
    volumes.owners.set('v_1', 'm_next');
  };
  await manager.destroy(id, { force: true });
  await refuses(second!, 'MACHINE_NOT_FOUND');
  assert.equal(volumes.owners.get('v_1'), 'm_next');
  assert.deepEqual((await open()).records(), []);
});

test('who cleans up after a dead shim does not meet the next one, which somebody else starts', {
  skip,
}, async (t) => {
  const { open } = await fixture(t);
  const log: string[] = [];
  const watched = (name: string, work: () => Promise<unknown>) => async () => {
    log.push(`${name} begins`);
    // Longer than all that could run into it.
    await systemClock.sleep(name === 'clean-up' ? 300 : 0);
    return work().finally(() => log.push(`${name} ends`));
  };
  const manager = await open(undefined, (host) => ({
    ...host,
    cleanUp: (folder) => watched('clean-up', () => host.cleanUp(folder))() as Promise<void>,
    start: (options) => watched('start', () => host.start(options))() as ReturnType<typeof host.start>,
  }));
  const { id } = await manager.create({ name: 'web', config: machineConfig(SLEEP) });
  const first = await manager.ensureShim(id);
  const { shimPid } = await first.call('status', {});
  log.length = 0;
  process.kill(shimPid, 'SIGKILL');
  await until('the end of the shim', () => identifyProcess(shimPid) === null);
  // The watch over machines, and steps of a move.
  const [recovery, client] = await Promise.all([
    manager.recoverOne(id),
    manager.ensureShim(id),
    manager.ensureShim(id),
  ]);
  assert.equal(recovery.error, null);
  for (let index = 0; index < log.length; index += 2)
    assert.equal(log[index]!.replace('begins', 'ends'), log[index + 1], log.join(', '));
  assert.equal(log.filter((line) => line === 'start begins').length, 1);
  const next = await client.call('status', {});
  assert.notEqual(next.shimPid, shimPid);
  assert.equal((await (await manager.client(id))?.call('status', {}))?.shimPid, next.shimPid);

  // A shutdown that sees none, since the next one is just coming up, ends that one.
  await manager.shutdownShim(id);
  const coming = manager.ensureShim(id);
  await manager.shutdownShim(id);
  await coming;
  assert.equal(await manager.client(id), null);
  assert.ok(log.filter((line) => line === 'start begins').length >= 2);
});

test('create, start, look, stop, start again, destroy', { skip }, async (t) => {
  const { open } = await fixture(t);
  const manager = await open();
  const record = await manager.create({ name: 'web', config: machineConfig(`echo up; ${SLEEP}`) });
  assert.match(record.id, /^m_[0-9a-z]{26}$/);
  await refuses(manager.create({ name: 'web', config: machineConfig('') }), 'MACHINE_NAME_TAKEN');
  await refuses(manager.show('nobody'), 'MACHINE_NOT_FOUND');
  await refuses(manager.exec('web', ['true'], 1_000), 'MACHINE_NOT_RUNNING');
  assert.deepEqual(await manager.show('web'), { record, shim: null });

  await manager.start('web');
  await manager.start(record.id);
  await manager.awaitHealthy('web', patient(10_000));
  const { shim, record: running } = await manager.show('web');
  assert.equal(running.desired, 'running');
  assert.equal(shim?.workload?.state, 'running');
  assert.equal((await manager.exec('web', ['hostname'], patient(10_000))).stdout, 'web\n');
  await refuses(manager.destroy('web'), 'MACHINE_RUNNING');
  await manager.restart('web');
  await until('it to say up again', () => readAll(manager.logs('web')), {
    is: (log) => log.match(/^up$/gm)?.length === 2,
  });
  assert.match(await readAll(manager.logs('web', { tailLines: 1 })), /up\n$/);

  await manager.stop('web');
  assert.equal((await manager.show('web')).shim?.workload?.state, 'stopped');
  await manager.release('web');
  assert.equal((await manager.show('web')).shim, null);
  assert.equal(identifyProcess(shim!.shimPid), null);
  await manager.destroy('web');
  assert.deepEqual(await manager.list(), []);
  assert.equal(existsSync(manager.runtimeDir(record.id)), false);
});

test('a volume belongs to one machine, and is free again after it', { skip }, async (t) => {
  const { open, volumes } = await fixture(t);
  volumes.owners.set('v_1', null).set('v_raw', null);
  const manager = await open();
  const using = (volumeId: string, mountPath = '/data') =>
    machineConfig(SLEEP, { volume: { volumeId, mountPath } });
  await refuses(manager.create({ name: 'a', config: using('v_none') }), 'VOLUME_NOT_FOUND');
  await refuses(manager.create({ name: 'a', config: using('v_raw') }), 'MACHINE_VOLUME_WITHOUT_FILESYSTEM');
  await refuses(manager.create({ name: 'a', config: using('v_1', '/proc') }), 'MACHINE_BAD_MOUNT_PATH');
  const { id } = await manager.create({ name: 'a', config: using('v_1') });
  assert.equal(volumes.owners.get('v_1'), id);
  await refuses(manager.create({ name: 'b', config: using('v_1') }), 'VOLUME_IN_USE');
  await refuses(manager.start('a'), 'TEST_NO_ATTACH');
  await manager.destroy('a');
  assert.equal(volumes.owners.get('v_1'), null);
});

test('a volume that is not mounted is had through a socket, and needs no filesystem', { skip }, async (t) => {
  const { dir, open, volumes } = await fixture(t);
  volumes.owners.set('v_raw', null);
  const manager = await open();
  const config = (volume: object) => machineConfig(SLEEP, { volume: { volumeId: 'v_raw', ...volume } });
  await refuses(manager.create({ name: 'a', config: config({}) }), 'MACHINE_VOLUME_OUT_OF_REACH');
  await refuses(manager.create({ name: 'a', config: config({ nbd: false }) }), 'MACHINE_VOLUME_OUT_OF_REACH');
  await refuses(
    manager.create({ name: 'a', config: config({ nbd: true, mountPath: '/data' }) }),
    'MACHINE_VOLUME_WITHOUT_FILESYSTEM',
  );
  await refuses(
    manager.create({ name: 'a', config: { ...config({ nbd: true }), user: 'nobody-here' } }),
    'MACHINE_UNKNOWN_USER',
  );
  await manager.create({ name: 'a', config: config({ nbd: true }) });
  await refuses(manager.start('a'), 'TEST_NO_ATTACH');

  const deep = await MachineManager.open({
    store: await MachineStore.open(join(dir, 'deep')),
    volumes,
    // Just short enough for the socket of the shim, and not for that of the volume.
    runtimeRoot: join(dir, 'x'.repeat(107 - dir.length - '//m_/shim.sock'.length - 26)),
    hidden: [],
    host: localMachineHost({
      clock: systemClock,
      logger: silentLogger,
      runtimes: { process: jailRuntime },
    }),
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  volumes.owners.set('v_raw', null);
  await refuses(deep.create({ name: 'b', config: config({ nbd: true }) }), 'MACHINE_PATH_TOO_LONG');
  assert.equal(volumes.owners.get('v_raw'), null);
  await deep.create({ name: 'b', config: machineConfig(SLEEP) });
});

test('a new worker finds what runs, starts what should run, leaves the rest', { skip }, async (t) => {
  const { dir, open } = await fixture(t);
  const first = await open();
  for (const name of ['found', 'dead', 'stopped', 'ending', 'moving', 'never']) {
    await first.create({ name, config: machineConfig(SLEEP) });
    if (name !== 'never') await first.start(name);
  }
  await first.stop('stopped');
  await first.release('stopped');
  // As far as a worker came that died in the middle of a stop.
  await first.update(first.get('ending').id, { desired: 'stopped' });
  const pids = new Map<string, number>();
  for (const { record, shim } of await first.list()) if (shim) pids.set(record.name, shim.shimPid);
  await first.update(first.get('moving').id, { claimedBy: 'run_1' });
  await refuses(first.stop('moving'), 'MACHINE_MOVING');
  await refuses(first.destroy('moving', { force: true }), 'MACHINE_MOVING');
  first.close();
  for (const name of ['dead', 'moving']) process.kill(pids.get(name)!, 'SIGKILL');
  await until('the two shims to end', () =>
    ['dead', 'moving'].every((name) => identifyProcess(pids.get(name)!) === null),
  );
  writeFileSync(join(dir, 'machines', 'm_broken.json'), '{');

  const second = await open();
  assert.deepEqual(
    second.broken.map(({ error }) => error.code),
    ['MACHINE_RECORD_CORRUPT'],
  );
  const outcomes = new Map(
    (await second.recover()).map(({ machineId, outcome }) => [second.get(machineId).name, outcome]),
  );
  assert.deepEqual(Object.fromEntries(outcomes), {
    found: 'found',
    dead: 'restarted',
    stopped: 'left',
    ending: 'left',
    moving: 'left',
    never: 'left',
  });
  assert.equal((await second.show('found')).shim?.shimPid, pids.get('found'));
  assert.equal((await second.show('dead')).shim?.workload?.state, 'running');
  assert.equal((await second.show('ending')).shim?.workload?.state, 'stopped', 'what was begun is ended');
  assert.equal((await second.show('never')).shim, null);
  await second.update(second.get('moving').id, { claimedBy: null });
  await second.destroy('moving', { force: true });
});

test('a restart that fails between its stop and its start leaves the machine wanted, and what keeps it is tried again', {
  skip,
}, async (t) => {
  const { dir, open } = await fixture(t);
  const manager = await open();
  const shown = join(dir, 'shown');
  mkdirSync(shown);
  const config = machineConfig(SLEEP);
  const { id } = await manager.create({
    name: 'web',
    config: { ...config, hostFolders: [...config.hostFolders!, shown] },
  });
  await manager.start(id);
  assert.equal(manager.beginning(id), null);
  rmdirSync(shown);
  let stopped = 0;
  await refuses(
    manager.restart(id, () => stopped++),
    'MACHINE_BAD_HOST_FOLDER',
  );
  assert.deepEqual([stopped, manager.get(id).desired, manager.beginning(id)], [1, 'running', null]);
  mkdirSync(shown);
  assert.equal((await manager.recoverOne(id)).outcome, 'restarted');
  assert.equal((await manager.show(id)).shim?.workload?.state, 'running');
});

test('a machine taken in by a move, and forgotten after one', { skip }, async (t) => {
  const { open } = await fixture(t);
  const manager = await open();
  const record = {
    formatVersion: 1 as const,
    id: 'm_01jd0000000000000000000000',
    name: 'moved',
    config: machineConfig(SLEEP),
    desired: 'running' as const,
    createdAtMs: 1,
    claimedBy: null,
  };
  await manager.adopt(record);
  await manager.adopt(record);
  await refuses(manager.adopt({ ...record, id: 'm_01jd0000000000000000000001' }), 'MACHINE_NAME_TAKEN');
  await manager.start('moved');
  await manager.shutdownShim(record.id);
  await manager.forget(record.id);
  await manager.forget(record.id);
  assert.deepEqual(manager.records(), []);
});

/** Ignores its stop signal, and says when it does. */
const DEAF = `trap 'echo asked' TERM; echo deaf; ${SLEEP}`;

test('a stop signal that does not exist is refused; a machine that has one since before can be stopped all the same', {
  skip,
}, async (t) => {
  const { dir, open } = await fixture(t);
  const first = await open();
  const bad = machineConfig(DEAF, { stop: { signal: 'SIGNOPE', timeoutMs: patient(2_000) } });
  await refuses(first.create({ name: 'bad', config: bad }), 'MACHINE_BAD_SIGNAL');
  const { id } = await first.create({ name: 'old', config: machineConfig(DEAF) });
  first.close();
  // As a version wrote it that did not look.
  const store = await MachineStore.open(dir);
  const { machines } = await store.load();
  await store.write({ ...machines[0]!, config: bad });

  const manager = await open();
  await manager.start('old');
  await until('the machine', async () => (await readAll(manager.logs(id))).includes('deaf'));
  await manager.stop('old');
  assert.equal((await manager.show(id)).shim?.workload?.state, 'stopped');
  assert.match(await readAll(manager.logs(id)), /asked[\s\S]*killed, since it did not end within \d+ ms/);
  await manager.destroy('old');
});

test('a forced destruction does not wait for a stop that gives the machine its time', { skip }, async (t) => {
  const { open } = await fixture(t);
  const manager = await open();
  const config = machineConfig(DEAF, { stop: { signal: 'SIGTERM', timeoutMs: 3_600_000 } });
  const { id } = await manager.create({ name: 'stubborn', config });
  await manager.start(id);
  await until('the machine', async () => (await readAll(manager.logs(id))).includes('deaf'));
  const stopping = manager.stop(id);
  await until('the signal', async () => (await readAll(manager.logs(id))).includes('asked'));
  await manager.destroy(id, { force: true });
  await stopping;
  assert.deepEqual(manager.records(), []);
});

test('a worker that ends in good order in the middle of a stop leaves shim and volume to the next one, which goes on with it and says so', {
  skip,
}, async (t) => {
  const { open } = await fixture(t);
  const first = await open();
  const config = machineConfig(DEAF, { stop: { signal: 'SIGTERM', timeoutMs: 3_600_000 } });
  const { id } = await first.create({ name: 'stubborn', config });
  await first.start(id);
  await until('the machine', async () => (await readAll(first.logs(id))).includes('deaf'));
  assert.equal(first.endingSinceMs(id), null);
  const stopping = first.stop(id);
  await until('the signal', async () => (await readAll(first.logs(id))).includes('asked'));
  assert.notEqual(first.endingSinceMs(id), null);
  first.close();
  await refuses(stopping, 'RPC_CLOSED');

  const second = await open();
  assert.equal((await second.show(id)).shim?.workload?.state, 'running');
  const recovering = second.recover();
  await until('the stop to go on', () => second.endingSinceMs(id) !== null);
  await second.destroy(id, { force: true });
  assert.deepEqual(
    (await recovering).map(({ outcome, error }) => [outcome, error]),
    [['left', null]],
  );
});

test('a machine whose shim has died or hangs is stopped by its worker, with all that it holds', {
  skip,
}, async (t) => {
  const { open } = await fixture(t);
  const manager = await open();
  for (const how of ['SIGKILL', 'SIGSTOP'] as const) {
    const config = machineConfig(`echo up; ${SLEEP}`, { stop: { signal: 'SIGTERM', timeoutMs: 100 } });
    const { id } = await manager.create({ name: 'web', config });
    await manager.start(id);
    const { shim } = await manager.show(id);
    const inside = identifyProcess(shim!.workload!.pid!);
    process.kill(shim!.shimPid, how);
    if (how === 'SIGKILL') await until('the end of the shim', () => identifyProcess(shim!.shimPid) === null);
    await manager.stopWorkload(id, { timeoutMs: how === 'SIGSTOP' ? -STOP_SLACK_MS + 500 : 100 });
    assert.notDeepEqual(identifyProcess(shim!.workload!.pid!), inside, how);
    assert.equal((await manager.show(id)).shim, null);
    await manager.destroy(id);
  }
});
