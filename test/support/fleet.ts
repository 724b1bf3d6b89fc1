import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ApiClient } from '../../src/api/client.ts';
import { systemClock } from '../../src/base/clock.ts';
import { isGodwitError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import type { ApiEvent, CreateMachineRequest, MachineView } from '../../src/contract/schemas.ts';
import { readMountTable } from '../../src/host/mount-table.ts';
import { isAlive, type ProcessIdentity } from '../../src/host/process-identity.ts';
import type { RunView } from '../../src/journal/run.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { OperationArgs, OperationResult, VolumeOperation } from '../../src/opening/operations.ts';
import { cleanUpAfterDeadShim } from '../../src/shim/cleanup.ts';
import { ShimClient } from '../../src/shim/client.ts';
import { readShimState, type ShimState } from '../../src/shim/state.ts';
import { type TlsFiles, TlsTrust } from '../../src/sys/tls-identity.ts';
import type { VolumeRecord } from '../../src/volume/record.ts';
import { workerPaths } from '../../src/worker/paths.ts';
import './compile-cache.ts';
import { type Ending, hasFailed, leaveFolder, tellState } from './failure.ts';
import {
  inPatience,
  type Look,
  NotWorthWaiting,
  patient,
  runToEnd,
  type UntilOptions,
  until,
} from './patience.ts';
import { reservePorts } from './ports.ts';
import { programPath } from './programs.ts';
import { requires } from './requires.ts';
import type { WriterCollector } from './writer-collector.ts';
import { writerConfig } from './writer-config.ts';

const MAIN = programPath('cli/main.ts');
const TOKEN = 'a-token-of-a-test-fleet';
/**
 * In the environment of every process of a worker: control, shims, volume servers. By it they are found and
 * ended.
 */
const MARK = 'GODWIT_TEST_WORKER';

const MIB = 2 ** 20;
const SHUTDOWN_TIMEOUT_MS = 20_000;

/** Skip value for tests with whole workers. */
export const fleetNeeds = requires(
  ...['root', '/dev/fuse', '/dev/loop-control', 'mkfs.ext4', 'losetup'],
  ...['unshare', 'nsenter', 'setpriv', 'mount', 'tini'],
);

/**
 * Worker processes on this host, each with a data folder of its own. All that they started is gone when the
 * test ends, however it ends.
 */
export class Fleet {
  readonly dir: string;
  /** Of its API. */
  readonly token = TOKEN;
  readonly workers: readonly FleetWorker[];

  /** Ends all waiting when the test is over: one of two things that are waited for may have failed. */
  readonly #closing: AbortController;
  readonly #test: Ending;

  private constructor(test: Ending, dir: string, workers: readonly FleetWorker[], closing: AbortController) {
    this.#test = test;
    this.dir = dir;
    this.workers = workers;
    this.#closing = closing;
  }

  /**
   * `flags`: of a worker's command line, beside those that make it part of the fleet. `dataDir`: a folder for
   * one worker's data that is not in the fleet's own folder, such as a small filesystem; the caller unmounts
   * it after the fleet is closed. `tls`: certificates of workers, whose API is then https. `host`: the
   * address of all of them, of loopback. `main`: the entry point of another version (earlier-version.ts), for
   * one worker. `crashAt`: where a worker kills itself, once (`FleetWorker.start`). `through`: what a worker's
   * process is begun by, and becomes it (`prlimit --nofile=64`).
   */
  static async start(
    t: Ending,
    names: readonly string[],
    options: {
      flags?: Readonly<Record<string, readonly string[]>>;
      dataDir?: Readonly<Record<string, string>>;
      tls?: Readonly<Record<string, TlsFiles>>;
      host?: string;
      main?: Readonly<Record<string, string>>;
      crashAt?: Readonly<Record<string, string>>;
      through?: Readonly<Record<string, readonly string[]>>;
    } = {},
  ): Promise<Fleet> {
    // Short: the path of a shim's socket has at most 107 bytes. Without links: mount tables have none.
    const dir = realpathSync(mkdtempSync(join(tmpdir(), 'gw-f-')));
    const tokenFile = join(dir, 'token');
    writeFileSync(tokenFile, TOKEN, { mode: 0o600 });
    const ports = await reservePorts(t, names.length, options.host);
    const closing = new AbortController();
    const { tls = {}, host = '127.0.0.1' } = options;
    const places = names.map((name, index) => ({
      name,
      url: `${tls[name] ? 'https' : 'http'}://${host}:${ports[index]}`,
    }));
    const workers = places.map(
      ({ name, url }) =>
        new FleetWorker({
          name,
          url,
          dataDir: options.dataDir?.[name] ?? join(dir, name),
          logPath: join(dir, `${name}.log`),
          signal: closing.signal,
          caFile: tls[name]?.caFile ?? null,
          main: options.main?.[name] ?? MAIN,
          through: options.through?.[name] ?? [],
          arguments: [
            ...['--name', name, '--listen', new URL(url).host, '--token-file', tokenFile],
            ...places
              .filter((peer) => peer.name !== name)
              .flatMap((peer) => ['--peer', `${peer.name}=${peer.url}`]),
            ...(tls[name] ? tlsFlags(tls[name]) : []),
            ...(options.flags?.[name] ?? []),
          ],
        }),
    );
    const caFile = Object.values(tls)[0]?.caFile;
    writeFileSync(join(dir, 'fleet.json'), JSON.stringify({ tokenFile: 'token', caFile, workers: places }));
    const fleet = new Fleet(t, dir, workers, closing);
    t.after(() => fleet.close());
    await Promise.all(workers.map((worker) => worker.start({ crashAt: options.crashAt?.[worker.name] })));
    return fleet;
  }

  /**
   * Resolves with the first value that is neither null, undefined nor false; errors of `look` count as "not
   * yet".
   */
  until<Value>(what: string, look: Look<Value>, options: UntilOptions<Value> = {}): Promise<Value> {
    return until(what, look, { ...options, signal: this.#closing.signal });
  }

  worker(name: string): FleetWorker {
    const found = this.workers.find((worker) => worker.name === name);
    if (!found) throw new Error(`this fleet has no worker ${name}`);
    return found;
  }

  /** The workers that have the machine, by what they say themselves. */
  async owners(machineId: string): Promise<FleetWorker[]> {
    const all = await Promise.all(
      this.workers.map(async (worker) =>
        (await worker.client.listMachines()).some(({ id }) => id === machineId) ? worker : null,
      ),
    );
    return all.filter((worker) => worker !== null);
  }

  /** A machine that runs writer.ts on a volume of its own; resolves when it has acknowledged writes. */
  async writerMachine(
    worker: FleetWorker,
    collector: WriterCollector,
    options: {
      name: string;
      lengthBytes?: number;
      config?: Partial<CreateMachineRequest['config']>;
    },
  ): Promise<MachineView> {
    const { name } = options;
    const volume = await worker.client.createVolume({
      name: `${name}-data`,
      lengthBytes: options.lengthBytes ?? 64 * MIB,
      filesystem: 'ext4',
      ...(!worker.hasKeys && { encrypted: false }),
    });
    const machine = await worker.client.createMachine({
      name,
      start: true,
      config: {
        ...writerConfig(volume.id, String(collector.port), name),
        ...options.config,
      },
    });
    await collector.history(name).more(1);
    return machine;
  }

  /** Program and arguments of a godwit command of this fleet. */
  command(...words: string[]): [string, ...string[]] {
    const fleet = join(this.dir, 'fleet.json');
    return [process.execPath, '--disable-warning=ExperimentalWarning', MAIN, '--fleet', fleet, ...words];
  }

  /** Runs a godwit command to its end, without a terminal. */
  run(...words: string[]): Promise<{ exitCode: number | null; stdout: string; stderr: string }> {
    return this.runWith({}, ...words);
  }

  /** The same; fails where it ends with another code. */
  async reply(
    exitCode: number,
    ...words: string[]
  ): Promise<{ exitCode: number | null; stdout: string; stderr: string }> {
    const reply = await this.run(...words);
    assert.equal(reply.exitCode, exitCode, `${words.join(' ')}: ${reply.stdout}${reply.stderr}`);
    return reply;
  }

  /** The same, and all that it printed. */
  readonly godwit = async (exitCode: number, ...words: string[]): Promise<string> => {
    const { stdout, stderr } = await this.reply(exitCode, ...words);
    return stdout + stderr;
  };

  /** The same with something at its standard input. */
  runWith(
    options: { input?: string },
    ...words: string[]
  ): Promise<{ exitCode: number | null; stdout: string; stderr: string }> {
    const [program, ...rest] = this.command(...words);
    return runToEnd(program, rest, { ...options, signal: this.#closing.signal });
  }

  /** Starts a godwit command that goes on until it is interrupted. */
  follow(...words: string[]): {
    /** Its output when it has that text in it. */
    says: (text: string) => Promise<string>;
    interrupt: () => void;
    kill: (signal: NodeJS.Signals) => void;
    ended: Promise<{ exitCode: number | null; stderr: string }>;
  } {
    const [program, ...rest] = this.command(...words);
    const child = spawn(program, rest, {
      stdio: ['ignore', 'pipe', 'pipe'],
      signal: this.#closing.signal,
    });
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk) => (output.stdout += chunk));
    child.stderr.on('data', (chunk) => (output.stderr += chunk));
    child.on('error', () => {});
    let isOver = false;
    const ended = new Promise<{ exitCode: number | null; stderr: string }>((resolve) => {
      child.once('close', (exitCode) => {
        isOver = true;
        resolve({ exitCode, stderr: output.stderr });
      });
    });
    return {
      says: (text) =>
        this.until(`the command to say ${text}`, () => {
          if (output.stdout.includes(text)) return output.stdout;
          if (isOver) throw new NotWorthWaiting(`it ended: ${output.stderr}`);
          return null;
        }),
      interrupt: () => child.kill('SIGINT'),
      kill: (signal) => child.kill(signal),
      ended,
    };
  }

  /** The machine's moves at that worker, newest first. */
  async moves(source: FleetWorker, machineId: string): Promise<RunView[]> {
    const runs = await source.client.listRuns({ resource: `machine:${machineId}`, state: 'all', limit: 100 });
    return runs
      .filter(({ kind }) => kind === 'migrate-out')
      .sort((left, right) => right.createdAtMs - left.createdAtMs);
  }

  /** Resolves with the source's run when both sides of the move are over. */
  async ended(source: FleetWorker, target: FleetWorker, runId: string): Promise<RunView> {
    const out = await source.ended(runId);
    const inside = await this.until(`the end of run ${targetRunId(runId)} at ${target.name}`, async () => {
      try {
        const run = await target.client.showRun(targetRunId(runId));
        return run.endedAtMs === null ? null : run;
      } catch (error) {
        if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return 'never there' as const;
        throw error;
      }
    });
    if (out.state === 'done' && (inside === 'never there' || inside.state !== 'done')) {
      throw new Error(
        `the source is done, and the target ${inside === 'never there' ? inside : inside.state}`,
      );
    }
    return out;
  }

  /**
   * Ends every process of every worker, and gives back all that they held. Rejects when something is left.
   */
  async close(): Promise<void> {
    const errors: unknown[] = [];
    if (hasFailed(this.#test)) await Promise.all(this.workers.map((worker) => worker.tell()));
    this.#closing.abort(new Error('the test is over'));
    for (const worker of this.workers) worker.client.close();
    await Promise.all(this.workers.map((worker) => worker.kill()));
    await Promise.all(
      this.workers.map((worker) => worker.cleanUp().catch((error: unknown) => errors.push(error))),
    );
    if (errors.length > 0) throw errors[0];
    leaveFolder(this.#test, this.dir);
  }
}

export function tlsFlags({ certFile, keyFile, caFile }: TlsFiles): string[] {
  return ['--tls-cert', certFile, '--tls-key', keyFile, '--tls-ca', caFile];
}

type WorkerStart = { crashAt?: string | null | undefined; without?: string };

type FleetWorkerOptions = {
  name: string;
  url: string;
  dataDir: string;
  logPath: string;
  signal: AbortSignal;
  caFile: string | null;
  main: string;
  through: readonly string[];
  arguments: readonly string[];
};

/**
 * One worker: its process, which may be killed and started again, and all that goes on running without it.
 */
export class FleetWorker {
  readonly name: string;
  readonly url: string;
  readonly dataDir: string;
  readonly client: ApiClient;
  readonly #options: FleetWorkerOptions;
  #main: string;
  #child: ChildProcess | null = null;
  #exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }> = Promise.resolve({
    code: 0,
    signal: null,
  });

  constructor(options: FleetWorkerOptions) {
    this.#options = options;
    this.#main = options.main;
    this.name = options.name;
    this.url = options.url;
    mkdirSync(options.dataDir, { recursive: true, mode: 0o700 });
    this.dataDir = realpathSync(options.dataDir);
    const tls = options.caFile === null ? undefined : new TlsTrust(options.caFile);
    this.client = new ApiClient({ url: options.url, token: TOKEN, tls, timeoutMs: patient(60_000) });
  }

  /** The next start is of this version, on the same data. */
  upgrade(): void {
    this.#main = MAIN;
  }

  /** It was started with a place where keys come from. */
  get hasKeys(): boolean {
    return this.#options.arguments.some((word) => word.startsWith('--key-'));
  }

  /** Of the control process; throws when there is none. */
  get pid(): number {
    const pid = this.#child?.pid;
    if (pid === undefined || !this.isRunning) throw new Error(`${this.name} does not run`);
    return pid;
  }

  get isRunning(): boolean {
    return this.#child !== null && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /**
   * Starts the control process, and resolves when it answers. `crashAt`: where it kills itself, once
   * (src/journal/crash-points.ts). `without`: a peer that is none any more.
   */
  async start(options: WorkerStart = {}): Promise<void> {
    this.spawn(options);
    await this.healthy();
  }

  /** As `start`, without waiting. */
  spawn(options: WorkerStart = {}): void {
    if (this.isRunning) throw new Error(`${this.name} runs already`);
    const { crashAt, without } = options;
    const marker = join(this.#options.logPath, '..', `${this.name}.crashed`);
    rmSync(marker, { force: true });
    const log = openSync(this.#options.logPath, 'a', 0o600);
    const [program, ...words] = [
      ...this.#options.through,
      ...[process.execPath, '--disable-warning=ExperimentalWarning'],
      ...[this.#main, 'worker', '--data', this.dataDir],
      ...withoutPeer(this.#options.arguments, without),
    ] as [string, ...string[]];
    const child = spawn(program, words, {
      stdio: ['ignore', log, log],
      detached: true,
      env: {
        ...process.env,
        [MARK]: this.dataDir,
        ...(crashAt ? { GODWIT_CRASH_AT: crashAt, GODWIT_CRASH_MARKER: marker } : {}),
      },
    });
    closeSync(log);
    this.#child = child;
    this.#exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve({ code, signal }));
      child.once('error', () => resolve({ code: null, signal: null }));
    });
  }

  async healthy(): Promise<void> {
    await until(
      `${this.name} to answer`,
      async () => {
        if (!this.isRunning)
          throw new NotWorthWaiting(`${this.name} ended while it started:\n${this.logTail()}`);
        return (await this.client.worker({ timeoutMs: patient(5_000) })).name === this.name;
      },
      { signal: this.#options.signal, state: () => this.logTail() },
    );
  }

  /** SIGKILL for the control process alone; machines and exports go on. Resolves when it is gone. */
  async kill(): Promise<void> {
    if (this.isRunning) this.#child?.kill('SIGKILL');
    await this.#exited;
  }

  /** Resolves when the control process has killed itself at its crash point. */
  async crashed(): Promise<void> {
    const { signal } = this.#options;
    const state = async () => (await this.client.listRuns({ state: 'unfinished', limit: 10 })) as unknown;
    await until(`${this.name} to come to its crash point`, () => !this.isRunning, { signal, state });
    const end = await this.#exited;
    if (end.signal !== 'SIGKILL') {
      throw new Error(`${this.name} ended with ${end.code ?? end.signal}:\n${this.logTail()}`);
    }
  }

  /**
   * What a power cut does to the processes and the memory of this host: all ends at once, without a word, and
   * the live bits of clones, which are in memory, are lost. What the host had not yet written from its page
   * cache stays, unlike in a power cut: the clone simulation has that part.
   */
  async powerOff(): Promise<void> {
    if (this.isRunning) this.#child?.kill('SIGKILL');
    const shims = this.shims();
    for (const { state } of shims) for (const identity of processesOf(state)) killProcess(identity);
    await this.#exited;
    // The ones that a control process had started and not yet written down.
    await this.#endMarkedProcesses();
    rmSync(workerPaths(this.dataDir).validityDir, { recursive: true, force: true });
  }

  /** Asks the volume server of a machine, past the control process. */
  async volumeCommand<Op extends VolumeOperation>(
    machineId: string,
    op: Op,
    args: OperationArgs<Op>,
  ): Promise<OperationResult<Op>> {
    const client = await ShimClient.connect(join(workerPaths(this.dataDir).runtimeRoot, machineId), {
      clock: systemClock,
    });
    try {
      return await client.volume(op, args);
    } finally {
      client.close();
    }
  }

  /** All that it tells of from now on, until `signal`. */
  listen(signal: AbortSignal): ApiEvent[] {
    const events: ApiEvent[] = [];
    void (async () => {
      for await (const event of this.client.events(signal)) events.push(event);
    })().catch(() => {});
    return events;
  }

  /** Shims that have left word of themselves, machines' and exports' (`x_…`). */
  shims(): { id: string; runtimeDir: string; state: ShimState }[] {
    const { runtimeRoot } = workerPaths(this.dataDir);
    return folders(runtimeRoot).flatMap((id) => {
      const runtimeDir = join(runtimeRoot, id);
      const state = readShimState(runtimeDir);
      return state === null ? [] : [{ id, runtimeDir, state }];
    });
  }

  /** Shims of exports whose process lives. */
  exports(): { id: string; runtimeDir: string; state: ShimState }[] {
    return this.shims().filter(({ id, state }) => id.startsWith('x_') && isAlive(state.shim));
  }

  /** As it is on disk; null when this worker has no such volume. */
  volumeRecord(volumeId: string): VolumeRecord | null {
    try {
      return JSON.parse(
        readFileSync(join(this.dataDir, 'volumes', volumeId, 'volume.json'), 'utf8'),
      ) as VolumeRecord;
    } catch {
      return null;
    }
  }

  /** Resolves with the run when it is over; goes on asking while this worker is away. */
  async ended(runId: string): Promise<RunView> {
    return until(`the end of run ${runId} at ${this.name}`, () => this.client.showRun(runId), {
      is: ({ endedAtMs }) => endedAtMs !== null,
      signal: this.#options.signal,
    });
  }

  /** For the person who reads of a failure: its machines, and what its runs wait for. */
  async tell(): Promise<void> {
    if (!this.isRunning) return tellState(`${this.name} does not run`, async () => []);
    await tellState(`what ${this.name} says`, async () => {
      const asked = Promise.all([this.client.listMachines(), this.client.listRuns({ state: 'unfinished' })]);
      const [machines, runs] = await inPatience(`an answer of ${this.name}`, asked, { patienceMs: 3_000 });
      return [...machines, ...runs].map((one) => JSON.stringify(one));
    });
  }

  logTail(): string {
    return readFileSync(this.#options.logPath, 'utf8').split('\n').slice(-15).join('\n');
  }

  /**
   * Ends shims and volume servers, living or dead, with all that they hold. The control process must be gone.
   */
  async cleanUp(): Promise<void> {
    const { runtimeRoot, validityDir } = workerPaths(this.dataDir);
    const errors: unknown[] = [];
    await Promise.all(
      folders(runtimeRoot).map((id) =>
        endShim(join(runtimeRoot, id)).catch((error: unknown) => errors.push(error)),
      ),
    );
    await this.#endMarkedProcesses();
    rmSync(validityDir, { recursive: true, force: true });
    const mounts = readMountTable().filter(({ mountPoint }) => mountPoint.startsWith(`${this.dataDir}/`));
    const loops = loopFiles().filter((file) => file.startsWith(`${this.dataDir}/`));
    if (errors.length === 0 && (mounts.length > 0 || loops.length > 0)) {
      const left = [...mounts.map(({ mountPoint }) => mountPoint), ...loops];
      errors.push(new Error(`left behind: ${left.join(', ')}`));
    }
    if (errors.length > 0) throw errors[0];
  }

  /** Processes of godwit that live now, and the programs that they run; not those of machines. */
  pids(): number[] {
    const mark = `${MARK}=${this.dataDir}`;
    return folders('/proc')
      .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
      .filter((pid) => environmentOf(pid).includes(mark))
      .map(Number);
  }

  async #endMarkedProcesses(): Promise<void> {
    for (const pid of this.pids()) killPid(pid);
    await until(`the processes of ${this.name} to end`, () => this.pids(), {
      is: (pids) => pids.length === 0,
    });
  }
}

/** `words` of a command line without the option of that peer. */
function withoutPeer(words: readonly string[], name: string | undefined): string[] {
  if (name === undefined) return [...words];
  const index = words.findIndex((word) => word.startsWith(`${name}=`));
  return words.filter((_, at) => at !== index && at !== index - 1);
}

/** Orderly, as long as it goes; otherwise like the clean-up after a dead shim. */
async function endShim(runtimeDir: string): Promise<void> {
  const client = await ShimClient.connect(runtimeDir, { clock: systemClock }).catch(() => null);
  if (client !== null) {
    await client.call('shutdown', {}, patient(SHUTDOWN_TIMEOUT_MS)).catch(() => {});
    client.close();
  }
  const state = readShimState(runtimeDir);
  if (state !== null && isAlive(state.shim)) {
    await until('the shim to end', () => !isAlive(state.shim), { patienceMs: 1_000 }).catch(() => {});
    killProcess(state.shim);
    await until(`shim ${state.shim.pid} to end`, () => !isAlive(state.shim));
  }
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
}

function processesOf(state: ShimState): ProcessIdentity[] {
  return [state.shim, state.volumeServer, state.machineInit].filter((identity) => identity !== null);
}

/** SIGKILL for exactly that process. */
export function killProcess(identity: ProcessIdentity): void {
  if (isAlive(identity)) killPid(identity.pid);
}

function killPid(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It ended in between.
  }
}

function folders(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map(({ name }) => name);
  } catch {
    return [];
  }
}

function environmentOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
  } catch {
    return [];
  }
}

function loopFiles(): string[] {
  return readdirSync('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .map((name) => {
      try {
        return readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trim();
      } catch {
        return '';
      }
    });
}
