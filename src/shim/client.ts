import { closeSync, mkdirSync, openSync, realpathSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { AnswerTime } from '../base/answer-time.ts';
import type { Clock } from '../base/clock.ts';
import { entryPoint } from '../base/entry-point.ts';
import { GodwitError, isDiskFull, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { ofEarlierProcess } from '../base/later-question.ts';
import { LineRpc, rpcTimeout } from '../base/line-rpc.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { ProcessPace } from '../base/process-pace.ts';
import { whileAlive } from '../base/while-alive.ts';
import { isAlive } from '../host/process-identity.ts';
import { forAnyShim } from '../opening/earlier-spec.ts';
import {
  OPERATIONS,
  type OperationArgs,
  type OperationResult,
  type OperationRow,
  type VolumeOperation,
} from '../opening/operations.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { fullness } from '../sys/file-system.ts';
import { startError, startProgram } from '../sys/start-program.ts';
import { isShimLocked, shimLockName } from './lock.ts';
import { SHIM, SHIM_EXIT_TAKEN, SHIM_FILES, type ShimOps } from './protocol.ts';
import { readShimState } from './state.ts';

/** sun_path of unix(7), with its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;
/**
 * A shim does little, and there is one for each machine: small code and one thread for the compiler are 2.4
 * MiB less of its own memory (bench/density.ts).
 */
const SHIM_NODE_FLAGS = ['--max-semi-space-size=1', '--v8-pool-size=1', '--optimize-for-size'] as const;
/** Less is soon gone: shim.json alone is a page, and written beside the old one. */
const SHIM_ROOM_BYTES_MIN = 64 * 1024;
/** Of the questions whether a shim lives. */
const SILENT_AFTER_QUESTIONS = 3;
export type StartShimOptions = {
  runtimeDir: string;
  /** Folders of the fleet that the machine must not see. */
  hidden: readonly string[];
  clock: Clock;
};

/**
 * Starts a shim that outlives this process, and connects to it. One that runs already is taken as it is.
 * Rejects `MACHINE_SHIM_NOT_STARTED`, `MACHINE_RUNTIME_NO_SPACE`, `MACHINE_PATH_TOO_LONG`.
 */
export async function startShim(options: StartShimOptions): Promise<ShimClient> {
  const { clock } = options;
  withShimRoom(options.runtimeDir, () => mkdirSync(options.runtimeDir, { recursive: true, mode: 0o700 }));
  // Mount tables have paths without symbolic links, so all of us use those.
  const runtimeDir = realpathSync(options.runtimeDir);
  const socketPath = join(runtimeDir, SHIM_FILES.socket);
  if (Buffer.byteLength(socketPath) > SOCKET_PATH_BYTES_MAX) {
    throw new GodwitError('MACHINE_PATH_TOO_LONG', `${socketPath} is too long for a unix socket`, {
      values: { path: socketPath, bytesMax: SOCKET_PATH_BYTES_MAX },
      retry: 'never',
      nextAction: 'Choose a shorter runtime folder for the worker.',
    });
  }
  const connect = () => ShimClient.find(runtimeDir, { clock });
  const running = await connect();
  if (running !== null) return running;

  const log = withShimRoom(runtimeDir, () => openSync(join(runtimeDir, SHIM_FILES.log), 'a', 0o600));
  let ended: string | undefined;
  let isTaken = false;
  const child = startProgram(
    process.execPath,
    [...SHIM_NODE_FLAGS, fileURLToPath(entryPoint('machine/shim.ts')), runtimeDir, ...options.hidden],
    {
      detached: true,
      stdio: ['ignore', log, log],
      cwd: '/',
      env: shimEnvironment(runtimeDir),
    },
  );
  closeSync(log);
  let hostError: GodwitError | null | undefined;
  child.on('error', (error) => {
    ended = error.message;
    hostError = startError(error);
  });
  child.on('exit', (code, signal) => {
    // Another start was quicker by so little that its socket is not there yet.
    isTaken = code === SHIM_EXIT_TAKEN;
    if (isTaken) return;
    ended = `it ended with ${code ?? signal}`;
  });
  child.unref();
  const pace = new ProcessPace(child.pid ?? 0, clock);
  while (true) {
    // The end is looked at first: one that could not start because another did has left that other one to
    // connect to.
    const over =
      ended ??
      (pace.isQuiet() ? (isTaken ? takenText(runtimeDir) : `it does nothing: ${pace.text()}`) : undefined);
    const client = await connect();
    if (client !== null) {
      // Another start was quicker. Ours is only just coming up, and would take the place of that shim when it
      // ends.
      const { shimPid } = await client.call('status', {});
      if (shimPid !== child.pid) child.kill('SIGKILL');
      return client;
    }
    // It was kept out by one that has ended meanwhile.
    if (isTaken && !(await isShimLocked(runtimeDir))) return startShim(options);
    if (hostError) throw hostError;
    if (over !== undefined) throw await notStarted(runtimeDir, over);
    await clock.sleep(PAUSE.processLook.ms);
  }
}

async function notStarted(runtimeDir: string, why: string): Promise<GodwitError> {
  // One that ends for want of room has none to say so.
  const full = await shimRoomLacks(runtimeDir);
  if (full !== null) return noShimRoom(runtimeDir, full);
  return new GodwitError('MACHINE_SHIM_NOT_STARTED', `the shim of ${runtimeDir} did not start: ${why}`, {
    values: { runtimeDir },
    retry: 'later',
    nextAction: `Look at ${join(runtimeDir, SHIM_FILES.log)}.`,
  });
}

/** Of a shim of a version that does not come back by itself. */
function takenText(runtimeDir: string): string {
  const name = shimLockName(runtimeDir).replace('\0', '@');
  return `another one holds ${name}, lives, and has no socket there; "ss -xlp" shows its process, which somebody must end`;
}

/** For its state, its log, and the tables of a jail. `full`: the end of a sentence. */
function noShimRoom(runtimeDir: string, full: string): GodwitError {
  return new GodwitError(
    'MACHINE_RUNTIME_NO_SPACE',
    `there is no room for a shim in ${runtimeDir}: ${full}`,
    { values: { runtimeDir }, retry: 'never', nextAction: makeShimRoom(dirname(runtimeDir)) },
  );
}

/** What `make` makes. Throws `MACHINE_RUNTIME_NO_SPACE` where there is no room for it. */
function withShimRoom<Made>(runtimeDir: string, make: () => Made): Made {
  try {
    return make();
  } catch (error) {
    throw isDiskFull(error) ? noShimRoom(runtimeDir, messageOf(error)) : error;
  }
}

/** Why there is no room for another shim below a folder, as the end of a sentence; null: there is. */
export function shimRoomLacks(folder: string): Promise<string | null> {
  return fullness(folder, SHIM_ROOM_BYTES_MIN).catch(() => null);
}

/** What a person does about it. */
export function makeShimRoom(folder: string): string {
  return `See who fills it (df ${folder}; df -i ${folder}), remove that, or make the filesystem larger; machines that run go on meanwhile.`;
}

function shimEnvironment(runtimeDir: string): NodeJS.ProcessEnv {
  return {
    // Compiled code, shared by all shims and their volume servers: half the memory, and a start in a quarter
    // of the time.
    NODE_COMPILE_CACHE: join(dirname(runtimeDir), 'compile-cache'),
    // Threads of a volume server wait for the kernel and allocate hardly anything: an arena for each is 3 MiB
    // that nobody uses.
    MALLOC_ARENA_MAX: '2',
    ...process.env,
  };
}

/** What is at a runtime folder: a shim that answers, the remains of one that died, or nothing. */
export type ShimPresence = 'running' | 'dead' | 'absent';

/**
 * A shim that lives but does not take connections (it is just starting, or hangs, or somebody removed its
 * socket) counts as running.
 */
export async function findShim(runtimeDir: string): Promise<ShimPresence> {
  const socket = await tryConnect(runtimeDir);
  if (socket !== null) {
    socket.destroy();
    return 'running';
  }
  const state = readShimState(runtimeDir);
  if ((state !== null && isAlive(state.shim)) || (await isShimLocked(runtimeDir))) return 'running';
  return state === null ? 'absent' : 'dead';
}

/** A conversation with a shim; `LineRpc` over its socket. */
export type ShimConnection = Pick<LineRpc, 'call' | 'closed' | 'close'>;

/** Connects to the shim of a runtime folder; null: nobody listens there. */
export type Dial = (
  runtimeDir: string,
  onEvent: (event: string, data: unknown) => void,
) => Promise<ShimConnection | null>;

/** `dial` left out: over the shim's socket. */
export type ShimClientOptions = { clock: Clock; dial?: Dial };

/** A worker's side of a shim: calls, events, and connecting again when the connection was lost. */
export class ShimClient {
  readonly runtimeDir: string;
  #rpc: ShimConnection | undefined;
  #connecting: Promise<ShimConnection> | undefined;
  readonly #clock: Clock;
  readonly #dial: Dial;
  readonly #times = new AnswerTime({
    floorMs: PATIENCE.shimAnswer.ms,
    ceilingMs: PATIENCE.shimAnswerMax.ms,
  });
  readonly #listeners = new Set<(event: string, data: unknown) => void>();
  readonly #onClosed = new Set<() => void>();

  private constructor(runtimeDir: string, { clock, dial = dialShim }: ShimClientOptions) {
    this.runtimeDir = runtimeDir;
    this.#clock = clock;
    this.#dial = dial;
  }

  /** Connects to a running shim. Rejects `MACHINE_SHIM_GONE`. */
  static async connect(runtimeDir: string, options: ShimClientOptions): Promise<ShimClient> {
    const client = new ShimClient(runtimeDir, options);
    await client.#connected();
    return client;
  }

  /** Null where no shim runs. */
  static async find(runtimeDir: string, options: ShimClientOptions): Promise<ShimClient | null> {
    try {
      return await ShimClient.connect(runtimeDir, options);
    } catch (error) {
      if (isGodwitError(error, 'MACHINE_SHIM_GONE')) return null;
      throw error;
    }
  }

  /**
   * Asks the shim; connects first where the connection was lost. Rejects with the shim's error,
   * `MACHINE_SHIM_GONE` when there is none any more, `RPC_CLOSED` when it went in mid-question, `RPC_TIMEOUT`
   * after `timeoutMs`. Left out: an operation may take as long as it takes, as long as the shim answers how
   * it is; and an answer to just that is waited for as long as earlier ones took. Rejects
   * `RPC_EARLIER_VERSION` for an operation that came later than the shim.
   */
  call<Op extends keyof ShimOps>(
    op: Op,
    args: ShimOps[Op]['args'],
    timeoutMs?: number,
  ): Promise<ShimOps[Op]['result']> {
    return this.#laterThan(this.#call(op, args, timeoutMs), op, SHIM[op]);
  }

  async #call<Op extends keyof ShimOps>(
    op: Op,
    args: ShimOps[Op]['args'],
    timeoutMs: number | undefined,
  ): Promise<ShimOps[Op]['result']> {
    const rpc = await this.#connected();
    type Result = Promise<ShimOps[Op]['result']>;
    if (SHIM[op]?.patience === 'measured') return this.#measured(rpc, op, args, timeoutMs) as Result;
    if (timeoutMs !== undefined) return rpc.call(op, args, timeoutMs) as Result;
    return whileAlive((signal) => rpc.call(op, args, null, signal), {
      who: `the shim ${basename(this.runtimeDir)}`,
      ask: (signal) => rpc.call('status', {}, null, signal),
      times: this.#times,
      questionsMax: SILENT_AFTER_QUESTIONS,
      pauseMs: PAUSE.shimQuestion.ms,
      silent: (ms) => rpcTimeout(`${op}, nor to any other question,`, ms),
      clock: this.#clock,
    }) as Result;
  }

  /** Opens a volume in the shim; answers at once where it has it open. Rejects with what the backend says. */
  open(spec: OpeningSpec): Promise<ShimOps['volume.open']['result']> {
    return this.call('volume.open', { spec: forAnyShim(spec) });
  }

  /**
   * Asks the open volume of the shim. `volumeTimeoutMs`: how long the shim waits for its volume server
   * (`RPC_TIMEOUT`, `ATTACH_SERVER_NOT_READY`); `timeoutMs`: for how long the shim is waited for. Left out:
   * as `call`. Rejects `RPC_EARLIER_VERSION` for an operation that came later than who has the volume open.
   */
  async volume<Op extends VolumeOperation>(
    op: Op,
    args: OperationArgs<Op>,
    options: { volumeTimeoutMs?: number; timeoutMs?: number } = {},
  ): Promise<OperationResult<Op>> {
    const command = { op, args, timeoutMs: options.volumeTimeoutMs };
    const answered = this.call('volume.command', command, options.timeoutMs);
    return (await this.#laterThan(answered, op, OPERATIONS[op] as OperationRow)) as OperationResult<Op>;
  }

  /** With what it means that this shim, or its volume server, does not know a question. */
  #laterThan<T>(answered: Promise<T>, op: string, row: { since?: string } | undefined): Promise<T> {
    return answered.catch((error: unknown) => {
      const who = `the shim ${basename(this.runtimeDir)}, or its volume server,`;
      throw ofEarlierProcess(error, { op, since: row?.since, who });
    });
  }

  /** Also measures: it is what the shim is asked when something else takes long. */
  async #measured(
    rpc: ShimConnection,
    op: string,
    args: unknown,
    timeoutMs: number | undefined,
  ): Promise<unknown> {
    const askedMs = this.#clock.monotonicMs();
    const patienceMs = timeoutMs ?? Math.max(PATIENCE.shimStatus.ms, this.#times.patienceMs);
    try {
      const status = await rpc.call(op, args, patienceMs);
      this.#times.answered(this.#clock.monotonicMs() - askedMs);
      return status;
    } catch (error) {
      if (isGodwitError(error, 'RPC_TIMEOUT')) this.#times.unanswered();
      throw error;
    }
  }

  /** Events of the shim: `workload` (status), `volume` {event, data}. The returned function ends it. */
  onEvent(listener: (event: string, data: unknown) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Called when the connection is lost, for whatever reason: look with findShim. */
  onClosed(listener: () => void): () => void {
    this.#onClosed.add(listener);
    return () => this.#onClosed.delete(listener);
  }

  /** Ends the connection; the shim goes on. */
  close(): void {
    this.#onClosed.clear();
    this.#rpc?.close();
    this.#rpc = undefined;
  }

  async #connected(): Promise<ShimConnection> {
    if (this.#rpc !== undefined) return this.#rpc;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #connect(): Promise<ShimConnection> {
    const rpc = await this.#dial(this.runtimeDir, (event, data) => {
      for (const listener of this.#listeners) listener(event, data);
    });
    if (rpc === null)
      throw new GodwitError('MACHINE_SHIM_GONE', `no shim answers at ${this.runtimeDir}`, {
        values: { runtimeDir: this.runtimeDir },
        retry: 'later',
        nextAction:
          'The worker cleans up after it and starts the machine again; look at shim.log for why it ended.',
      });
    this.#rpc = rpc;
    void rpc.closed.then(() => {
      if (this.#rpc !== rpc) return;
      this.#rpc = undefined;
      for (const listener of this.#onClosed) listener();
    });
    return rpc;
  }
}

/** Over the shim's socket. */
export const dialShim: Dial = async (runtimeDir, onEvent) => {
  const socket = await tryConnect(runtimeDir);
  if (socket === null) return null;
  const rpc = new LineRpc(socket, socket, { onEvent });
  void rpc.closed.then(() => socket.destroy());
  return rpc;
};

const NOBODY = new Set(['ENOENT', 'ECONNREFUSED', 'ECONNRESET', 'ENOTDIR']);

/** Null when nobody listens there. */
function tryConnect(runtimeDir: string): Promise<Socket | null> {
  return new Promise((resolve, reject) => {
    const socket = connect(join(runtimeDir, SHIM_FILES.socket));
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (error) => {
      const code = systemErrorCode(error);
      // Reset: it was taken in, and the shim died before it was looked at.
      if (code !== undefined && NOBODY.has(code)) resolve(null);
      else reject(error);
    });
  });
}
