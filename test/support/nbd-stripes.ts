import assert from 'node:assert/strict';
import { systemClock } from '../../src/base/clock.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import type { NbdClient } from '../../src/nbd/client.ts';

const STRIPES = 6;
const STRIPE_BYTES = 2 * 2 ** 20;
/** What the writers use of the disk, from its first byte on. */
export const STRIPED_BYTES = STRIPES * STRIPE_BYTES;

/**
 * Writers and readers that check every byte: each writer owns a stripe of the disk, knows what it wrote last,
 * and reads it back.
 */
export class StripedWriters {
  /** What the stripes have to hold. */
  readonly expected: Buffer;
  answers = 0;
  #running = true;
  readonly #client: NbdClient;
  readonly #writers: Promise<void>[];

  /** `content`: what the stripes hold at the start; zeros unless given. */
  constructor(client: NbdClient, seed: number, content: Buffer = Buffer.alloc(STRIPED_BYTES)) {
    this.#client = client;
    this.expected = content;
    this.#writers = Array.from({ length: STRIPES }, (_, index) =>
      this.#write(index, seededRandom(seed + index)),
    );
    for (const writer of this.#writers) writer.catch(() => {});
  }

  /** Ends when every call that is under way has been answered; rejects with what went wrong. */
  async stop(): Promise<void> {
    this.#running = false;
    await Promise.all(this.#writers);
  }

  /** Resolves when so many more calls have been answered; rejects with what went wrong. */
  async progress(count: number): Promise<void> {
    const goal = this.answers + count;
    while (this.answers < goal) await Promise.race([systemClock.sleep(2), Promise.all(this.#writers)]);
  }

  async #write(stripe: number, random: Random): Promise<void> {
    const client = this.#client;
    while (this.#running) {
      const lengthBytes = 512 * (1 + random.below(random.below(8) === 0 ? 1024 : 64));
      const offset = stripe * STRIPE_BYTES + 512 * random.below((STRIPE_BYTES - lengthBytes) / 512);
      const slice = this.expected.subarray(offset, offset + lengthBytes);
      const kind = random.below(10);
      if (kind === 0) {
        await client.discard(offset, lengthBytes);
        slice.fill(0);
      } else {
        const data = Buffer.alloc(lengthBytes, random.bytes(509));
        await client.write(offset, data, { fua: kind === 1 });
        slice.set(data);
      }
      if (kind === 2) await client.flush();
      const back = Buffer.alloc(lengthBytes, 0xee);
      await client.read(offset, back);
      assert.ok(back.equals(slice), `stripe ${stripe}: bytes ${offset}+${lengthBytes}`);
      this.answers += 1;
    }
  }

  /** Ends it, and compares all of its stripes. */
  async finish(): Promise<void> {
    await this.stop();
    const client = this.#client;
    await client.flush();
    const all = Buffer.alloc(this.expected.length);
    await client.read(0, all);
    assert.ok(all.equals(this.expected), 'the whole disk');
    const { inFlight, queued, reconnects } = client.statistics;
    assert.deepEqual({ inFlight, queued }, { inFlight: 0, queued: 0 });
    assert.ok(reconnects > 0, 'there was trouble');
  }
}
