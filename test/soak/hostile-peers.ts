import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { CreateMachineRequest, MachineView } from '../../src/api/schemas.ts';
import { PEER_LIMITS } from '../../src/base/peer-account.ts';
import { seededRandom } from '../../src/base/random.ts';
import { SERVER_LIMITS } from '../../src/nbd/limits.ts';
import { Fleet, type FleetWorker } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { findProgram } from '../support/requires.ts';
import type { SoakContext } from './soaks.ts';

/**
 * One worker with machines that write and verify (fio), first in quiet, then among hostile peers of every kind: of the NBD server of a volume that is served, and of the
 * API. Meanwhile libnbd reads that volume and a client with the token asks the API, all the time.
 *
 * What must hold: no byte wrong, no I/O error; fsync and read p99 of the machines within 1.5 of quiet; memory within what docs/nbd.md says; everybody honest is served.
 */
const MIB = 2 ** 20;
const MACHINES = Number(process.env.GODWIT_SOAK_MACHINES ?? 10);
const PEERS = Number(process.env.GODWIT_SOAK_PEERS ?? 200);
const ROUND_SECONDS = 10;
const VOLUME_BYTES = 64 * MIB;
const LATENCY_FACTOR_MAX = 1.5;
/** Buffers that are kept for later and what V8 has not collected: as in test/interop/nbd-hostile-peers.test.ts. */
const ALLOWANCE_BYTES = 96 * MIB;
/** Of the worker, whose peers hold 1,024 connections at most. */
const WORKER_GROWTH_BYTES_MAX = 256 * MIB;
const HONEST_WITHIN_MS = 2_000;

/** Milliseconds. */
type Latencies = { readP99: number; fsyncP99: number };
type Report = {
  machines: number;
  peers: number;
  quiet: Latencies;
  attacked: Latencies;
  rounds: number;
  errors: string[];
  honest: { asked: number; served: number; slowestMs: number };
  grownBytes: { worker: number; server: number };
};

/** Each line of `rounds`: nanoseconds of the 99th percentile of reads and of fsync. A round that fio ends with an error is in `failed`, and the last. */
const WRITER = `
cd /data || exit 9
: > rounds
while [ ! -e failed ]; do
  if fio --name=v --filename=/data/f --size=24m --rw=randrw --bs=4k --verify=crc32c --verify_fatal=1 --verify_backlog=256 \\
    --fsync=16 --rate_iops=60,60 --time_based --runtime=${ROUND_SECONDS} --randseed=$RANDOM --output-format=json --output=out 2> error; then
    python3 -c '
import json
job = json.load(open("/data/out"))["jobs"][0]
print(job["read"]["clat_ns"].get("percentile", {}).get("99.000000", 0), job["sync"]["lat_ns"].get("percentile", {}).get("99.000000", 0), job["error"])
' >> rounds
  else
    cp error failed; tail -c 2000 out >> failed
  fi
done
sleep 100000
`;

function fioMachine(volumeId: string): CreateMachineRequest['config'] {
  return {
    command: ['bash', '-c', WRITER],
    env: {},
    volume: { volumeId, mountPath: '/data' },
    restart: { policy: 'no', retriesMax: 0 },
    stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
    resources: {},
    network: 'host',
    metadata: {},
  };
}

export async function run(context: SoakContext): Promise<void> {
  const report = await soak(context);
  writeFileSync(join(context.stateFolder, 'hostile-peers.json'), `${JSON.stringify(report, null, 2)}\n`);
  context.log(JSON.stringify(report));
  const failures = faultsOf(report);
  if (failures.length > 0) throw new Error(failures.join('; '));
}

/** What of the report may not be. */
function faultsOf({ quiet, attacked, errors, honest, grownBytes }: Report): string[] {
  const faults = [...errors];
  for (const kind of ['readP99', 'fsyncP99'] as const) {
    const factor = attacked[kind] / quiet[kind];
    if (!(factor <= LATENCY_FACTOR_MAX)) faults.push(`${kind} is ${factor.toFixed(2)} of quiet`);
  }
  if (honest.served < honest.asked)
    faults.push(`${honest.asked - honest.served} of ${honest.asked} were not served`);
  if (honest.slowestMs > patient(HONEST_WITHIN_MS)) faults.push(`somebody waited ${honest.slowestMs} ms`);
  const serverMost =
    PEER_LIMITS.sharedBytesMax +
    SERVER_LIMITS.connectionsMax * PEER_LIMITS.connectionBytesReserved +
    ALLOWANCE_BYTES;
  if (grownBytes.server > serverMost) faults.push(`the volume server grew by ${grownBytes.server} bytes`);
  if (grownBytes.worker > WORKER_GROWTH_BYTES_MAX)
    faults.push(`the worker grew by ${grownBytes.worker} bytes`);
  return faults;
}

async function soak({ minutes, seed, stateFolder, log }: SoakContext): Promise<Report> {
  const endings: (() => unknown)[] = [];
  const after = (ending: () => unknown) => void endings.push(ending);
  try {
    const fleet = await Fleet.start({ after } as Parameters<typeof Fleet.start>[0], ['alpha']);
    const worker = fleet.worker('alpha');
    const machines = await makeMachines(worker);
    const served = await worker.client.createVolume({
      name: 'served',
      lengthBytes: VOLUME_BYTES,
      filesystem: 'ext4',
      encrypted: false,
    });
    const { location } = await worker.client.serveVolume(served.id, {
      protocol: 'nbd',
      listen: '127.0.0.1:0',
      writable: true,
      openToHost: true,
    });
    const [, port] = /:(\d+)\//.exec(location)!;
    const watch = new Watch(worker, location, serverOf(worker));
    after(() => watch.end());
    const phaseMs = (minutes * 60_000) / 3;
    log(`${machines.length} machines in quiet`);
    await Promise.race([watch.run(phaseMs), sleep(phaseMs)]);
    const quietRounds = await roundsOf(worker, machines);
    log(`${PEERS} peers`);
    const hostile = startPeers(seed, port!, new URL(worker.url).port, stateFolder);
    after(() => hostile.stop());
    await watch.run(2 * phaseMs);
    const all = await roundsOf(worker, machines);
    const errors = await failuresOf(worker, machines);
    const during = all.map((rounds, index) => rounds.slice(quietRounds[index]!.length + 1));
    return {
      machines: machines.length,
      peers: PEERS,
      quiet: medianOf(quietRounds),
      attacked: medianOf(during),
      rounds: all.flat().length,
      errors,
      honest: watch.honest,
      grownBytes: watch.grownBytes,
    };
  } finally {
    for (const ending of endings.reverse()) await ending();
  }
}

async function makeMachines(worker: FleetWorker): Promise<MachineView[]> {
  const machines: MachineView[] = [];
  for (let index = 0; index < MACHINES; index += 1) {
    const volume = await worker.client.createVolume({
      name: `data-${index}`,
      lengthBytes: VOLUME_BYTES,
      filesystem: 'ext4',
      encrypted: false,
    });
    machines.push(
      await worker.client.createMachine({ name: `m-${index}`, start: true, config: fioMachine(volume.id) }),
    );
  }
  return machines;
}

/** The volume server of what is served: the child of the shim for it. */
function serverOf(worker: FleetWorker): number {
  const shim = worker.shims().find(({ id }) => id.startsWith('s_'))!.state.shim.pid;
  const children = readFileSync(`/proc/${shim}/task/${shim}/children`, 'utf8').trim().split(' ');
  const found = children.find((pid) => /volume.server/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8')));
  if (found === undefined) throw new Error('no volume server serves the volume');
  return Number(found);
}

function residentBytesOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kib ?? 0) * 1024;
}

/** Asks, as honest clients do, and looks at the memory. */
class Watch {
  readonly honest = { asked: 0, served: 0, slowestMs: 0 };
  readonly grownBytes = { worker: 0, server: 0 };
  readonly #worker: FleetWorker;
  readonly #location: string;
  readonly #pids: { worker: number; server: number };
  readonly #beforeBytes: { worker: number; server: number };
  #over = false;

  constructor(worker: FleetWorker, location: string, server: number) {
    this.#worker = worker;
    this.#location = location;
    this.#pids = { worker: worker.pid, server };
    this.#beforeBytes = { worker: residentBytesOf(worker.pid), server: residentBytesOf(server) };
  }

  end(): void {
    this.#over = true;
  }

  async run(forMs: number): Promise<void> {
    const untilMs = performance.now() + forMs;
    while (!this.#over && performance.now() < untilMs) {
      await this.#ask(() =>
        promisify(execFile)(findProgram('nbdinfo')!, ['--size', this.#location], { timeout: 30_000 }),
      );
      await this.#ask(() => this.#worker.client.worker());
      for (const name of ['worker', 'server'] as const) {
        const grown = residentBytesOf(this.#pids[name]) - this.#beforeBytes[name];
        this.grownBytes[name] = Math.max(this.grownBytes[name], grown);
      }
      await sleep(200);
    }
  }

  /** As a client does: again, at once, for as long as it is patient. */
  async #ask(question: () => Promise<unknown>): Promise<void> {
    this.honest.asked += 1;
    const startedMs = performance.now();
    while (performance.now() - startedMs < 30_000) {
      try {
        await question();
        this.honest.served += 1;
        break;
      } catch {
        await sleep(20);
      }
    }
    this.honest.slowestMs = Math.max(this.honest.slowestMs, Math.round(performance.now() - startedMs));
  }
}

const NBD_KINDS = ['silent', 'idle', 'flush', 'read', 'status', 'drip'];

/** A half of NBD peers, by a program that knows the protocol and not our code, a half of the API, whose connections come again when they are ended. */
function startPeers(
  seed: number,
  nbdPort: string,
  apiPort: string,
  stateFolder: string,
): { stop: () => void } {
  const random = seededRandom(seed);
  const script = fileURLToPath(new URL('../support/hostile-nbd-peer.py', import.meta.url));
  const children: ChildProcess[] = [];
  let left = Math.floor(PEERS / 2);
  for (const [index, kind] of NBD_KINDS.entries()) {
    const share =
      index === NBD_KINDS.length - 1 ? left : Math.min(left, 1 + random.below(Math.ceil(PEERS / 6)));
    left -= share;
    if (share === 0) continue;
    children.push(
      spawn(findProgram('python3')!, [script, kind, `${share}`, nbdPort], {
        stdio: ['pipe', 'ignore', 'ignore'],
      }),
    );
  }
  const words = [
    '',
    'GET /v1/worker HTTP/1.1\r\nx-long: ',
    'POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n',
    'GET /v1/worker HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(200),
  ];
  let over = false;
  const open = (said: string): void => {
    if (over) return;
    const socket = connect(Number(apiPort), '127.0.0.1');
    const timer = setInterval(() => socket.write(said === '' ? '' : 'x'), 500);
    socket.pause();
    socket.on('error', () => {});
    socket.once('connect', () => socket.write(said));
    socket.once('close', () => {
      clearInterval(timer);
      setTimeout(open, 50 + random.below(200), said);
    });
  };
  for (let index = 0; index < PEERS / 2; index += 1) open(words[index % words.length]!);
  writeFileSync(
    join(stateFolder, 'peers.json'),
    JSON.stringify({ seed, nbd: children.map((c) => c.spawnargs) }),
  );
  return {
    stop: () => {
      over = true;
      for (const child of children) child.kill('SIGKILL');
    },
  };
}

/** Of each machine its rounds of fio: read and fsync p99 in milliseconds. */
async function roundsOf(worker: FleetWorker, machines: readonly MachineView[]): Promise<Latencies[][]> {
  const all: Latencies[][] = [];
  for (const { id } of machines) {
    const { stdout } = await worker.client.execInMachine(id, {
      command: ['cat', '/data/rounds'],
      timeoutMs: 60_000,
    });
    const lines = stdout.split('\n').filter(Boolean);
    all.push(
      lines.map((line) => {
        const [read = 0, fsync = 0] = line.split(' ').map(Number);
        return { readP99: read / 1e6, fsyncP99: fsync / 1e6 };
      }),
    );
  }
  return all;
}

/** What fio found wrong, and machines that run no more. */
async function failuresOf(worker: FleetWorker, machines: readonly MachineView[]): Promise<string[]> {
  const failures: string[] = [];
  for (const { id, name } of machines) {
    const command = ['sh', '-c', 'cat /data/failed 2>/dev/null; true'];
    const found = await worker.client.execInMachine(id, { command, timeoutMs: 60_000 }).catch(String);
    const words = typeof found === 'string' ? found : found.stdout;
    if (words !== '') failures.push(`${name}: ${words.slice(0, 500)}`);
  }
  return failures;
}

/** The median over the rounds of all machines: one round beside something else says little. */
function medianOf(rounds: readonly (readonly Latencies[])[]): Latencies {
  const median = (kind: keyof Latencies) => {
    const all = rounds
      .flat()
      .map((round) => round[kind])
      .sort((left, right) => left - right);
    return all[Math.floor(all.length / 2)] ?? Number.NaN;
  };
  return { readP99: median('readP99'), fsyncP99: median('fsyncP99') };
}
