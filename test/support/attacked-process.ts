import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { VOLUME_SERVER_NODE_FLAGS } from '../../src/attach/volume-supervisor.ts';
import { CLIENT_LIMITS, type ClientLimits } from '../../src/base/client-account.ts';
import { NotWorthWaiting, NotYet, until } from './patience.ts';
import type { Memory } from './watched-book.ts';

const MIB = 2 ** 20;

/*
 * A server in a process of its own, and what the documentation promises of its memory (docs/nbd.md,
 * docs/iscsi.md), whatever its peers do. Said in the figures that do not depend on when a collection runs and
 * how quick the machine is:
 *
 *   what is on the book      never more than the shared part, each connection's own, and for each one charge of what was there already
 *   what is referred to      never more than what is on the book, the buffers that are kept for later, and a little
 *   what the process has     never so much more that something large could be on no account: OpenSSL's, a queue in C++
 */

/** Of the memory of attacks: little, so that what is not bounded by it stands out. */
export const SMALL_BOOK: Partial<ClientLimits> = { sharedBytesMax: 32 * MIB, addressBytesMax: 24 * MIB };

/** A slab of answers and what one read of the socket brings: charged when it is there. */
const CHARGE_BYTES_MAX = (128 + 64) * 1024;
/** Buffers that are kept for later. */
const POOL_BYTES = 32 * MIB;
/**
 * Objects of connections, compiled code, and buffers of the last turns that a thread has not given back yet:
 * TLS decrypts into new ones all the time.
 */
const ASIDE_BYTES = 72 * MIB;
/**
 * With OpenSSL, of each connection: its state, and what it encrypted and the kernel has not taken
 * (`TLS_AHEAD_BYTES_MAX`).
 */
const TLS_BYTES = 256 * 1024;
/** What nobody refers to: V8 lets 64 MiB of buffers come together before it looks, a heap grow for a while, and glibc keeps what it was given back. More on a slow machine;
 * without bounds peers took one to two GiB. */
const UNCOLLECTED_BYTES = 160 * MIB;

export class AttackedProcess {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  /** What it said first. */
  readonly greeting: string;
  readonly #limits: ClientLimits;
  #before: Memory | null = null;
  #worst: Memory | null = null;

  private constructor(
    child: ChildProcess,
    lines: AsyncIterator<string>,
    greeting: string,
    book: Partial<ClientLimits>,
  ) {
    this.#child = child;
    this.#lines = lines;
    this.greeting = greeting;
    this.#limits = { ...CLIENT_LIMITS, ...book };
  }

  /**
   * `args`: a program that says one line, and then answers by `WatchedBook.answer` with a book of these
   * limits.
   */
  static async start(
    args: readonly string[],
    book: Partial<ClientLimits>,
    after: (stop: () => void) => void,
  ): Promise<AttackedProcess> {
    // With a heap as small as that of a volume server: what dies there dies here.
    const child = spawn(process.execPath, ['--expose-gc', ...VOLUME_SERVER_NODE_FLAGS, ...args], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    after(() => child.kill('SIGKILL'));
    const lines = createInterface(child.stdout!)[Symbol.asyncIterator]();
    const { value, done } = await lines.next();
    if (done === true) {
      const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode];
      throw new Error(`the server ended with ${code}`);
    }
    return new AttackedProcess(child, lines, value, book);
  }

  /** SIGKILL. */
  kill(): void {
    this.#child.kill('SIGKILL');
  }

  async #ask(question: 'memory' | 'forget'): Promise<Memory> {
    assert.ok(this.#child.exitCode === null && this.#child.signalCode === null, 'the server is alive');
    this.#child.stdin!.write(`${question}\n`);
    const { value, done } = await this.#lines.next();
    assert.ok(done !== true, 'the server is alive');
    return JSON.parse(value) as Memory;
  }

  /**
   * Nobody is connected, and nothing is held of those that were. From here on it is looked at what an attack
   * does.
   */
  async atRest(): Promise<void> {
    await until('the server holds nothing of anybody', async () => {
      const memory = await this.#ask('memory');
      return memory.connections === 0 && memory.heldBytes === 0 ? true : new NotYet(memory);
    });
    const memory = await this.#ask('forget');
    this.#before ??= memory;
    this.#worst = null;
  }

  /** Its memory is within what is promised, now and since `atRest`. */
  async look(options: { tls: boolean }): Promise<Memory> {
    const before = this.#before!;
    const memory = await this.#ask('memory');
    const { sharedBytesMax, connectionBytesReserved } = this.#limits;
    const { connectionsMax, heldBytes, heldBytesMax } = memory;
    const budgetBytes = sharedBytesMax + connectionsMax * (connectionBytesReserved + CHARGE_BYTES_MAX);
    this.#worst = memory;
    const says = this.tell();
    holds(heldBytesMax <= budgetBytes, `the book is at most ${mib(budgetBytes)}: ${says}`);
    const liveBytes = memory.liveBytes - before.liveBytes;
    const liveBytesMax = heldBytes + POOL_BYTES + ASIDE_BYTES;
    holds(liveBytes <= liveBytesMax, `what is held is on the book, ${mib(liveBytesMax)}: ${says}`);
    const residentBytes = memory.residentBytes - before.residentBytes;
    const residentBytesMax =
      budgetBytes + POOL_BYTES + UNCOLLECTED_BYTES + (options.tls ? connectionsMax * TLS_BYTES : 0);
    holds(residentBytes <= residentBytesMax, `it grows by at most ${mib(residentBytesMax)}: ${says}`);
    return memory;
  }

  /** The figures of the last look. */
  tell(): string {
    const now = this.#worst;
    const before = this.#before;
    if (now === null || before === null) return 'not looked at';
    return [
      `on the book ${mib(now.heldBytes)} of ${now.connections}, at most ${mib(now.heldBytesMax)} of ${now.connectionsMax}`,
      `live ${mib(now.liveBytes - before.liveBytes)} more`,
      `resident ${mib(now.residentBytes - before.residentBytes)} more than ${mib(before.residentBytes)}`,
    ].join(', ');
  }
}

/** What was too much does not become less by waiting. */
function holds(is: boolean, what: string): void {
  if (!is) throw new NotWorthWaiting(what);
}

function mib(bytes: number): string {
  return `${Math.round(bytes / MIB)} MiB`;
}
