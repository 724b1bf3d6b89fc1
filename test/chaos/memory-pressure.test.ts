import assert from 'node:assert/strict';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { VolumeSupervisorState } from '../../src/attach/volume-supervisor.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { cleanUpAfterDeadShim } from '../../src/shim/cleanup.ts';
import { findShim, type ShimClient, startShim } from '../../src/shim/client.ts';
import { cloneSpec } from '../../src/volume/specs.ts';
import { machineConfig, machineNeeds } from '../support/machine.ts';
import { hasSysResource, isIoFlusher, memoryController, outOfMemoryAdjustment } from '../support/memory.ts';
import { leisurely, patient, until } from '../support/patience.ts';
import { moveRawVolume, Running } from '../support/raw-clone.ts';
import { requires } from '../support/requires.ts';
import { mayLack } from '../support/skips.ts';
import { digestFiles, LAB_NEEDS, moveVolume, tool, VolumeLab, writeFiles } from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const MACHINE_BYTES = 64 * MIB;

const machineSkip =
  requires(...LAB_NEEDS) || machineNeeds || mayLack('memory controller', memoryController() !== null);

test('a machine of 64 MiB dirties 300 MiB on a volume that hydrates: it gets through, and its volume server too', {
  skip: machineSkip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store('target');
  const made = await sourceStore.create({ name: 'data', lengthBytes: 1024 * MIB, filesystem: 'ext4' });
  let written = new Map<string, string>();
  await lab.withDataMounted(sourceStore, made.id, async (dir) => {
    written = writeFiles(dir, 'source', 10, 16 * MIB);
  });
  const source = await lab.export(sourceStore, made.id, 'standby');
  const incoming = await targetStore.createIncoming({ ...made, generation: 2 });
  const { shim, runtimeDir } = await shimOf(lab);
  const volumeDir = targetStore.folder(made.id);
  await shim.open(
    cloneSpec(incoming, {
      volumeDir,
      access: 'standby',
      validityDir: lab.validityDir,
      source: source.source,
      // So slow that there is something left to hydrate while the machine writes.
      hydration: { paused: false, rateBytesPerSecondMax: leisurely(16 * MIB) },
    }),
  );
  await sourceStore.apply(made.id, { kind: 'seal', generation: 1 });
  await source.server.call('activate', { access: 'readonly' });
  await targetStore.apply(made.id, { kind: 'activate', generation: 2 });
  await shim.volume('activate', { access: 'writable' });
  const volumeStatus = async () => shim.volume('status', {});
  await shim.call('fs.mount', { filesystem: 'ext4' });
  const before = await shim.call('status', {});
  const serverPid = before.volume!.serverPid!;

  const run = async (script: string): Promise<string> => {
    await shim.call('workload.start', {
      machineId: made.id,
      name: 'dirty',
      config: machineConfig(script, {
        resources: { memoryBytes: MACHINE_BYTES },
        volume: { volumeId: made.id, mountPath: '/data' },
      }),
    });
    let memoryBytesMax = 0;
    const end = await until(
      'the machine to end',
      async () => {
        const { workload } = await shim.call('status', {});
        memoryBytesMax = Math.max(memoryBytesMax, workload!.memoryBytes ?? 0);
        return workload;
      },
      { is: ({ state }) => state === 'exited', patienceMs: 240_000 },
    );
    assert.equal(end.exitCode, 0, readFileSync(join(runtimeDir, 'machine.log'), 'utf8'));
    assert.equal(end.outOfMemoryKills, 0);
    assert.ok(memoryBytesMax <= MACHINE_BYTES, `the limit holds: ${memoryBytesMax} bytes`);
    await shim.call('workload.stop', {});
    return readFileSync(join(runtimeDir, 'machine.log'), 'utf8');
  };
  const start = (await volumeStatus()).hydration!;
  await run(
    'seq 1 200000000 | head -c 300M | tee /data/dirtied | cksum > /data/sum; sync /data/dirtied /data/sum',
  );
  const end = (await volumeStatus()).hydration!;
  assert.ok(start.exposedBytes > 0, 'it hydrated when the machine began');
  assert.ok(end.blocksPresent > start.blocksPresent, 'and went on meanwhile');
  await shim.volume('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await until('hydrated', async () => (await volumeStatus()).hydration, {
    is: ({ state }) => state === 'complete',
    patienceMs: 240_000,
  });
  await shim.volume('finish', {});

  await shim.call('fs.unmount', {});
  await shim.call('fs.mount', { filesystem: 'ext4' });
  await run('test "$(cksum < /data/dirtied)" = "$(cat /data/sum)"');
  const found = await digestFiles(join(runtimeDir, 'fs'));
  assert.ok(found.delete('dirtied') && found.delete('sum'));
  assert.deepEqual(found, written);

  const after = await shim.call('status', {});
  assert.equal(after.volume!.serverPid, serverPid, 'the volume server that it began with');
  assert.equal(after.volume!.serverRestarts, 0);
  assert.equal(after.volume!.lastError, null);
  assertProtected([after.shimPid, serverPid], serverPid, readFileSync(join(runtimeDir, 'shim.log'), 'utf8'));
});

test('the host is short of memory while fio writes files on a clone that hydrates: no I/O error, every block right', {
  skip: requires(...LAB_NEEDS, 'fio', 'stress-ng'),
}, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const { target } = await moveVolume(lab, {
    lengthBytes: 512 * MIB,
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 10, 16 * MIB);
    },
  });
  const serverPid = target.server.state.serverPid!;
  const dir = await target.mount();
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 16 * MIB });
  // 60 % of the memory, and not more than leaves room for others on a large host.
  const stress = stressMemory(lab, Math.min(Math.floor(totalmem() * 0.6), 4 * 2 ** 30));
  // Through the page cache, whose write-back needs the volume server.
  const fio = new Running(
    lab,
    'fio',
    ...['--name=verify', `--filename=${join(dir, 'fio')}`, '--ioengine=psync', '--rw=randwrite', '--bs=4k'],
    ...['--size=100m', '--rate=14m', '--end_fsync=1', '--randseed=1', ...VERIFY],
  );
  await fio.ended;
  assert.match(fio.stdout, /err= 0/);
  await stress.ended;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.blocksFetchedTwice, 0);
  const found = await digestFiles(await target.remount());
  assert.ok(found.delete('fio'));
  assert.deepEqual(found, written);
  await target.unmount();
  await tool('e2fsck', '-f', '-n', target.loop);
  assertSameServer(target.server.state, serverPid);
});

/**
 * What lives here has to share it: this process, the servers of source and target, fio, and stress-ng, which
 * alone wants most of it. Unlike the host's own memory this can be used up without harm to others.
 */
const SMALL_HOST_BYTES = 640 * MIB;

test('a host of 640 MiB runs out of memory while fio writes on a clone that hydrates: the same', {
  skip:
    requires(...LAB_NEEDS, 'fio', 'stress-ng') || mayLack('memory controller', memoryController() !== null),
}, async (t) => {
  const lab = new VolumeLab(t);
  const group = memoryGroup(lab, SMALL_HOST_BYTES);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 256 * MIB,
    content: { offsetBytes: 0, lengthBytes: 192 * MIB },
    paused: true,
  });
  const { target, source } = move;
  const serverPid = target.server.state.serverPid!;
  for (const { server } of [target, source]) {
    assert.match(
      readFileSync(join(group, 'cgroup.procs'), 'utf8'),
      new RegExp(`^${server.state.serverPid}$`, 'm'),
    );
  }
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 16 * MIB });
  const stress = stressMemory(lab, SMALL_HOST_BYTES);
  // All of the first 64 MiB, on blocks that are here, on their way, or missing, and read back.
  const fio = new Running(
    lab,
    'fio',
    ...['--name=verify', `--filename=${target.loop}`, '--ioengine=libaio', '--iodepth=16', '--direct=1'],
    ...['--rw=randwrite', '--bs=4k', '--size=64m', '--rate=9m', '--randseed=1', ...VERIFY],
  );
  await fio.ended;
  assert.match(fio.stdout, /err= 0/);
  await stress.ended.catch(() => {}); // it may be killed: that is what it is for
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.blocksFetchedTwice, 0);
  await tool('cmp', '--ignore-initial', String(64 * MIB), target.loop, expectedPath);
  assertSameServer(target.server.state, serverPid);
});

const VERIFY = ['--verify=crc32c', '--verify_state_save=0', '--do_verify=1', '--verify_fatal=1'];

/**
 * Two processes that write all over so many bytes and have them for 8 s, the first ones for the OOM killer to
 * take.
 */
function stressMemory(lab: VolumeLab, lengthBytes: number): Running {
  return new Running(
    lab,
    'stress-ng',
    ...['--vm', '2', '--vm-bytes', String(lengthBytes), '--vm-populate'],
    ...['--vm-method', 'write64', '--vm-hang', '0'],
    ...['--timeout', '8s', '--temp-path', lab.scratch()],
  );
}

/** Puts this process, and so all that it starts from now on, under a limit, until the lab closes. */
function memoryGroup(lab: VolumeLab, limitBytes: number): string {
  const { dir, limit } = memoryController()!;
  const own =
    /^\d+:(?:[^:]*\bmemory\b[^:]*)?:(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1] ?? '/';
  const group = join(dir, `gw-test-${process.pid}`);
  mkdirSync(group);
  lab.onClose(async () => {
    writeFileSync(join(dir, own, 'cgroup.procs'), String(process.pid));
    await until('its last process to be reaped', () => {
      rmdirSync(group);
      return true;
    });
  });
  writeFileSync(join(group, limit), String(limitBytes));
  writeFileSync(join(group, 'cgroup.procs'), String(process.pid));
  return group;
}

function assertSameServer(state: VolumeSupervisorState, serverPid: number): void {
  assert.equal(state.serverPid, serverPid, 'the volume server that it began with');
  assert.equal(state.restarts, 0);
  assert.deepEqual(state.protection, { ioFlusher: hasSysResource(), outOfMemoryKiller: hasSysResource() });
  if (hasSysResource()) assert.equal(outOfMemoryAdjustment(serverPid), -1000);
}

async function shimOf(lab: VolumeLab): Promise<{ shim: ShimClient; runtimeDir: string }> {
  // Unix sockets have short paths.
  const dir = realpathSync(mkdtempSync(join(tmpdir(), 'gw-s-')));
  const runtimeDir = join(dir, 'shim');
  const shim = await startShim({ runtimeDir, hidden: [], clock: systemClock });
  lab.onClose(async () => {
    await shim.call('shutdown', {}, patient(60_000)).catch(() => {});
    shim.close();
    const ended = until('the shim to end', () => findShim(runtimeDir), { is: (now) => now !== 'running' });
    const found = await ended.catch(() => 'running' as const);
    if (found !== 'absent') await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
    rmSync(dir, { recursive: true, force: true });
    assert.equal(found, 'absent', 'the shim ended in good order');
  });
  return { shim, runtimeDir };
}

/**
 * Where the right is missing (containers without CAP_SYS_RESOURCE) there must at least be a word about it.
 */
function assertProtected(pids: number[], serverPid: number, log: string): void {
  if (hasSysResource()) {
    for (const pid of pids) assert.equal(outOfMemoryAdjustment(pid), -1000);
    assert.ok(isIoFlusher(serverPid));
  } else {
    assert.match(log, /not marked as I\/O flusher/);
    assert.match(log, /oom_score_adj/);
    assert.match(log, /not protected from the OOM killer/);
  }
}
