import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, realpathSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../base/clock.ts';
import { entryPoint } from '../base/entry-point.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { LineRpc } from '../base/line-rpc.ts';
import { isAlive } from './process-identity.ts';
import { SHIM_EXIT_TAKEN, SHIM_FILES, type ShimOps } from './shim-protocol.ts';
import { readShimState } from './shim-state.ts';

/** sun_path of unix(7), with its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;
const START_TIMEOUT_MS = 30_000;
const CONNECT_RETRY_MS = 5;

/** How long an answer may take when the caller does not say. Those that wait for a device are long on purpose. */
const TIMEOUT_MS: Record<keyof ShimOps, number> = {
  status: 10_000,
  'volume.open': 120_000,
  'volume.command': 60_000,
  'volume.close': 180_000,
  'fs.mount': 150_000,
  'fs.sync': 630_000,
  'fs.unmount': 150_000,
  'workload.prepare': 120_000,
  'workload.start': 120_000,
  'workload.stop': 60_000,
  'workload.exec': 30_000,
  'workload.awaitHealthy': 30_000,
  shutdown: 300_000,
};

export type StartShimOptions = {
  runtimeDir: string;
  /** Folders of the fleet that the machine must not see. */
  hidden: readonly string[];
  clock: Clock;
};

/**
 * Starts a shim that outlives this process, and connects to it. One that runs already is taken as it is.
 * Rejects `MACHINE_SHIM_NOT_STARTED`, `MACHINE_PATH_TOO_LONG`.
 */
export async function startShim(options: StartShimOptions): Promise<ShimClient> {
  const { clock } = options;
  mkdirSync(options.runtimeDir, { recursive: true, mode: 0o700 });
  // Mount tables have paths without symbolic links, so all of us use those.
  const runtimeDir = realpathSync(options.runtimeDir);
  const socketPath = join(runtimeDir, SHIM_FILES.socket);
  if (Buffer.byteLength(socketPath) > SOCKET_PATH_BYTES_MAX) {
    throw new GodwitError('MACHINE_PATH_TOO_LONG', `${socketPath} is too long for a unix socket`, {
      values: { path: socketPath, bytesMax: SOCKET_PATH_BYTES_MAX },
      nextAction: 'Choose a shorter runtime folder for the worker.',
    });
  }
  const running = await tryConnect(runtimeDir);
  if (running !== null) return new ShimClient(runtimeDir, running);

  const log = openSync(join(runtimeDir, SHIM_FILES.log), 'a', 0o600);
  let ended: string | undefined;
  const child = spawn(
    process.execPath,
    [
      '--max-semi-space-size=1',
      fileURLToPath(entryPoint('shim.ts', import.meta.url)),
      runtimeDir,
      ...options.hidden,
    ],
    {
      detached: true,
      stdio: ['ignore', log, log],
      cwd: '/',
      env: {
        ...process.env,
        // Compiled code, shared by all shims and their volume servers: half the memory, and a start in a quarter of the time.
        NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? join(dirname(runtimeDir), 'compile-cache'),
      },
    },
  );
  closeSync(log);
  child.on('error', (error) => {
    ended = error.message;
  });
  child.on('exit', (code, signal) => {
    // Another start was quicker by so little that its socket is not there yet.
    if (code === SHIM_EXIT_TAKEN) return;
    ended = `it ended with ${code ?? signal}`;
  });
  child.unref();
  const deadlineMs = clock.monotonicMs() + START_TIMEOUT_MS;
  while (true) {
    // The end is looked at first: one that could not start because another did has left that other one to connect to.
    const over =
      ended ?? (clock.monotonicMs() >= deadlineMs ? `no answer within ${START_TIMEOUT_MS} ms` : undefined);
    const socket = await tryConnect(runtimeDir);
    if (socket !== null) {
      const client = new ShimClient(runtimeDir, socket);
      // Another start was quicker. Ours is only just coming up, and would take the place of that shim when it ends.
      const { shimPid } = await client.call('status', {});
      if (shimPid !== child.pid) child.kill('SIGKILL');
      return client;
    }
    if (over !== undefined) {
      throw new GodwitError('MACHINE_SHIM_NOT_STARTED', `the shim of ${runtimeDir} did not start: ${over}`, {
        values: { runtimeDir },
        nextAction: `Look at ${join(runtimeDir, SHIM_FILES.log)}.`,
      });
    }
    await clock.sleep(CONNECT_RETRY_MS);
  }
}

/** What is at a runtime folder: a shim that answers, the remains of one that died, or nothing. */
export type ShimPresence = 'running' | 'dead' | 'absent';

/** A shim that lives but does not take connections (it is just starting, or hangs) counts as running. */
export async function findShim(runtimeDir: string): Promise<ShimPresence> {
  const socket = await tryConnect(runtimeDir);
  if (socket !== null) {
    socket.destroy();
    return 'running';
  }
  const state = readShimState(runtimeDir);
  if (state === null) return 'absent';
  return isAlive(state.shim) ? 'running' : 'dead';
}

/** A worker's side of a shim: calls, events, and connecting again when the connection was lost. */
export class ShimClient {
  readonly runtimeDir: string;
  #rpc: LineRpc | undefined;
  #connecting: Promise<LineRpc> | undefined;
  readonly #listeners = new Set<(event: string, data: unknown) => void>();
  readonly #onClosed = new Set<() => void>();

  constructor(runtimeDir: string, socket?: Socket) {
    this.runtimeDir = runtimeDir;
    if (socket !== undefined) this.#use(socket);
  }

  /** Connects to a running shim. Rejects `MACHINE_SHIM_GONE`. */
  static async connect(runtimeDir: string): Promise<ShimClient> {
    const client = new ShimClient(runtimeDir);
    await client.#connected();
    return client;
  }

  /**
   * Asks the shim; connects first where the connection was lost. Rejects with the shim's error, `MACHINE_SHIM_GONE` when there is none any
   * more, `RPC_CLOSED` when it went in mid-question, `RPC_TIMEOUT`.
   */
  async call<Op extends keyof ShimOps>(
    op: Op,
    args: ShimOps[Op]['args'],
    timeoutMs: number = timeoutOf(op, args),
  ): Promise<ShimOps[Op]['result']> {
    const rpc = await this.#connected();
    return (await rpc.call(op, args, timeoutMs)) as ShimOps[Op]['result'];
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

  async #connected(): Promise<LineRpc> {
    if (this.#rpc !== undefined) return this.#rpc;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #connect(): Promise<LineRpc> {
    const socket = await tryConnect(this.runtimeDir);
    if (socket !== null) return this.#use(socket);
    throw new GodwitError('MACHINE_SHIM_GONE', `no shim answers at ${this.runtimeDir}`, {
      values: { runtimeDir: this.runtimeDir },
      nextAction:
        'The worker cleans up after it and starts the machine again; look at shim.log for why it ended.',
    });
  }

  #use(socket: Socket): LineRpc {
    const rpc = new LineRpc(socket, socket, {
      onEvent: (event, data) => {
        for (const listener of this.#listeners) listener(event, data);
      },
    });
    this.#rpc = rpc;
    void rpc.closed.then(() => {
      socket.destroy();
      if (this.#rpc !== rpc) return;
      this.#rpc = undefined;
      for (const listener of this.#onClosed) listener();
    });
    return rpc;
  }
}

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

function timeoutOf<Op extends keyof ShimOps>(op: Op, args: ShimOps[Op]['args']): number {
  const { timeoutMs } = args as { timeoutMs?: number };
  // A stop without a time of its own takes that of the configuration: up to an hour.
  const ownMs = timeoutMs ?? (op === 'workload.stop' ? 3_600_000 : 0);
  return TIMEOUT_MS[op] + ownMs;
}
