import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isGodwitError } from '../src/base/errors.ts';
import { LineRpc } from '../src/base/line-rpc.ts';
import { AGENT_PORT, type AgentOps, type CommandResult } from './agent-protocol.ts';
import type { GuestKind, GuestOptions } from './guest-kind.ts';
import { noteBoot, patient } from './kind.ts';
import type { Member, RunOptions } from './member.ts';

/** Before there is a measure of the machine. */
const BOOT_TIMEOUT_MS = 600_000;
const CONNECT_TIMEOUT_MS = 2_000;
const CONNECT_PAUSE_MS = 100;
/** What does not answer by then is cut off. */
const REACH_TIMEOUT_MS = 3_000;
const LOG_TAIL_CHARACTERS = 6_000;
/** What the agent itself may take on top of what it runs. */
const ANSWER_GRACE_MS = 30_000;

/**
 * Guests of this process that were silent. Now and then user-mode-linux does not come back on a busy machine,
 * also when it has nothing to do with a volume.
 */
export const frozenGuests = new Set<string>();

/**
 * A kernel of its own, the root of this machine read-only under a tmpfs, one network card, disks that survive
 * its reboot.
 */
export class Guest implements Member {
  readonly name: string;
  readonly address: string;
  /** Name of its network card. */
  readonly card: string;
  /** Its disks' devices. */
  readonly disks: readonly string[];
  readonly logPath: string;
  readonly #kind: GuestKind;
  readonly #options: GuestOptions;
  #process: ChildProcess | null = null;
  #agent: { rpc: LineRpc; socket: Socket } | null = null;

  constructor(kind: GuestKind, options: GuestOptions) {
    this.#kind = kind;
    this.#options = options;
    this.name = options.name;
    this.address = options.address;
    this.card = kind.card;
    this.disks = options.disks.map((_path, index) => kind.disk(index));
    this.logPath = join(options.folder, `${options.name}.log`);
  }

  /** Resolves when its agent answers; rejects with the end of its log when it does not boot. */
  async boot(): Promise<void> {
    const { NODE_COMPILE_CACHE } = process.env;
    const { argv, env } = this.#kind.command({
      ...this.#options,
      // A fixed address: the others would take a booted guest for the one before, until their neighbour
      // tables forget.
      mac: macOf(this.address),
      init: fileURLToPath(new URL('guest-init.sh', import.meta.url)),
      environment: [
        `LAB_NAME=${this.name}`,
        `LAB_ADDRESS=${this.address}`,
        `LAB_CARD=${this.card}`,
        `LAB_MODULES=${this.#kind.modulesDir}`,
        `LAB_CHECKOUT=${fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '')}`,
        `LAB_NODE=${process.execPath}`,
        `LAB_AGENT=${fileURLToPath(new URL('agent.ts', import.meta.url))}`,
        // What this host has compiled is read by the guest; what it compiles itself is in its memory.
        ...(NODE_COMPILE_CACHE ? [`NODE_COMPILE_CACHE=${NODE_COMPILE_CACHE}`] : []),
      ],
    });
    const [program, ...args] = argv;
    const log = openSync(this.logPath, 'a');
    const child = spawn(program, args, {
      stdio: ['ignore', log, log],
      // Its helpers are in its process group, and end with it.
      detached: true,
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', ...env },
    });
    closeSync(log);
    this.#process = child;
    const ended = new Promise<string>((resolve) => {
      child.on('error', (error) => resolve(error.message));
      child.on('exit', (code, signal) => resolve(`ended with ${code ?? signal}`));
    });
    const startedMs = performance.now();
    try {
      this.#agent = await this.#connect(ended);
      noteBoot(performance.now() - startedMs);
    } catch (error) {
      await this.kill9();
      throw error;
    }
  }

  /** What a power cut is to a host: no process of it runs on, and what it did not flush is lost. */
  async kill9(): Promise<void> {
    const child = this.#process;
    this.#process = null;
    this.#agent?.socket.destroy();
    this.#agent = null;
    if (child?.pid === undefined) return;
    const gone = child.exitCode !== null || child.signalCode !== null;
    const ended = gone ? Promise.resolve() : new Promise((resolve) => child.once('exit', resolve));
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // The group is gone.
    }
    await ended;
  }

  async run(argv: readonly string[], options: RunOptions = {}): Promise<CommandResult> {
    const { input } = options;
    const timeoutMs = patient(options.timeoutMs ?? 60_000);
    return this.#call('run', { argv, timeoutMs, ...(input === undefined ? {} : { input }) }, timeoutMs);
  }

  async spawn(
    argv: readonly string[],
    options: { logPath: string; env?: Record<string, string> },
  ): Promise<{ pid: number }> {
    return this.#call('spawn', { argv, ...options });
  }

  async kill(pid: number, signal: NodeJS.Signals): Promise<void> {
    await this.#call('kill', { pid, signal });
  }

  /** Whether something takes a TCP connection there. */
  async reaches(host: string, port: number): Promise<boolean> {
    const timeoutMs = REACH_TIMEOUT_MS * this.#kind.patience;
    return (await this.#call('reaches', { host, port, timeoutMs })).reached;
  }

  async readFile(path: string): Promise<string> {
    return (await this.#call('readFile', { path })).text;
  }

  async writeFile(path: string, text: string, mode?: number): Promise<void> {
    await this.#call('writeFile', { path, text, ...(mode === undefined ? {} : { mode }) });
  }

  /** Of the console: the kernel, init, the agent. */
  logTail(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8').slice(-LOG_TAIL_CHARACTERS) : '';
  }

  async #call<Op extends keyof AgentOps>(
    op: Op,
    args: AgentOps[Op]['args'],
    timeoutMs = 0,
  ): Promise<AgentOps[Op]['result']> {
    if (this.#agent === null) throw new Error(`${this.name} is not up`);
    try {
      return (await this.#agent.rpc.call(
        op,
        args,
        timeoutMs + patient(ANSWER_GRACE_MS),
      )) as AgentOps[Op]['result'];
    } catch (error) {
      // Its agent ends what takes too long, and answers: only a guest that does not run at all is silent.
      if (isGodwitError(error, 'RPC_TIMEOUT')) frozenGuests.add(this.name);
      throw error;
    }
  }

  async #connect(ended: Promise<string>): Promise<{ rpc: LineRpc; socket: Socket }> {
    let why: string | null = null;
    void ended.then((text) => {
      why = text;
    });
    const timeoutMs = BOOT_TIMEOUT_MS * this.#kind.patience;
    const deadlineMs = Date.now() + timeoutMs;
    while (why === null && Date.now() < deadlineMs) {
      const agent = await connectAgent(this.address);
      if (agent !== null) return agent;
      await sleep(CONNECT_PAUSE_MS);
    }
    throw new Error(
      `guest ${this.name} did not boot: ${why ?? `no answer within ${timeoutMs} ms`}\n${this.logTail()}`,
    );
  }
}

function connectAgent(address: string): Promise<{ rpc: LineRpc; socket: Socket } | null> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port: AGENT_PORT });
    const timeout = setTimeout(() => socket.destroy(), CONNECT_TIMEOUT_MS);
    socket.setNoDelay(true);
    socket.on('error', () => {});
    socket.on('close', () => {
      clearTimeout(timeout);
      resolve(null);
    });
    socket.on('connect', () => {
      clearTimeout(timeout);
      resolve({ rpc: new LineRpc(socket, socket), socket });
    });
  });
}

function macOf(address: string): string {
  const bytes = address.split('.').map((part) => Number(part).toString(16).padStart(2, '0'));
  return ['02', '00', ...bytes].join(':');
}
