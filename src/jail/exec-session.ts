import type { ChildProcess } from 'node:child_process';
import { closeSync, readSync, writeSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { ReadStream } from 'node:tty';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { isAlive, type ProcessIdentity } from '../host/process-identity.ts';
import type { Entrance, ExecSession, SessionEnd, SessionOutput } from '../shim/exec-session.ts';
import type { SessionOptions } from '../shim/runtime.ts';
import { openPty, resizeTerminal, type TerminalSize } from '../sys/pty.ts';
import { startError, startProgram } from '../sys/start-program.ts';

const PIECE_BYTES = 64 * 1024;

/**
 * Starts a command in a machine, with a terminal of the machine's own devpts or with pipes. Throws
 * `MACHINE_NOT_RUNNING` when the machine has ended meanwhile, `MACHINE_NO_TERMINAL`.
 */
export function startSession(entrance: Entrance, options: SessionOptions): ExecSession {
  return options.size === null
    ? new PipeSession(entrance, options)
    : new TerminalSession(entrance, { ...options, size: options.size });
}

type Common = { onOutput: SessionOutput; clock: Clock };

/** A gate that output passes while nobody has closed it. */
class Gate {
  #opened: PromiseWithResolvers<void> | null = null;

  get isOpen(): boolean {
    return this.#opened === null;
  }
  close(): void {
    this.#opened ??= Promise.withResolvers<void>();
  }
  open(): void {
    this.#opened?.resolve();
    this.#opened = null;
  }
  passed(): Promise<void> {
    return this.#opened?.promise ?? Promise.resolve();
  }
}

class TerminalSession implements ExecSession {
  readonly ended: Promise<SessionEnd>;
  readonly #child: ChildProcess;
  readonly #master: number;
  /** Only read from: what libuv writes to a master waits for the program that reads. */
  readonly #stream: ReadStream;
  readonly #gate = new Gate();
  readonly #options: Common;
  readonly #onData: (bytes: Buffer) => void;
  #isOver = false;

  constructor({ file, args, init, uid, gid }: Entrance, options: Common & { size: TerminalSize }) {
    this.#options = options;
    const { master, slave } = openTerminal(init, { uid, gid }, options.size);
    try {
      this.#child = startProgram(file, args, { stdio: [slave, slave, slave], detached: true });
    } catch (error) {
      closeSync(master);
      throw error;
    } finally {
      closeSync(slave);
    }
    this.#master = master;
    this.#stream = new ReadStream(master);
    this.#onData = (bytes) => options.onOutput('stdout', bytes);
    this.#stream.on('data', this.#onData);
    // EIO: no process has the terminal open any more.
    this.#stream.on('error', () => {});
    this.ended = endOf(this.#child, this.#onData).then(async (end) => {
      await this.#drain();
      this.#close();
      return end;
    });
  }

  /** Then the number of the master may be that of another file. */
  get #isClosed(): boolean {
    return this.#isOver || this.#stream.destroyed;
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length && !this.#isClosed; ) {
      try {
        done += writeSync(this.#master, bytes, done);
      } catch (error) {
        if (systemErrorCode(error) !== 'EAGAIN') return;
        await this.#options.clock.sleep(PAUSE.terminalInput.ms);
      }
    }
  }

  endInput(): void {
    // What a person types for it: the line discipline makes it an end of file for who reads lines, and for
    // nobody else.
    void this.write(Uint8Array.of(4));
  }

  resize(size: TerminalSize): void {
    if (!this.#isClosed) resizeTerminal(this.#master, size);
  }

  pause(): void {
    this.#gate.close();
    this.#stream.pause();
  }

  resume(): void {
    this.#gate.open();
    if (!this.#isClosed) this.#stream.resume();
  }

  hangUp(): void {
    this.#child.unref();
    this.#close();
  }

  /**
   * A daemon that the command has left behind may keep the terminal open: what is there now is read, and no
   * end is waited for.
   */
  async #drain(): Promise<void> {
    this.#stream.off('data', this.#onData);
    this.#stream.pause();
    const buffer = Buffer.alloc(PIECE_BYTES);
    for (;;) {
      await this.#gate.passed();
      const bytes = (this.#stream.read() as Buffer | null) ?? this.#readNow(buffer);
      if (bytes === null) return;
      this.#options.onOutput('stdout', bytes);
    }
  }

  #readNow(buffer: Buffer): Buffer | null {
    if (this.#isClosed) return null;
    try {
      const lengthBytes = readSync(this.#master, buffer);
      return lengthBytes === 0 ? null : Buffer.from(buffer.subarray(0, lengthBytes));
    } catch {
      return null;
    }
  }

  /** The kernel hangs up the session of a terminal whose master is closed. */
  #close(): void {
    this.#isOver = true;
    this.#gate.open();
    this.#stream.destroy();
  }
}

class PipeSession implements ExecSession {
  readonly ended: Promise<SessionEnd>;
  readonly #child: ChildProcess;
  readonly #gate = new Gate();
  #pieces = 0;

  constructor({ file, args, init }: Entrance, { onOutput, clock }: Common) {
    if (!isAlive(init)) throw notRunning();
    this.#child = startProgram(file, args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    const { stdin, stdout, stderr } = this.#child;
    // The command does not read, or has ended.
    stdin!.on('error', () => {});
    for (const [name, stream] of [
      ['stdout', stdout!],
      ['stderr', stderr!],
    ] as const) {
      stream.on('error', () => {});
      stream.on('data', (bytes: Buffer) => {
        this.#pieces++;
        onOutput(name, bytes);
      });
    }
    const closed = Promise.all([stdout!, stderr!].map(over));
    this.ended = endOf(this.#child, (bytes) => onOutput('stderr', bytes)).then(async (end) => {
      await Promise.race([closed, this.#quiet(clock)]);
      this.#release();
      return end;
    });
  }

  write(bytes: Uint8Array): Promise<void> {
    const stdin = this.#child.stdin!;
    return new Promise((resolve) => {
      if (stdin.destroyed || stdin.writableEnded) resolve();
      else stdin.write(bytes, () => resolve());
    });
  }

  endInput(): void {
    this.#child.stdin!.end();
  }

  resize(): void {}

  pause(): void {
    this.#gate.close();
    this.#child.stdout!.pause();
    this.#child.stderr!.pause();
  }

  resume(): void {
    this.#gate.open();
    this.#child.stdout!.resume();
    this.#child.stderr!.resume();
  }

  hangUp(): void {
    const { pid, exitCode, signalCode, stdin, stdout, stderr } = this.#child;
    this.#gate.open();
    stdin!.destroy();
    // What it says about its end is for nobody, but must not kill it (SIGPIPE) before it has tidied up.
    for (const stream of [stdout, stderr] as Socket[]) {
      stream.removeAllListeners('data');
      stream.resume();
      stream.unref();
    }
    this.#child.unref();
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    try {
      process.kill(-pid, 'SIGHUP');
    } catch {
      // It ended in between.
    }
  }

  /**
   * After the end: a child of the command that keeps the pipes open is not waited for, but all that is in
   * them is read.
   */
  async #quiet(clock: Clock): Promise<void> {
    for (;;) {
      await this.#gate.passed();
      const before = this.#pieces;
      await clock.sleep(PATIENCE.programOutput.ms);
      await new Promise((resolve) => setImmediate(resolve));
      if (this.#gate.isOpen && this.#pieces === before) return;
    }
  }

  #release(): void {
    for (const stream of [this.#child.stdin, this.#child.stdout, this.#child.stderr]) stream?.destroy();
    this.#child.unref();
  }
}

function openTerminal(init: ProcessIdentity, owner: { uid: number; gid: number }, size: TerminalSize) {
  let pty: ReturnType<typeof openPty>;
  try {
    pty = openPty(`/proc/${init.pid}/root`, owner, size);
  } catch (cause) {
    if (!isAlive(init)) throw notRunning();
    throw new GodwitError(
      'MACHINE_NO_TERMINAL',
      `no terminal could be made in the machine: ${String(cause)}`,
      {
        nextAction:
          'Run the command without -t. The machine must see a devpts of its own at /dev/pts, and the kernel must be 5.6 or later.',
        cause,
      },
    );
  }
  if (isAlive(init)) return pty;
  // Its number may be that of another process by now, whose terminal this then is.
  closeSync(pty.master);
  closeSync(pty.slave);
  throw notRunning();
}

function notRunning(): GodwitError {
  return new GodwitError('MACHINE_NOT_RUNNING', 'the machine does not run any more', {
    nextAction: 'Start it first: godwit machine start.',
  });
}

/** One that could not be started ends with 127, and says so, as a shell has it. */
function endOf(child: ChildProcess, say: (bytes: Buffer) => void): Promise<SessionEnd> {
  return new Promise((resolve) => {
    child.once('exit', (exitCode, signal) => resolve({ exitCode, signal }));
    child.once('error', (error) => {
      say(Buffer.from(`godwit: ${messageOf(startError(error) ?? error)}\n`));
      resolve({ exitCode: 127, signal: null });
    });
  });
}

function over(stream: Readable): Promise<void> {
  return new Promise((resolve) => stream.once('close', resolve));
}
