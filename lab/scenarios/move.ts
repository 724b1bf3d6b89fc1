import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { messageOf } from '../../src/base/errors.ts';
import type { ReceiptBody } from '../../src/receipt/receipt.ts';
import { cgroupName } from '../../src/shim/cgroup-name.ts';
import { NotWorthWaiting, until as untilSeen } from '../../test/support/patience.ts';
import { WriterCollector, type WriterHistory } from '../../test/support/writer-collector.ts';
import { writerConfig } from '../../test/support/writer-config.ts';
import type { Guest } from '../guest.ts';
import { patient } from '../kind.ts';
import { Lab } from '../lab.ts';
import { LabWorker } from '../lab-worker.ts';
import { type Member, mustRun } from '../member.ts';
import { DATA_DIR, prepareGuest } from '../prepare.ts';

const MIB = 2 ** 20;
/** For what a scenario waits for. */
export const patienceMs = () => patient(120_000);
/** The same key on every worker of a lab with encrypted volumes. */
export const GUEST_KEY_FILE = '/etc/godwit-keys/volume';
/** Random bytes in files beside what the writer writes. */
const FILES = 12;
const FILE_MIB = 4;

export type Plane = 'userspace' | 'kernel';

const KERNEL_TO_KERNEL = { from: 'kernel', to: 'kernel' } as const;

/** A move that has begun, for what a scenario does to it. */
export type MoveInProgress = {
  lab: Lab;
  source: LabWorker;
  target: LabWorker;
  machineId: string;
  runId: string;
  history: WriterHistory;
  say: (line: string) => void;
};

export type MoveOptions = {
  from: Plane;
  to: Plane;
  encrypted?: boolean;
  volumeBytes?: number;
  /** Of what each guest sends. */
  shape?: { delayMs?: number; rateMbit?: number };
  flags?: readonly string[];
  /** The target loses power, and with it what its kernel has counted. */
  countsLost?: boolean;
  /** Environment of the target's worker. */
  targetEnvironment?: Record<string, string>;
  /** When the move was asked for, and its machine may be anywhere. */
  early?: (move: MoveInProgress) => Promise<void>;
  /** While the blocks are on their way. */
  during?: (move: MoveInProgress) => Promise<void>;
};

/**
 * A machine writes and acknowledges, moves from one worker to another and goes on. Held to: no acknowledged
 * write is lost, all files are what they were, the source is released with nothing left in its kernel, the
 * target's filesystem is clean, and nothing is left there either when the machine is gone.
 */
export async function move(options: MoveOptions, say: (line: string) => void): Promise<void> {
  const cleanups: (() => unknown)[] = [];
  const guestOf = (name: string) => ({ name, diskBytes: [2 ** 32] });
  const names = { source: 'source', target: 'target' };
  const lab = await Lab.start({
    hosts: [
      ...(options.from === 'userspace' ? [{ name: names.source }] : []),
      ...(options.to === 'userspace' ? [{ name: names.target }] : []),
    ],
    guests: [
      ...(options.from === 'kernel' ? [guestOf(names.source)] : []),
      ...(options.to === 'kernel' ? [guestOf(names.target)] : []),
    ],
  });
  const workers: LabWorker[] = [];
  try {
    const [source, target] = await workerPair(lab, options);
    workers.push(source, target);
    await Promise.all([source.start(), target.start(options.targetEnvironment ?? {})]);
    say('both workers answer');
    const { machineId, volumeId, history } = await writerOn(source, options, cleanups);
    await source.client.execInMachine(machineId, {
      command: [
        'sh',
        '-c',
        `cd /data && for i in $(seq ${FILES}); do dd if=/dev/urandom of=file$i bs=1M count=${FILE_MIB} status=none; done; sha256sum file* > sums; sync`,
      ],
      timeoutMs: patient(120_000),
    });
    await history.more(5, patienceMs());
    say(`a machine writes; ${FILES * FILE_MIB} MiB of files on its volume`);

    if (options.shape)
      for (const member of [source.member, target.member])
        if (isGuest(member)) await lab.shape(member, options.shape);
    const startedMs = Date.now();
    const acknowledgedBefore = history.acknowledged;
    const { id: runId } = await source.client.moveMachine(machineId, { target: target.name });
    const inProgress = { lab, source, target, machineId, runId, history, say };
    await options.early?.(inProgress);
    await until('the machine to run at the target', async () => {
      const run = await source.client.showRun(runId);
      if (run.endedAtMs !== null && run.state !== 'done')
        throw new NotWorthWaiting(`the move ended ${run.state}: ${JSON.stringify(run.error ?? run)}`);
      return history.incarnations.length > 1 && history.incarnations.at(-1)!.acks > 0;
    });
    say(
      `first write at the target after ${Date.now() - startedMs} ms, with ${acknowledgedBefore} acknowledged before`,
    );
    await options.during?.(inProgress);
    const run = await until(
      'the end of the move',
      async () => {
        history.assertSound();
        const now = await source.client.showRun(runId);
        return now.endedAtMs === null ? null : now;
      },
      2 * patienceMs(),
    );
    assert.equal(run.state, 'done', JSON.stringify(run));
    say(`source released after ${Date.now() - startedMs} ms`);
    const receipt = await verifiedReceipt(target, runId);
    const { bytes, disk } = receipt;
    assert.ok(
      bytes.compared >= FILES * FILE_MIB * MIB,
      `the files are among what was compared: ${JSON.stringify(receipt)}`,
    );
    if (options.to === 'kernel') {
      assert.ok(disk, 'the disk of the kernel plane was compared');
      assert.equal(disk.guest === null, options.countsLost === true, 'what the guest wrote is known');
    }
    say(
      `compared ${bytes.compared >> 20} MiB${disk ? `; differs ${(disk.changed + disk.cleared) >> 10} KiB, the guest wrote ${disk.guest === null ? 'nobody knows what' : `${disk.guest.writeBytes >> 10} KiB in ${disk.guest.writes} requests`}` : ''}`,
    );
    await history.more(10, patienceMs());
    const check = await target.client.execInMachine(machineId, {
      command: [
        'sh',
        '-c',
        'echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; cd /data && sha256sum --quiet -c sums',
      ],
      timeoutMs: patient(120_000),
    });
    assert.equal(check.exitCode, 0, check.stdout + check.stderr);
    history.assertSound();
    await assertNothingLeft(source, options.from, { machineId, volumeId });

    await target.client.stopMachine(machineId);
    await until('the stop', async () => (await target.client.showMachine(machineId)).state === 'stopped');
    await target.client.destroyMachine(machineId, { force: true });
    await assertNothingLeft(target, options.to, { machineId, volumeId });
    if (!options.encrypted) await assertClean(target, volumeId);
    say('nothing lost, nothing left, filesystem clean');
  } catch (error) {
    await tellStates(workers);
    throw error;
  } finally {
    for (const cleanup of cleanups) await cleanup();
    for (const worker of workers) if (!isGuest(worker.member)) await endHostWorker(worker);
    await lab.close();
  }
}

/** Of a move, verified offline by the CLI on that worker's host. */
export async function verifiedReceipt(worker: LabWorker, runId: string): Promise<ReceiptBody> {
  const path = worker.logPath.replace(/worker\.log$/, 'receipt.json');
  await worker.member.writeFile(path, await worker.cli('--json', 'receipt', runId));
  return JSON.parse(await worker.cli('--json', 'receipt', '--verify', path)) as ReceiptBody;
}

/** The workers `source` and `target` of a lab with these members, not started yet. */
export function workerPair(
  lab: Lab,
  options: Pick<MoveOptions, 'from' | 'to' | 'encrypted' | 'flags'> = KERNEL_TO_KERNEL,
): Promise<[source: LabWorker, target: LabWorker]> {
  return Promise.all([
    workerOn(lab, 'source', 'target', options.from, options),
    workerOn(lab, 'target', 'source', options.to, options),
  ]);
}

/** A machine on that worker that writes, and has been acknowledged some of it. */
export async function writerOn(
  worker: LabWorker,
  options: Pick<MoveOptions, 'encrypted' | 'volumeBytes'>,
  cleanups: (() => unknown)[],
): Promise<{ machineId: string; volumeId: string; history: WriterHistory }> {
  const collector = await WriterCollector.open(
    { after: (work) => void cleanups.push(work as () => unknown) },
    '0.0.0.0',
  );
  const ids = await writerMachine(worker, collector.port, options);
  const history = collector.history('writer');
  await history.more(5, patienceMs());
  return { ...ids, history };
}

async function workerOn(
  lab: Lab,
  name: string,
  peer: string,
  plane: Plane,
  options: Partial<MoveOptions>,
): Promise<LabWorker> {
  const member = plane === 'kernel' ? lab.guest(name) : lab.host(name);
  const peers = lab.members.filter((other) => other.name === peer);
  let dataDir = DATA_DIR;
  if (isGuest(member)) await prepareGuest(member);
  else {
    dataDir = join(lab.folder, `${name}-data`);
    await mkdir(dataDir, { recursive: true });
  }
  const keyFile = isGuest(member) ? GUEST_KEY_FILE : join(lab.folder, `${name}-keys`, 'volume');
  const keys = options.encrypted ? ['--key-file', keyFile] : [];
  if (options.encrypted) {
    await mustRun(member, ['mkdir', '-m', '700', dirname(keyFile)]);
    await member.writeFile(keyFile, 'a key of the lab', 0o600);
  }
  return new LabWorker(member, {
    dataDir,
    peers,
    flags: ['--plane', plane, ...keys, ...(options.flags ?? [])],
  });
}

async function writerMachine(
  worker: LabWorker,
  collectorPort: number,
  options: Partial<MoveOptions>,
): Promise<{ machineId: string; volumeId: string }> {
  const volume = await worker.client.createVolume({
    name: 'writer-data',
    lengthBytes: options.volumeBytes ?? 256 * MIB,
    filesystem: 'ext4',
    ...(options.encrypted ? { dmCrypt: true } : { encrypted: false }),
  });
  const machine = await worker.client.createMachine({
    name: 'writer',
    start: true,
    config: writerConfig(volume.id, `10.77.0.254:${collectorPort}`, 'writer'),
  });
  return { machineId: machine.id, volumeId: volume.id };
}

/**
 * What a worker's host has of a machine and its volume: control groups, processes, mounts, loop and
 * device-mapper devices, iSCSI sessions, targets of LIO.
 */
export async function leftOn(
  { member, dataDir }: LabWorker,
  plane: Plane,
  { machineId, volumeId }: { machineId: string; volumeId: string },
): Promise<string[]> {
  const lines = async (...argv: string[]) =>
    (await mustRun(member, argv)).split('\n').filter((line) => line !== '');
  const cgroup = cgroupName(join(dataDir, 'run', machineId));
  const left = await lines('find', '/sys/fs/cgroup', '-type', 'd', '-name', cgroup);
  const tables = [
    ...(await lines('ps', '-eo', 'args')),
    ...(await lines('cat', '/proc/self/mountinfo')),
    ...(await lines('losetup', '--list', '--noheadings', '--output', 'BACK-FILE')),
    ...(plane === 'kernel' ? await lines('dmsetup', 'ls') : []),
  ];
  left.push(...tables.filter((line) => line.includes(volumeId) || line.includes(machineId)));
  if (plane === 'kernel') {
    const sessions = await member.run(['iscsiadm', '-m', 'session']);
    if (sessions.exitCode !== 21) left.push(sessions.stdout.trim());
    const targets = '/sys/kernel/config/target';
    left.push(...(await lines('find', targets, '-maxdepth', '3', '-name', '*godwit*')));
  }
  return left;
}

export async function assertNothingLeft(
  worker: LabWorker,
  plane: Plane,
  ids: { machineId: string; volumeId: string },
): Promise<void> {
  await until(
    `nothing of the volume on ${worker.name}`,
    async () => {
      const left = await leftOn(worker, plane, ids);
      if (left.length > 0) throw new Error(left.join(', '));
      return true;
    },
    patient(30_000),
  );
}

async function assertClean({ member, dataDir }: LabWorker, volumeId: string): Promise<void> {
  await mustRun(member, ['e2fsck', '-f', '-n', `${dataDir}/volumes/${volumeId}/data.raw`]);
}

/** For the person who reads of a failure: ends of logs, what the kernel has, what each process waits for. */
export async function tellStates(workers: readonly LabWorker[]): Promise<void> {
  for (const worker of workers) {
    console.error(`--- ${worker.name}\n${await worker.logTail().catch(messageOf)}`);
    const shims = await worker.member
      .run([
        'sh',
        '-c',
        `tail -n 15 ${DATA_DIR}/run/*/*.log; dmesg | tail -n 12; dmsetup status; ps -eo pid,stat,wchan:24,args | grep -v '\\['`,
      ])
      .catch(() => null);
    if (shims && isGuest(worker.member)) console.error(shims.stdout);
  }
}

/**
 * A host's worker is killed with the lab; what its machines have in the kernel of this machine would stay.
 */
export async function endHostWorker(worker: LabWorker): Promise<void> {
  try {
    for (const machine of await worker.client.listMachines()) {
      await worker.client.stopMachine(machine.id);
      await worker.client.destroyMachine(machine.id, { force: true });
    }
  } catch (error) {
    console.error(`${worker.name}: ${messageOf(error)}`);
  }
  await worker.kill();
}

/**
 * The first value that is neither null nor false, in the lab's patience, on a machine that may become slower
 * meanwhile.
 */
export function until<Value>(
  what: string,
  look: () => Promise<Value | null | false>,
  baseMs = patienceMs(),
): Promise<Value> {
  return untilSeen(what, look, { patienceMs: baseMs });
}

export function isGuest(member: Member): member is Guest {
  return 'kill9' in member;
}
