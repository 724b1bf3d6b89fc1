import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { endShim, machineConfig, machineNeeds, runtimeFolder } from '../../test/support/machine.ts';
import { NotYet, patient, until } from '../../test/support/patience.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { Cgroup, readCgroupLayout } from '../host/cgroup.ts';
import { mountAt } from '../host/mount-table.ts';
import { identifyProcess, isAlive } from '../host/process-identity.ts';
import { mustRun } from '../host/program.ts';
import { cgroupName } from '../shim/cgroup-name.ts';
import { cleanUpAfterDeadShim } from '../shim/cleanup.ts';
import { findShim, ShimClient, startShim } from '../shim/client.ts';
import { SHIM_FILES } from '../shim/protocol.ts';
import { readShimState, writeShimState } from '../shim/state.ts';

const SLEEP = 'while :; do sleep 0.05; done';
const skip = machineNeeds;

function folder(t: TestContext): string {
  return join(
    runtimeFolder(t, (dir) => endShim(join(dir, 'm'))),
    'm',
  );
}

function machine(script: string, overrides = {}) {
  return { machineId: 'm_1', name: 'one', config: machineConfig(script, overrides) };
}

function start(runtimeDir: string): Promise<ShimClient> {
  return startShim({ runtimeDir, hidden: [], clock: systemClock });
}

/** Resolves when the machine has said that line so many times: what its script does before that is done. */
async function saysAgain(runtimeDir: string, line: string, times: number): Promise<void> {
  await until(`the machine to say ${line}`, () => {
    const log = readFileSync(join(runtimeDir, 'machine.log'), 'utf8');
    return log.split('\n').filter((said) => said === line).length >= times || new NotYet(log);
  });
}

function groupOf(runtimeDir: string): Cgroup {
  return new Cgroup(cgroupName(runtimeDir), { layout: readCgroupLayout(), clock: systemClock });
}

test('a shim runs a machine, tells its status and events, and leaves nothing', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  const states: string[] = [];
  client.onEvent((event, data) => {
    if (event === 'workload' && data !== null) states.push((data as { state: string }).state);
  });
  await client.call('workload.start', machine(`echo hello; ${SLEEP}`));
  const status = await client.call('status', {});
  assert.equal(status.workload?.state, 'running');
  assert.equal(status.volume, null);
  assert.equal(statSync(join(runtimeDir, 'shim.sock')).mode & 0o777, 0o600);
  assert.equal(statSync(join(runtimeDir, 'shim.json')).mode & 0o777, 0o600);
  await until('its init to be written down', () => readShimState(runtimeDir)?.machineInit?.pid, {
    is: (pid) => pid === status.workload?.pid,
  });
  assert.equal(
    (await client.call('workload.exec', { command: ['echo', 'x'], timeoutMs: patient(10_000) })).stdout,
    'x\n',
  );
  assert.ok((await client.call('workload.awaitHealthy', { timeoutMs: patient(1_000) })).healthyAtMs > 0);

  await client.call('shutdown', {});
  await until('the shim to end', () => identifyProcess(status.shimPid) === null);
  assert.ok(states.includes('running') && states.includes('stopped'), states.join());
  assert.equal(await findShim(runtimeDir), 'absent');
  for (const name of groupOf(runtimeDir).folders) assert.equal(existsSync(name), false, name);
  assert.match(readFileSync(join(runtimeDir, 'machine.log'), 'utf8'), /^hello$/m);
  // The connection may not have heard of its end yet; who asks again is told.
  const refusal = (): Promise<unknown> =>
    client.call('status', {}).then(
      () => null,
      (error: unknown) => error,
    );
  let error = await refusal();
  if (isGodwitError(error, 'RPC_CLOSED')) error = await refusal();
  assert.ok(isGodwitError(error, 'MACHINE_SHIM_GONE'), String(error));
});

test('wrong questions get typed errors', { skip }, async (t) => {
  const client = await start(folder(t));
  const refused = (op: never, args: object, code: string) =>
    assert.rejects(
      client.call(op, args as never, patient(20_000)),
      (error) => isGodwitError(error, code),
      code,
    );
  await refused('nonsense' as never, {}, 'RPC_UNKNOWN_OP');
  await refused('constructor' as never, {}, 'RPC_UNKNOWN_OP');
  await refused('volume.command' as never, { op: 'status', args: {} }, 'MACHINE_NO_VOLUME');
  await refused('fs.mount' as never, { filesystem: 'ext4' }, 'MACHINE_NO_VOLUME');
  await refused('workload.exec' as never, { command: ['x'], timeoutMs: 1 }, 'MACHINE_NOT_RUNNING');
  const withVolume = machine(SLEEP, { volume: { volumeId: 'v', mountPath: '/data' } });
  await refused('workload.start' as never, withVolume, 'MACHINE_FS_NOT_MOUNTED');
  const withSocket = machine(SLEEP, { volume: { volumeId: 'v', nbd: true } });
  await refused('workload.start' as never, withSocket, 'MACHINE_NO_VOLUME');
  await client.call('volume.close', {});
  await client.call('fs.unmount', {});
  await client.call('fs.sync', {});
  client.close();
});

/** Highest resident memory of a process since its start. */
function peakBytes(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

test('who sends a line without an end, half a line or rubbish, or asks and never reads, costs nobody anything', {
  skip,
}, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  await client.call('workload.start', machine(SLEEP));
  const { shimPid } = await client.call('status', {});
  const beforeBytes = peakBytes(shimPid);
  const sockets: Socket[] = [];
  t.after(() => {
    for (const socket of sockets) socket.destroy();
  });
  const peer = (bytes: string | Buffer): Socket => {
    const socket = connect(join(runtimeDir, 'shim.sock')).on('error', () => {});
    sockets.push(socket);
    socket.write(bytes);
    return socket;
  };
  for (let count = 0; count < 100; count++) peer('{"id":1,"op":"sta');
  peer(Buffer.alloc(1_000_000, 0xff).fill('\n', 500_000, 500_001)).resume();
  const endless = peer(Buffer.alloc(100 * 2 ** 20, 'x'));
  const questions = '{"id":1,"op":"status"}\n'.repeat(10_000);
  const deaf = peer(questions).pause();
  deaf.on('drain', () => deaf.write(questions));
  for (const [what, socket] of [
    ['endless', endless],
    ['deaf', deaf],
  ] as const)
    await until(`the ${what} one to be cut off`, () => socket.destroyed || socket.errored !== null);
  assert.equal((await client.call('status', {})).workload?.state, 'running');
  const grownBytes = peakBytes(shimPid) - beforeBytes;
  assert.ok(grownBytes < 128 * 2 ** 20, `${Math.round(grownBytes / 2 ** 20)} MiB more`);
  client.close();
});

test('the machine survives its worker, killed with all that it can take along', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const modules = new URL('../shim/', import.meta.url).href;
  const worker = spawn(
    process.execPath,
    [
      '--input-type=module',
      '-e',
      `const { startShim } = await import('${modules}client.ts');
       const { systemClock } = await import('${new URL('../base/clock.ts', import.meta.url).href}');
       const client = await startShim({ runtimeDir: ${JSON.stringify(runtimeDir)}, hidden: [], clock: systemClock });
       await client.call('workload.start', ${JSON.stringify(machine(`trap 'exit 5' TERM; echo up; ${SLEEP}`, { restart: { policy: 'always', retriesMax: 0 } }))});
       console.log('started');
       setInterval(() => {}, 1000);`,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'], detached: true },
  );
  await once(worker.stdout, 'data');
  process.kill(-worker.pid!, 'SIGKILL');
  await once(worker, 'exit');

  const client = await ShimClient.connect(runtimeDir, { clock: systemClock });
  const before = (await client.call('status', {})).workload!;
  assert.equal(before.state, 'running');
  await saysAgain(runtimeDir, 'up', 1);
  // The restart policy works without a worker: this client only watches.
  process.kill(before.pid!, 'SIGKILL');
  const workload = async () => (await client.call('status', {})).workload;
  await until('the restart', workload, {
    is: ({ restarts, state }) => restarts === 1 && state === 'running',
  });
  await saysAgain(runtimeDir, 'up', 2);
  const stopped = await client.call('workload.stop', {});
  assert.deepEqual([stopped.exitCode, stopped.killed], [5, false]);
  client.close();
});

test('a client connects again by itself; a second start takes the shim that runs', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const [one, two] = await Promise.all([start(runtimeDir), start(runtimeDir)]);
  const { shimPid } = await one.call('status', {});
  assert.equal((await two.call('status', {})).shimPid, shimPid);
  one.close();
  assert.equal((await one.call('status', {})).shimPid, shimPid);
  one.close();
  two.close();
});

test('SIGTERM is an orderly shutdown', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  await client.call('workload.start', machine(`trap 'echo bye; exit 0' TERM; echo up; ${SLEEP}`));
  await saysAgain(runtimeDir, 'up', 1);
  const { shimPid } = await client.call('status', {});
  process.kill(shimPid, 'SIGTERM');
  await until('the shim to end', () => identifyProcess(shimPid) === null);
  assert.match(readFileSync(join(runtimeDir, 'machine.log'), 'utf8'), /^bye$/m);
  assert.equal(await findShim(runtimeDir), 'absent');
  client.close();
});

test('a shim that cannot take its files away, as on a disk that has become read-only, ends all the same', {
  skip,
}, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  const { shimPid } = await client.call('status', {});
  // What unlink(2) refuses too. The connection that there is stays.
  const socket = join(runtimeDir, 'shim.sock');
  rmSync(socket);
  mkdirSync(socket);
  process.kill(shimPid, 'SIGTERM');
  await until('the shim to end', () => identifyProcess(shimPid) === null);
  rmdirSync(socket);
  client.close();
});

test('what a killed shim leaves is found and ended; a live one is left alone', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  await client.call(
    'workload.start',
    machine(`trap '' TERM; (trap '' TERM; ${SLEEP}) & ${SLEEP}`, { user: 'www-data' }),
  );
  const { shimPid, workload } = await client.call('status', {});
  await assert.rejects(cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger), (error) =>
    isGodwitError(error, 'MACHINE_SHIM_ALIVE'),
  );
  process.kill(shimPid, 'SIGKILL');
  await until('the shim to be dead', () => findShim(runtimeDir), { is: (found) => found === 'dead' });
  assert.ok(identifyProcess(workload!.pid!) !== null, 'the machine is still there');
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
  assert.equal(identifyProcess(workload!.pid!), null);
  for (const name of groupOf(runtimeDir).folders) assert.equal(existsSync(name), false, name);
  assert.equal(await findShim(runtimeDir), 'absent');
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
  client.close();
  // A new one starts where the old one was.
  const again = await start(runtimeDir);
  assert.notEqual((await again.call('status', {})).shimPid, shimPid);
  again.close();
});

test('a shim whose files somebody has removed is found again, with the machine that it runs', {
  skip,
}, async (t) => {
  const runtimeDir = folder(t);
  const client = await start(runtimeDir);
  await client.call('workload.start', machine(SLEEP));
  const before = await client.call('status', {});
  for (const name of [SHIM_FILES.socket, SHIM_FILES.state]) rmSync(join(runtimeDir, name));
  await assert.rejects(cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger), (error) =>
    isGodwitError(error, 'MACHINE_SHIM_ALIVE'),
  );
  const again = await start(runtimeDir);
  const { shimPid, workload } = await again.call('status', {});
  assert.equal(shimPid, before.shimPid);
  assert.equal(workload?.pid, before.workload?.pid);
  assert.equal(readShimState(runtimeDir)?.shim.pid, shimPid);
  assert.equal((await client.call('status', {})).shimPid, shimPid, 'who was connected still is');
  await again.call('shutdown', {});
  await until('the shim to end', () => identifyProcess(shimPid) === null);
  assert.equal(await findShim(runtimeDir), 'absent');
  client.close();
  again.close();
});

test('a jail that stands by ends with its shim, living or killed', { skip }, async (t) => {
  const runtimeDir = folder(t);
  const place = join(runtimeDir, 'fs');
  const volume = { volumeId: 'v_1', mountPath: '/data' };
  const client = await start(runtimeDir);
  await client.call('workload.prepare', machine(SLEEP, { volume }));
  const { shimPid, workload } = await client.call('status', {});
  assert.equal(workload, null);
  assert.equal(groupOf(runtimeDir).processes().length, 1);
  await assert.rejects(client.call('workload.start', machine(SLEEP, { volume })), (error) =>
    isGodwitError(error, 'MACHINE_FS_NOT_MOUNTED'),
  );
  process.kill(shimPid, 'SIGKILL');
  await until('the end of the jail', () => groupOf(runtimeDir).processes(), {
    is: ({ length }) => length === 0,
  });
  await until('the shim to be dead', () => findShim(runtimeDir), { is: (found) => found === 'dead' });
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
  assert.equal(mountAt(place), undefined);
  client.close();

  const again = await start(runtimeDir);
  await again.call('workload.prepare', machine(SLEEP, { volume }));
  await again.call('shutdown', {});
  again.close();
  assert.equal(mountAt(place), undefined);
  assert.equal(groupOf(runtimeDir).processes().length, 0);
  for (const name of groupOf(runtimeDir).folders) assert.equal(existsSync(name), false, name);
});

test('mounts of a dead shim are taken away too', { skip }, async (t) => {
  const runtimeDir = folder(t);
  for (const name of ['fs', 'fuse']) {
    mkdirSync(join(runtimeDir, name), { recursive: true });
    await mustRun('TEST', 'mount', ['-t', 'tmpfs', 'tmpfs', join(runtimeDir, name)], patient(10_000));
  }
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
  for (const name of ['fs', 'fuse']) assert.equal(mountAt(join(runtimeDir, name)), undefined);
});

test('a shim that cannot start says so', { skip }, async (t) => {
  const dir = runtimeFolder(t);
  await assert.rejects(start(join(dir, 'x'.repeat(120))), (error) =>
    isGodwitError(error, 'MACHINE_PATH_TOO_LONG'),
  );
});

test('shim.json: written and read, and a typed error for one that is broken', async (t) => {
  const dir = runtimeFolder(t);
  assert.equal(readShimState(dir), null);
  for (const left of ['', '\0\0\0\0']) {
    writeFileSync(join(dir, 'shim.json'), left);
    assert.equal(readShimState(dir), null, 'what a power cut leaves');
  }
  const state = {
    formatVersion: 1 as const,
    shim: identifyProcess(process.pid)!,
    volumeServer: null,
    loopDevice: null,
    filesystem: null,
    fuse: null,
    cgroupFolders: ['/x'],
    machineInit: null,
  };
  await writeShimState(dir, state);
  assert.deepEqual(readShimState(dir), state);
  assert.equal(isAlive(state.shim), true);
  assert.equal(isAlive({ ...state.shim, startTicks: 1 }), false);
  for (const text of ['{', '[]', '{"formatVersion":2}', '{"formatVersion":1,"shim":{"pid":"1"}}', 'null']) {
    writeFileSync(join(dir, 'shim.json'), text);
    assert.throws(
      () => readShimState(dir),
      (error) => isGodwitError(error, 'MACHINE_SHIM_STATE_CORRUPT'),
      text,
    );
  }
});
