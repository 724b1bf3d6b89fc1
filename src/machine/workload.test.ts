import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { machineConfig, machineNeeds, testWorkload } from '../../test/support/machine.ts';
import { patient, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { mountAt, readMountTable } from '../host/mount-table.ts';
import { mustRun } from '../host/program.ts';
import { Filesystem } from '../shim/filesystem.ts';
import { cutForJson, type Workload } from './workload.ts';

const SLEEP = 'while :; do sleep 0.05; done';
const skip = machineNeeds;

function start(workload: Workload, config: ReturnType<typeof machineConfig>) {
  return workload.start({ machineId: 'm_1', name: 'Test One', config });
}

async function run(workload: Workload, script: string) {
  return workload.exec(['sh', '-c', script], patient(20_000));
}

function logOf(runtimeDir: string): string {
  const path = join(runtimeDir, 'machine.log');
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

/** Resolves when the machine has said so many whole lines: what its script does before them is done. */
async function hasSaid(runtimeDir: string, lines: number): Promise<void> {
  const log = () => logOf(runtimeDir);
  await until(`${lines} lines of the machine`, log, { is: (text) => text.split('\n').length > lines });
}

test('a machine has namespaces, a host name and a process tree of its own', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  await start(workload, machineConfig(SLEEP, { network: 'none' }));
  const pid = workload.initPid!;
  // What makes the jail executes env, which executes tini.
  await until('init', () => readFileSync(`/proc/${pid}/comm`, 'utf8'), { is: (name) => name === 'tini\n' });
  for (const kind of ['mnt', 'pid', 'uts', 'ipc', 'net']) {
    assert.notEqual(readlinkSync(`/proc/${pid}/ns/${kind}`), readlinkSync(`/proc/self/ns/${kind}`), kind);
  }
  const seen = await run(
    workload,
    'hostname; cat /proc/1/comm; ls /sys/class/net; cat /sys/class/net/lo/operstate; ls /proc | grep -c "^[0-9]"',
  );
  const [name, init, net, , processes] = seen.stdout.split('\n');
  assert.deepEqual([name, init, net], ['test-one', 'tini', 'lo']);
  assert.ok(Number(processes) < 10, seen.stdout);
  assert.notEqual(hostname(), 'test-one');
  assert.equal((await run(workload, 'ip link show lo')).stdout.includes('UP'), true);
});

test('nothing that it writes outside its volume reaches the host, and the volume does', {
  skip,
}, async (t) => {
  const { workload, runtimeDir } = testWorkload(t, ['/var/lib/dpkg']);
  mkdirSync(join(runtimeDir, 'fs'));
  writeFileSync(join(runtimeDir, 'fs', 'from-host'), 'hello');
  const mark = `godwit-test-${process.pid}`;
  const volume = { volumeId: 'v_1', mountPath: `/var/lib/${mark}/data dir` };
  await start(workload, machineConfig(SLEEP, { volume, hostFolders: [] }));
  const seen = await run(
    workload,
    `cat "${volume.mountPath}/from-host"; echo back > "${volume.mountPath}/from-machine"
     for d in /etc /usr /tmp /run /root /dev/shm; do echo x > $d/${mark} || echo no $d; done
     rm -rf /usr/share/doc; ls /tmp /run | grep -v ${mark}; echo hidden: $(ls /var/lib/dpkg | wc -l)
     touch /sys/x 2>/dev/null && echo sys-writable; mknod /tmp/disk b 8 0 2>/dev/null && echo mknod`,
  );
  assert.equal(seen.stdout, 'hello/run:\n\n/tmp:\nhidden: 0\n');
  assert.equal(readFileSync(join(runtimeDir, 'fs', 'from-machine'), 'utf8'), 'back\n');
  for (const dir of ['/etc', '/usr', '/tmp', '/run', '/root', '/dev/shm', '/var/lib']) {
    assert.equal(existsSync(join(dir, mark)), false, dir);
  }
  assert.ok(existsSync('/usr/share/doc'));
  await workload.stop();
  await start(workload, machineConfig(SLEEP, { volume }));
  assert.equal(
    (await run(workload, `ls /etc/${mark}`)).exitCode,
    2,
    'the throw-away root is new after a stop',
  );
  assert.equal((await run(workload, `cat "${volume.mountPath}/from-machine"`)).stdout, 'back\n');
});

test('a machine sees the devices that it was given, as they are on the host', {
  skip: skip || requires('/dev/loop-control', '/dev/net/tun'),
}, async (t) => {
  const { workload } = testWorkload(t);
  await start(workload, machineConfig(SLEEP, { devices: ['/dev/net/tun'] }));
  const stat = "stat -c '%F %t:%T %a %u %g' /dev/net/tun";
  const seen = await run(
    workload,
    `${stat}; (: <>/dev/net/tun) && echo opens; ls /dev/loop-control 2>/dev/null`,
  );
  assert.equal(seen.stdout, `${execFileSync('sh', ['-c', stat])}opens\n`);
});

test('a machine keeps no copy of the mounts of its host', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  const other = join(runtimeDir, 'other');
  mkdirSync(other);
  await mustRun('TEST', 'mount', ['-t', 'tmpfs', 'tmpfs', other], patient(10_000));
  await start(workload, machineConfig(SLEEP));
  const mounts = readFileSync(`/proc/${workload.initPid}/mountinfo`, 'utf8');
  assert.ok(!mounts.includes(other), mounts);
  assert.equal(mountAt(join(runtimeDir, 'jail')), undefined, 'and the host none of its own');
  assert.ok(readMountTable().length > 0);
});

test('environment, user and working directory, for the command and for exec', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  process.env.GODWIT_TEST_LEAK = 'x';
  t.after(() => delete process.env.GODWIT_TEST_LEAK);
  const script = `id -un; id -gn; pwd; echo "$GREETING"; env | grep -c LEAK; ${SLEEP}`;
  const overrides = { env: { GREETING: 'a "b"\n $c' }, user: 'www-data', workingDirectory: '/usr/share' };
  await start(workload, machineConfig(script, overrides));
  await hasSaid(runtimeDir, 6);
  assert.equal(logOf(runtimeDir), 'www-data\nwww-data\n/usr/share\na "b"\n $c\n0\n');
  const seen = await run(
    workload,
    'id -un; pwd; echo "$GREETING"; grep CapBnd /proc/self/status; cat /proc/self/cgroup',
  );
  assert.ok(seen.stdout.startsWith('www-data\n/usr/share\na "b"\n $c\nCapBnd:'), seen.stdout);
  assert.ok(!seen.stdout.includes('ffffffffff'));
  assert.ok(seen.stdout.includes(workload.cgroup.name));
});

test('exec tells exit code and both outputs, cuts them, and ends at its timeout', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  await assert.rejects(run(workload, 'true'), (error) => isGodwitError(error, 'MACHINE_NOT_RUNNING'));
  await start(workload, machineConfig(SLEEP));
  assert.deepEqual(await run(workload, 'echo out; echo err >&2; exit 7'), {
    exitCode: 7,
    stdout: 'out\n',
    stderr: 'err\n',
    timedOut: false,
  });
  assert.equal((await run(workload, 'head -c 5000000 /dev/zero')).stdout.length < 400_000, true);
  assert.equal((await run(workload, 'yes | head -c 5000000')).stdout.length <= 1024 * 1024, true);
  const late = await workload.exec(['sh', '-c', 'echo begun; sleep 1000'], patient(300));
  assert.deepEqual([late.timedOut, late.stdout], [true, 'begun\n']);
  await until(
    'what ran to end',
    async () => (await run(workload, 'pgrep -f "sleep 1000" | wc -l')).stdout.trim() !== '2',
  );
  assert.equal((await workload.exec(['no-such-program'], patient(5_000))).exitCode, 127);
});

test('a stop is the signal that was configured, and the exit code is kept', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  const config = machineConfig(`trap 'exit 42' USR1; echo up; ${SLEEP}`, {
    stop: { signal: 'SIGUSR1', timeoutMs: patient(20_000) },
  });
  await start(workload, config);
  await hasSaid(runtimeDir, 1);
  const { durationMs: _, ...stopped } = await workload.stop();
  assert.deepEqual(stopped, { exitCode: 42, signal: null, killed: false });
  assert.equal(workload.status?.state, 'stopped');
  assert.equal((await workload.stop()).killed, false, 'a second stop has nothing to do');
  await assert.rejects(workload.stop({ signal: 'SIGNOPE' }), (error) =>
    isGodwitError(error, 'MACHINE_BAD_SIGNAL'),
  );
});

test('a stop that comes as soon as the machine is started ends its command', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  const config = machineConfig('exec sleep 600', { stop: { signal: 'SIGTERM', timeoutMs: patient(2_000) } });
  for (let round = 0; round < 5; round++) {
    await start(workload, config);
    assert.equal((await workload.stop()).killed, false, `round ${round}`);
  }
});

test('what does not end in time is killed with all of its children', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  const stubborn = `trap '' TERM; setsid sh -c "trap '' TERM; echo child; ${SLEEP}" & echo parent; ${SLEEP}`;
  await start(workload, machineConfig(stubborn));
  await hasSaid(runtimeDir, 2);
  assert.ok(workload.cgroup.processes().length >= 3);
  const stopped = await workload.stop({ timeoutMs: 50 });
  assert.equal(stopped.killed, true);
  assert.deepEqual(workload.cgroup.processes(), []);
  await workload.close();
  for (const folder of workload.cgroup.folders) assert.equal(existsSync(folder), false, folder);
});

test('start is idempotent; another machine is refused', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  const [first, second] = await Promise.all([
    start(workload, machineConfig(SLEEP)),
    start(workload, machineConfig(SLEEP)),
  ]);
  assert.deepEqual(first, second);
  await assert.rejects(
    workload.start({ machineId: 'm_2', name: 'x', config: machineConfig(SLEEP) }),
    (error) => isGodwitError(error, 'MACHINE_SHIM_BUSY'),
  );
});

test('restart policy: on-failure starts again and gives up; the log tells', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  await start(
    workload,
    machineConfig('echo try; exit 3', { restart: { policy: 'on-failure', retriesMax: 2 } }),
  );
  await until('it to give up', () => workload.status, { is: ({ state }) => state === 'failed' });
  assert.equal(workload.status?.restarts, 2);
  assert.equal(workload.status?.exitCode, 3);
  assert.equal(logOf(runtimeDir).match(/^try$/gm)?.length, 3);
  assert.match(logOf(runtimeDir), /ended \(exit code 3\), starts again in 100 ms/);
  await assert.rejects(workload.awaitHealthy(patient(60_000)), (error) =>
    isGodwitError(error, 'MACHINE_NOT_HEALTHY'),
  );
});

test('what a wrapper leaves when it ends at the signal has the rest of the time, and is killed only then', {
  skip: skip || requires('tini'),
}, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  // The shell in front dies at SIGTERM and passes nothing on; the other one has something to finish.
  const server = (end: string) => `sh -c 'trap "${end}" TERM; echo up; while :; do sleep 0.05; done' & wait`;
  await start(workload, machineConfig(server('sleep 0.3; echo flushed; exit 0')));
  await hasSaid(runtimeDir, 1);
  const { killed, signal, exitCode } = await workload.stop({ timeoutMs: patient(20_000) });
  assert.deepEqual(
    [killed, signal, exitCode],
    [false, null, 143],
    'the end of the command is the end of the machine',
  );
  assert.match(logOf(runtimeDir), /^flushed$/m);
  assert.deepEqual(workload.cgroup.processes(), []);

  const stubborn = testWorkload(t);
  await start(stubborn.workload, machineConfig(server('echo no')));
  await hasSaid(stubborn.runtimeDir, 1);
  const timeoutMs = 700;
  const ended = await stubborn.workload.stop({ timeoutMs });
  assert.equal(ended.killed, true);
  assert.ok(ended.durationMs >= timeoutMs);
  assert.match(logOf(stubborn.runtimeDir), /^no$/m);
  assert.match(
    logOf(stubborn.runtimeDir),
    /its command has ended; what it left \(\d processes\) got SIGTERM/,
  );
  assert.deepEqual(stubborn.workload.cgroup.processes(), []);

  const killedAtOnce = testWorkload(t);
  await start(killedAtOnce.workload, machineConfig(server('echo asked')));
  await hasSaid(killedAtOnce.runtimeDir, 1);
  await killedAtOnce.workload.stop({ signal: 'SIGKILL', timeoutMs: patient(20_000) });
  assert.doesNotMatch(logOf(killedAtOnce.runtimeDir), /asked/);
});

test('a stop between two restarts is the end; a good end under on-failure too', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  await start(workload, machineConfig('echo try; exit 0', { restart: { policy: 'always', retriesMax: 0 } }));
  await until('the pause', () => workload.status, { is: ({ state }) => state === 'restarting' });
  await workload.stop();
  const tries = logOf(runtimeDir).match(/^try$/gm)?.length;
  await systemClock.sleep(400);
  assert.equal(logOf(runtimeDir).match(/^try$/gm)?.length, tries);
  await start(workload, machineConfig('exit 0', { restart: { policy: 'on-failure', retriesMax: 9 } }));
  await until('its end', () => workload.status, { is: ({ state }) => state === 'exited' });
  assert.equal(workload.status?.exitCode, 0);
});

test('a machine over its memory limit loses a process, which is counted and told', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  const config = machineConfig('tail /dev/zero; echo survived; exit 9', {
    resources: { memoryBytes: 32 * 1024 * 1024 },
  });
  await start(workload, config);
  await until('its end', () => workload.status, { is: ({ state }) => state === 'exited' });
  assert.ok(workload.status!.outOfMemoryKills >= 1);
  assert.match(logOf(runtimeDir), /out of memory/);
});

test('limits of processes and what a bad configuration says', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  await start(workload, machineConfig(SLEEP, { resources: { processesMax: 6, cpus: 0.2 } }));
  assert.match((await run(workload, 'for i in 1 2 3 4 5 6 7; do sleep 5 & done')).stderr, /fork/);
  await workload.stop();
  const refused = async (overrides: object, code: string) => {
    await assert.rejects(
      start(workload, machineConfig(SLEEP, overrides)),
      (error) => isGodwitError(error, code),
      code,
    );
    assert.equal(workload.status?.state, 'failed');
    assert.deepEqual(workload.cgroup.processes(), []);
  };
  await refused({ user: 'nobody-here' }, 'MACHINE_UNKNOWN_USER');
  await refused({ workingDirectory: '/no/such/folder' }, 'MACHINE_START_FAILED');
  await refused({ volume: { volumeId: 'v', mountPath: '/proc' } }, 'MACHINE_BAD_MOUNT_PATH');
  for (const device of ['/dev/not-there', '/dev/../etc/passwd', '/dev/stdin', '/etc/passwd', '/dev/pts'])
    await refused({ devices: [device] }, 'MACHINE_BAD_DEVICE');
  assert.match(logOf(runtimeDir), /entering the working directory/);
  await start(workload, { ...machineConfig(''), command: ['no-such-program'] });
  await until('its end', () => workload.status, { is: ({ state }) => state === 'exited' });
  assert.equal(workload.status?.exitCode, 127);
  assert.match(logOf(runtimeDir), /no-such-program/);
});

test('health: exec inside the machine, from starting to healthy to unhealthy', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  const health = { intervalMs: 20, timeoutMs: patient(5_000), retries: 2, startPeriodMs: patient(60_000) };
  await start(
    workload,
    machineConfig(`until [ -e /tmp/go ]; do sleep 0.05; done; touch /tmp/ready; ${SLEEP}`, {
      health: { ...health, kind: 'exec', command: ['test', '-e', '/tmp/ready'] },
    }),
  );
  assert.equal(workload.status?.health.state, 'starting');
  await assert.rejects(workload.awaitHealthy(1), (error) => isGodwitError(error, 'MACHINE_NOT_HEALTHY'));
  await run(workload, 'touch /tmp/go');
  const { healthyAtMs } = await workload.awaitHealthy(patient(20_000));
  assert.ok(healthyAtMs >= workload.status!.startedAtMs!);
  assert.equal(workload.status?.health.state, 'healthy');
  await run(workload, 'rm /tmp/ready');
  await until('it to be unhealthy', () => workload.status, {
    is: ({ health }) => health.state === 'unhealthy',
  });
  assert.equal(workload.status?.state, 'running');
});

test('health: tcp and http, in the host network and in a network of its own', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  const health = { intervalMs: 1_000, timeoutMs: patient(5_000), retries: 3, startPeriodMs: patient(60_000) };
  const server = `require('http').createServer((q, s) => s.writeHead(q.url === '/ok' ? 200 : 500).end()).listen(8123, '127.0.0.1')`;
  const command = [process.execPath, '-e', server];
  const inside = { command, network: 'none' as const };
  await start(workload, machineConfig('', { ...inside, health: { ...health, kind: 'tcp', port: 8123 } }));
  await workload.awaitHealthy(patient(20_000));
  await workload.stop({ timeoutMs: 0 });
  await start(
    workload,
    machineConfig('', { ...inside, health: { ...health, kind: 'http', url: 'http://127.0.0.1:8123/ok' } }),
  );
  await workload.awaitHealthy(patient(20_000));
  await workload.stop({ timeoutMs: 0 });
  await start(
    workload,
    machineConfig('', { ...inside, health: { ...health, kind: 'http', url: 'http://127.0.0.1:8123/bad' } }),
  );
  await until('the answer 500', () => workload.status, {
    is: ({ health }) => health.message === 'HTTP status 500',
  });
  await workload.stop({ timeoutMs: 0 });

  const listener = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  await new Promise((resolve) => listener.once('listening', resolve));
  t.after(() => listener.close());
  const { port } = listener.address() as AddressInfo;
  await start(workload, machineConfig(SLEEP, { health: { ...health, kind: 'tcp', port } }));
  await workload.awaitHealthy(patient(20_000));
});

test('output as JSON is cut to its bound', () => {
  assert.equal(cutForJson('abc', 100), 'abc');
  for (const text of ['\0'.repeat(10_000), 'ä'.repeat(10_000), '𝄞'.repeat(10_000)]) {
    const cut = cutForJson(text, 1_000);
    assert.ok(Buffer.byteLength(JSON.stringify(cut)) <= 1_000);
    assert.ok(Buffer.byteLength(JSON.stringify(cut)) > 900);
  }
});

test('a fresh workload has no status and needs no stop', { skip }, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  assert.equal(workload.status, null);
  assert.equal((await workload.stop()).killed, false);
  rmSync(join(runtimeDir, 'machine.log'), { force: true });
});

const PREPARED = { machineId: 'm_1', name: 'Test One' };
const DATA = { volumeId: 'v_1', mountPath: '/data' };

/** Processes that wait in the machine's cgroup. */
function waiting(workload: Workload): number[] {
  return workload.cgroup.processes();
}

test('a prepared jail sees the filesystem that is mounted after it was built, and lets it go', {
  skip: machineNeeds || requires('mkfs.ext4', 'losetup'),
}, async (t) => {
  const { workload, runtimeDir } = testWorkload(t);
  const image = join(runtimeDir, 'image');
  writeFileSync(image, '');
  truncateSync(image, 16 * 1024 * 1024);
  await mustRun('TEST', 'mkfs.ext4', ['-q', image], patient(20_000));
  const device = (
    await mustRun('TEST', 'losetup', ['--find', '--show', image], patient(10_000))
  ).stdout.trim();
  t.after(() => mustRun('TEST', 'losetup', ['--detach', device], patient(10_000)));
  const filesystem = new Filesystem(join(runtimeDir, 'fs'), systemClock);
  await filesystem.makePlace();
  await filesystem.makePlace();
  assert.equal(filesystem.mounted, false);
  const config = machineConfig(`echo up > /data/up; ${SLEEP}`, { volume: DATA });
  await workload.prepare({ ...PREPARED, config });
  assert.equal(workload.status, null, 'nothing runs');
  const [jail] = waiting(workload);
  assert.ok(jail !== undefined);
  await workload.prepare({ ...PREPARED, config });
  assert.deepEqual(waiting(workload), [jail], 'asking again builds nothing');

  await filesystem.mount(device, 'ext4');
  await start(workload, config);
  assert.equal(workload.initPid, jail, 'the jail that was prepared is the one that runs');
  await until('its file on the volume', () => existsSync(join(runtimeDir, 'fs', 'up')));
  const seen = await run(
    workload,
    `grep -c ${device} /proc/self/mountinfo; grep -c godwit-place /proc/self/mountinfo`,
  );
  assert.equal(seen.stdout, '1\n1\n');
  await workload.stop();
  await filesystem.unmount();
  assert.equal(filesystem.mounted, false);
  assert.equal(readFileSync('/proc/self/mountinfo', 'utf8').includes(device), false);

  // Without anything running in it, the jail follows an unmount as well.
  await workload.prepare({ ...PREPARED, config });
  await filesystem.mount(device, 'ext4');
  const table = `/proc/${waiting(workload)[0]}/mountinfo`;
  assert.ok(readFileSync(table, 'utf8').includes(device));
  await filesystem.unmount();
  assert.equal(readFileSync(table, 'utf8').includes(device), false);
  await workload.stop();
  await filesystem.removePlace();
  await filesystem.removePlace();
  assert.equal(mountAt(join(runtimeDir, 'fs')), undefined);
});

test('a prepared jail that died, or is of another configuration, is built again', { skip }, async (t) => {
  const { workload } = testWorkload(t);
  await workload.prepare({ ...PREPARED, config: machineConfig(SLEEP) });
  const [first] = waiting(workload);
  const changed = machineConfig(SLEEP, { env: { CHANGED: 'yes' } });
  await workload.prepare({ ...PREPARED, config: changed });
  const [second] = waiting(workload);
  assert.notEqual(second, first);
  assert.equal(waiting(workload).includes(first!), false, 'the other one is gone');
  process.kill(second!, 'SIGKILL');
  await until('the end of the jail', () => waiting(workload), { is: ({ length }) => length === 0 });
  await start(workload, changed);
  assert.equal((await run(workload, 'echo $CHANGED')).stdout, 'yes\n');
  await workload.stop();

  await workload.prepare({ ...PREPARED, config: machineConfig(SLEEP) });
  const [third] = waiting(workload);
  await start(workload, changed);
  assert.notEqual(workload.initPid, third);
  assert.equal((await run(workload, 'echo $CHANGED')).stdout, 'yes\n');
});

test('a prepared jail ends with a stop and leaves nothing; one that cannot be made says why', {
  skip,
}, async (t) => {
  const { workload } = testWorkload(t);
  await workload.prepare({ ...PREPARED, config: machineConfig(SLEEP) });
  await workload.stop();
  await workload.close();
  assert.deepEqual(waiting(workload), []);
  for (const folder of workload.cgroup.folders) assert.equal(existsSync(folder), false, folder);
  assert.equal(workload.status, null);

  const bad = machineConfig(SLEEP, { user: 'no-such-user' });
  await assert.rejects(workload.prepare({ ...PREPARED, config: bad }), (error) =>
    isGodwitError(error, 'MACHINE_UNKNOWN_USER'),
  );
  const config = machineConfig(SLEEP, { workingDirectory: '/no/such/folder' });
  await workload.prepare({ ...PREPARED, config });
  await assert.rejects(start(workload, config), (error) => isGodwitError(error, 'MACHINE_START_FAILED'));
  assert.deepEqual(waiting(workload), []);
});
