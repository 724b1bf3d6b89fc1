import { createInterface } from 'node:readline';
import { ClientBook, type ClientLimits } from '../../src/base/client-account.ts';
import { systemClock } from '../../src/base/clock.ts';

/* The inner half of AttackedProcess: for a program that serves peers, and is started with --expose-gc. */

/** What a server says of its memory. Bytes. */
export type Memory = {
  /** Of the process, with all that a runtime has not given back. */
  residentBytes: number;
  /**
   * That something in the process refers to: heap and buffers, after a collection. What OpenSSL allocates is
   * not in it.
   */
  liveBytes: number;
  /** On the book at that moment. */
  heldBytes: number;
  /** The most that was on the book, and the most connections, since the last `forget`. */
  heldBytesMax: number;
  connectionsMax: number;
  connections: number;
};

export class WatchedBook extends ClientBook {
  heldBytesMax = 0;
  connectionsMax = 0;
  #heldBytes = 0;

  constructor(limits: Partial<ClientLimits> = {}) {
    super(systemClock, limits);
  }

  override open(options: Parameters<ClientBook['open']>[0]): ReturnType<ClientBook['open']> {
    const account = super.open(options);
    this.connectionsMax = Math.max(this.connectionsMax, this.connections);
    return account;
  }

  override moved(address: string, beforeBytes: number, afterBytes: number): void {
    super.moved(address, beforeBytes, afterBytes);
    this.#heldBytes += afterBytes - beforeBytes;
    this.heldBytesMax = Math.max(this.heldBytesMax, this.#heldBytes);
  }

  /** Each line on the standard input is a question: `memory`, or `forget`. */
  answer(): void {
    createInterface(process.stdin).on('line', async (line) => {
      if (line === 'forget') {
        this.heldBytesMax = 0;
        this.connectionsMax = this.connections;
      }
      process.stdout.write(`${JSON.stringify(await this.#memory())}\n`);
    });
  }

  async #memory(): Promise<Memory> {
    const residentBytes = process.memoryUsage.rss();
    // Buffers are given back by a thread, some time after the collection that found nobody who refers to
    // them: the second waits for the first one's.
    for (let times = 0; times < 2; times += 1) {
      globalThis.gc!();
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    globalThis.gc!();
    const { heapUsed, external } = process.memoryUsage();
    return {
      residentBytes,
      liveBytes: heapUsed + external,
      heldBytes: this.heldBytes,
      heldBytesMax: this.heldBytesMax,
      connectionsMax: this.connectionsMax,
      connections: this.connections,
    };
  }
}
