import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { availableParallelism, constants } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { CLIENT_LIMITS } from '../../src/base/client-account.ts';
import { HANDSHAKES } from '../../src/base/doorkeeper.ts';
import { seededRandom } from '../../src/base/random.ts';
import type { CreateMachineRequest, MachineView, ServeReply } from '../../src/contract/schemas.ts';
import { TARGET_LIMITS } from '../../src/iscsi/limits.ts';
import { SERVER_LIMITS } from '../../src/nbd/limits.ts';
import { setNice } from '../../src/sys/process-priority.ts';
import type { TlsFiles } from '../../src/sys/tls-identity.ts';
import { Fleet, type FleetWorker } from '../support/fleet.ts';
import { patient, until } from '../support/patience.ts';
import { findProgram } from '../support/requires.ts';
import { TestAuthority } from '../support/test-authority.ts';
import type { SoakContext } from './soaks.ts';

/**
 * One worker with machines that write and verify (fio), first in quiet, then among hostile peers of every
 * kind: of a volume that is served over NBD, of one that is served over iSCSI, and of the API. Meanwhile
 * libnbd reads the one, an initiator in Python logs in to the other, and a client with the token asks the
 * API, all the time.
 *
 * What must hold: no byte wrong, no I/O error; fsync and read p99 of the machines within 1.5 of what they are
 * on processors that are busy for nobody; memory within what docs/nbd.md and docs/iscsi.md say; everybody
 * honest is served. GODWIT_SOAK_MACHINES and GODWIT_SOAK_PEERS make it smaller; with GODWIT_SOAK_TLS=1 the
 * API and NBD are under TLS, and half handshakes are among the peers.
 */
const MIB = 2 ** 20;
const MACHINES = Number(process.env.GODWIT_SOAK_MACHINES ?? 10);
const PEERS = Number(process.env.GODWIT_SOAK_PEERS ?? 200);
const TLS = process.env.GODWIT_SOAK_TLS === '1';
const ROUND_SECONDS = 10;
/** Of the time that it has: to end all that it began. */
const TEAR_DOWN_MS = 40_000;
/** With fewer of them there are no rounds of fio that could be compared. */
const MINUTES_MIN = 3;
const VOLUME_BYTES = 64 * MIB;
const LATENCY_FACTOR_MAX = 1.5;
/**
 * Of a process that serves, beside its book: buffers that are kept for later and what V8 has not collected
 * (docs/nbd.md, docs/iscsi.md).
 */
const ALLOWANCE_BYTES = 96 * MIB;
/** Of a connection in its handshake, and with OpenSSL of any. */
const HANDSHAKE_BYTES = 0.2 * MIB;
const TLS_BYTES = 0.25 * MIB;
/** Of the worker, whose peers hold 1,024 connections at most. */
const WORKER_GROWTH_BYTES_MAX = 256 * MIB;
const HONEST_WITHIN_MS = 2_000;

const SERVICES = ['nbd', 'iscsi', 'api'] as const;
type Service = (typeof SERVICES)[number];
type Honest = { asked: number; served: number; slowestMs: number };
/** Milliseconds. */
type Latencies = { readP99: number; fsyncP99: number };
type Report = {
  machines: number;
  peers: number;
  /** Nothing else is done; the same with processors that are busy for nobody; among the peers. */
  quiet: Latencies;
  busy: Latencies;
  attacked: Latencies;
  rounds: number;
  errors: string[];
  honest: Record<Service, Honest>;
  grownBytes: { worker: number; nbd: number; iscsi: number };
  /** Processors that were busy with it, on average: of what is slow, whose doing it is. */
  processors: { quiet: Processors; attacked: Processors };
};
type Processors = { worker: number; nbd: number; iscsi: number; peers: number };

/**
 * Each line of `rounds`: nanoseconds of the 99th percentile of reads and of fsync. A round that fio ends with
 * an error is in `failed`, and the last.
 */
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
  // Whoever ends the soak gets the processes, mounts and devices of the worker back.
  const cut = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => cut.abort());
  if (context.minutes < MINUTES_MIN) {
    context.log(`${context.minutes.toFixed(1)} minutes are too few for a round`);
    await sleep(context.minutes * 60_000, undefined, { signal: cut.signal }).catch(() => {});
    return;
  }
  const report = await soak(context, cut.signal);
  if (cut.signal.aborted) throw new Error('it was ended before its time');
  writeFileSync(join(context.stateFolder, 'hostile-peers.json'), `${JSON.stringify(report, null, 2)}\n`);
  context.log(JSON.stringify(report));
  const failures = faultsOf(report);
  if (failures.length > 0) throw new Error(failures.join('; '));
}

/** What of the report may not be. */
function faultsOf({ busy, attacked, errors, honest, grownBytes }: Report): string[] {
  const faults = [...errors];
  for (const kind of ['readP99', 'fsyncP99'] as const) {
    const factor = attacked[kind] / busy[kind];
    if (!(factor <= LATENCY_FACTOR_MAX))
      faults.push(`${kind} is ${factor.toFixed(2)} of what it is on busy processors`);
  }
  for (const service of SERVICES) {
    const { asked, served, slowestMs } = honest[service];
    if (served < asked) faults.push(`${service}: ${asked - served} of ${asked} were not served`);
    if (slowestMs > patient(HONEST_WITHIN_MS)) faults.push(`${service}: somebody waited ${slowestMs} ms`);
  }
  const { sharedBytesMax, connectionBytesReserved } = CLIENT_LIMITS;
  const handshakeBytes = HANDSHAKE_BYTES + (TLS ? TLS_BYTES : 0);
  const clients = { nbd: SERVER_LIMITS.connectionsMax, iscsi: TARGET_LIMITS.connectionsMax };
  for (const service of ['nbd', 'iscsi'] as const) {
    const most =
      sharedBytesMax +
      clients[service] * (connectionBytesReserved + (TLS ? TLS_BYTES : 0)) +
      HANDSHAKES.placesMax * handshakeBytes +
      ALLOWANCE_BYTES;
    if (grownBytes[service] > most)
      faults.push(`the ${service} server grew by ${grownBytes[service]} of ${most} bytes`);
  }
  if (grownBytes.worker > WORKER_GROWTH_BYTES_MAX)
    faults.push(`the worker grew by ${grownBytes.worker} bytes`);
  return faults;
}

async function soak({ minutes, seed, stateFolder, log }: SoakContext, cut: AbortSignal): Promise<Report> {
  const endsMs = performance.now() + minutes * 60_000 - TEAR_DOWN_MS;
  const endings: (() => unknown)[] = [];
  const after = (ending: () => unknown) => void endings.push(ending);
  try {
    const authority = TLS ? new TestAuthority(join(stateFolder, 'authority')) : null;
    const tls = authority === null ? {} : { alpha: authority.issue('server') };
    const clientFiles = authority?.issue('client') ?? null;
    const fleet = await Fleet.start({ after } as Parameters<typeof Fleet.start>[0], ['alpha'], { tls });
    const worker = fleet.worker('alpha');
    const machines = await makeMachines(worker);
    const nbd = await serve(worker, 'nbd');
    const iscsi = await serve(worker, 'iscsi');
    const places: Places = {
      nbdPort: nbd.port,
      nbdUri: authority === null ? nbd.location : `${nbd.location}?tls-certificates=${authority.dir}`,
      clientFiles,
      iscsi: {
        port: iscsi.port,
        target: /iqn[^/]+/.exec(iscsi.location)![0],
        initiator: 'iqn.2026-01.dev.godwit:soak',
        user: iscsi.chap!.user,
        secret: iscsi.chap!.secret,
      },
      apiPort: Number(new URL(worker.url).port),
    };
    const watch = new Watch(worker, places, { nbd: nbd.pid, iscsi: iscsi.pid });
    after(() => watch.end());
    cut.addEventListener('abort', () => watch.end());
    const phaseMs = (endsMs - performance.now()) / 3;
    log(`${machines.length} machines in quiet`);
    const quiet = await watch.run(phaseMs / 2);
    const quietRounds = await roundsOf(worker, machines);
    const others = busyOthers();
    after(() => others.stop());
    await watch.run(phaseMs / 2);
    others.stop();
    const calmRounds = await roundsOf(worker, machines);
    log(`${PEERS} peers`);
    const hostile = new Crowd(seed, places, stateFolder);
    after(() => hostile.stop());
    const attacked = await watch.run(2 * phaseMs, hostile);
    for (const { id, runtimeDir } of worker.shims()) {
      const logFile = join(runtimeDir, 'volume-server.log');
      if (id.startsWith('s_') && existsSync(logFile)) copyFileSync(logFile, join(stateFolder, `${id}.log`));
    }
    const all = await roundsOf(worker, machines);
    const errors = await failuresOf(worker, machines);
    const since = (after: Latencies[][], rounds: Latencies[][]) =>
      rounds.map((each, index) => each.slice(after[index]!.length + 1));
    return {
      machines: machines.length,
      peers: PEERS,
      quiet: medianOf(quietRounds),
      busy: medianOf(since(quietRounds, calmRounds)),
      attacked: medianOf(since(calmRounds, all)),
      rounds: all.flat().length,
      errors,
      honest: watch.honest,
      grownBytes: watch.grownBytes,
      processors: { quiet, attacked },
    };
  } finally {
    for (const ending of endings.reverse()) await ending();
  }
}

/**
 * Peers are on hosts of their own, but here they take what is idle of the processors, and a machine is slower
 * beside somebody who takes only what nobody wants. What the servers do to it is seen against that.
 */
function busyOthers(): { stop: () => void } {
  const others = Array.from({ length: availableParallelism() }, () => {
    // Not longer than there is who would end it.
    const words = ['-c', 'while kill -0 "$PPID"; do :; done'];
    const child = spawn('sh', words, { stdio: 'ignore', detached: true });
    if (child.pid !== undefined) setNice(child.pid, constants.priority.PRIORITY_LOW);
    return child;
  });
  return {
    stop: () => {
      for (const child of others) child.kill('SIGKILL');
    },
  };
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

type ServedVolume = { location: string; port: number; chap: ServeReply['chap']; pid: number };

/** A volume of its own for each service. */
async function serve(worker: FleetWorker, protocol: 'nbd' | 'iscsi'): Promise<ServedVolume> {
  const before = worker.shims().map(({ id }) => id);
  const volume = await worker.client.createVolume({
    name: `served-${protocol}`,
    lengthBytes: VOLUME_BYTES,
    filesystem: 'none',
    encrypted: false,
  });
  const { location, chap } = await worker.client.serveVolume(volume.id, {
    protocol,
    listen: '127.0.0.1:0',
    writable: true,
    ...(protocol === 'nbd' && !TLS && { openToHost: true }),
  });
  // A shim writes down what it has started a moment after that.
  const pid = await until(`the volume server of ${location}`, () => {
    const shim = worker.shims().find(({ id }) => id.startsWith('s_') && !before.includes(id));
    return shim?.state.volumeServer?.pid;
  });
  return { location, port: Number(/:(\d+)\//.exec(location)![1]), chap, pid };
}

function residentBytesOf(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kib ?? 0) * 1024;
}

/**
 * User and system time of a process, and of its children that have ended when `withChildren`. Ticks of 10 ms.
 */
function busySecondsOf(pid: number, withChildren = false): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [utime, stime, cutime, cstime] = fields.slice(11, 15).map(Number);
    return (withChildren ? cutime! + cstime! : utime! + stime!) / 100;
  } catch {
    return 0;
  }
}

/** Where peers, honest and other, go. */
type Places = {
  nbdPort: number;
  nbdUri: string;
  clientFiles: TlsFiles | null;
  /** As test/fixtures/iscsi_peer.py has it. */
  iscsi: { port: number; target: string; initiator: string; user: string; secret: string };
  apiPort: number;
};

type Pids = { worker: number; nbd: number; iscsi: number };

/** Asks, as honest clients do, and looks at the memory. */
class Watch {
  readonly honest: Record<Service, Honest> = {
    nbd: { asked: 0, served: 0, slowestMs: 0 },
    iscsi: { asked: 0, served: 0, slowestMs: 0 },
    api: { asked: 0, served: 0, slowestMs: 0 },
  };
  readonly grownBytes = { worker: 0, nbd: 0, iscsi: 0 };
  readonly #worker: FleetWorker;
  readonly #places: Places;
  readonly #pids: Pids;
  readonly #beforeBytes: Pids;
  #over = false;

  constructor(worker: FleetWorker, places: Places, servers: { nbd: number; iscsi: number }) {
    this.#worker = worker;
    this.#places = places;
    this.#pids = { worker: worker.pid, ...servers };
    const of = (name: keyof Pids) => residentBytesOf(this.#pids[name]);
    this.#beforeBytes = { worker: of('worker'), nbd: of('nbd'), iscsi: of('iscsi') };
  }

  end(): void {
    this.#over = true;
  }

  async run(forMs: number, crowd: Crowd | null = null): Promise<Processors> {
    const startedMs = performance.now();
    const busyAt = () => ({ ...this.#serversBusy(), peers: crowd?.busySeconds() ?? 0 });
    const before = busyAt();
    await this.#look(forMs);
    const after = busyAt();
    const seconds = (performance.now() - startedMs) / 1_000;
    const share = (name: keyof Processors) =>
      Math.round((100 * (after[name] - before[name])) / seconds) / 100;
    return { worker: share('worker'), nbd: share('nbd'), iscsi: share('iscsi'), peers: share('peers') };
  }

  #serversBusy(): Record<keyof Pids, number> {
    const { worker, nbd, iscsi } = this.#pids;
    return { worker: busySecondsOf(worker), nbd: busySecondsOf(nbd), iscsi: busySecondsOf(iscsi) };
  }

  async #look(forMs: number): Promise<void> {
    const untilMs = performance.now() + forMs;
    const { nbdUri, iscsi } = this.#places;
    const inVain = { timeout: PATIENCE_MS };
    while (!this.#over && performance.now() < untilMs) {
      await this.#ask('nbd', () => promisify(execFile)(findProgram('nbdinfo')!, ['--size', nbdUri], inVain));
      const login = JSON.stringify({ ...iscsi, rounds: 1, seconds: PATIENCE_MS / 1_000 });
      await this.#ask('iscsi', async () => {
        const words = [ISCSI_PEERS, 'logs_in', login];
        const { stdout } = await promisify(execFile)(findProgram('python3')!, words, inVain);
        const { waitsMs } = JSON.parse(stdout) as { waitsMs: number[] };
        if (waitsMs.includes(-1)) throw new Error('not let in');
        if (waitsMs[0]! > HONEST_WITHIN_MS)
          process.stdout.write(`${new Date().toISOString()} iscsi: ${stdout}`);
      });
      await this.#ask('api', () => this.#worker.client.worker());
      for (const name of ['worker', 'nbd', 'iscsi'] as const) {
        const grown = residentBytesOf(this.#pids[name]) - this.#beforeBytes[name];
        this.grownBytes[name] = Math.max(this.grownBytes[name], grown);
      }
      await sleep(200);
    }
  }

  /** As a client does: again, at once, for as long as it is patient. */
  async #ask(service: Service, question: () => Promise<unknown>): Promise<void> {
    const honest = this.honest[service];
    honest.asked += 1;
    const startedMs = performance.now();
    while (performance.now() - startedMs < PATIENCE_MS) {
      try {
        await question();
        honest.served += 1;
        break;
      } catch {
        await sleep(20);
      }
    }
    honest.slowestMs = Math.max(honest.slowestMs, Math.round(performance.now() - startedMs));
  }
}

const NBD_PEERS = fileURLToPath(new URL('../support/hostile-nbd-peer.py', import.meta.url));
const ISCSI_PEERS = fileURLToPath(new URL('../fixtures/iscsi_peer.py', import.meta.url));
/** Of an honest client. */
const PATIENCE_MS = 30_000;
const NBD_KINDS = ['silent', 'idle', 'flush', 'read', 'status', 'drip', ...(TLS ? ['half-tls'] : [])];
/** Each begins anew after so long. */
const ISCSI_KINDS = ['idle', 'guesses', 'endless_login'];
/**
 * They hold the secret, and have a session each: fewer than a grant has, of which each of the secret is worth
 * one.
 */
const ISCSI_SESSION_KINDS = ['pings', 'inquiries', 'verifies', 'unfinished_writes'];
const ISCSI_SESSIONS_MAX = TARGET_LIMITS.grantSessionsMax - 8;
const ISCSI_TURN_SECONDS = 45;
/** What an API peer says first, and then a byte at a time. */
const API_WORDS = [
  '',
  'GET /v1/worker HTTP/1.1\r\nx-long: ',
  'POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n',
  'GET /v1/worker HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(200),
];

/**
 * Two fifths of them at NBD and as many at iSCSI, by programs that know the protocols and not our code; the
 * rest at the API. Who is turned out comes again.
 */
class Crowd {
  readonly #children = new Set<ChildProcess>();
  readonly #random;
  #over = false;

  constructor(seed: number, places: Places, stateFolder: string) {
    this.#random = seededRandom(seed);
    const nbd = this.#divide(Math.floor((PEERS * 2) / 5), NBD_KINDS);
    const atIscsi = Math.floor((PEERS * 2) / 5);
    const sessions = Math.min(ISCSI_SESSIONS_MAX, Math.floor(atIscsi / 2));
    const iscsi = {
      ...this.#divide(atIscsi - sessions, ISCSI_KINDS),
      ...this.#divide(sessions, ISCSI_SESSION_KINDS),
    };
    const api = PEERS - Math.floor((PEERS * 2) / 5) * 2;
    writeFileSync(join(stateFolder, 'peers.json'), JSON.stringify({ seed, nbd, iscsi, api }));
    const { clientFiles } = places;
    const files = clientFiles === null ? [] : [clientFiles.certFile, clientFiles.keyFile, clientFiles.caFile];
    for (const [kind, count] of Object.entries(nbd))
      this.#keepUp([NBD_PEERS, kind, `${count}`, `${places.nbdPort}`, ...files]);
    for (const [kind, peers] of Object.entries(iscsi))
      this.#keepUp([
        ISCSI_PEERS,
        kind,
        JSON.stringify({ ...places.iscsi, peers, seconds: ISCSI_TURN_SECONDS }),
      ]);
    for (let index = 0; index < api; index += 1)
      this.#api(places.apiPort, API_WORDS[index % API_WORDS.length]!);
  }

  /** With the honest ones among the children of this process that have ended, which take little. */
  busySeconds(): number {
    let seconds = busySecondsOf(process.pid, true) + busySecondsOf(process.pid);
    for (const { pid } of this.#children) seconds += busySecondsOf(pid ?? 0);
    return seconds;
  }

  stop(): void {
    this.#over = true;
    for (const child of this.#children) child.kill('SIGKILL');
  }

  /** Of each kind at least one. */
  #divide(count: number, kinds: readonly string[]): Record<string, number> {
    const shares = Object.fromEntries(kinds.map((kind) => [kind, 1]));
    for (let left = count - kinds.length; left > 0; left -= 1)
      shares[kinds[this.#random.below(kinds.length)]!]! += 1;
    return shares;
  }

  #keepUp(words: readonly string[]): void {
    if (this.#over) return;
    const child = spawn(findProgram('python3')!, words, {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    // They are on hosts of their own: here they take no processor from anybody. It is what they make others
    // do that counts.
    if (child.pid !== undefined) setNice(child.pid, constants.priority.PRIORITY_LOW);
    this.#children.add(child);
    child.once('exit', () => {
      this.#children.delete(child);
      setTimeout(() => this.#keepUp(words), 100);
    });
  }

  #api(port: number, said: string): void {
    if (this.#over) return;
    const socket = connect(port, '127.0.0.1');
    const timer = setInterval(() => socket.write(said === '' ? '' : 'x'), 500);
    socket.pause();
    socket.on('error', () => {});
    socket.once('connect', () => socket.write(said));
    socket.once('close', () => {
      clearInterval(timer);
      setTimeout(() => this.#api(port, said), 50 + this.#random.below(200));
    });
  }
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
