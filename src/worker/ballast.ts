import { closeSync, openSync, rmSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PAUSE } from '../base/patience.ts';
import { Rounds } from '../base/rounds.ts';
import type { allocate } from '../sys/fallocate.ts';

/** What the journal, the records and the logs of a day may need to empty a worker. */
const BALLAST_BYTES_MAX = 32 * 2 ** 20;
const BALLAST_PART = 64;

export type BallastOptions = {
  /** The file that holds the room. */
  path: string;
  /** Of the filesystem that it is on. */
  look: () => Promise<{ totalBytes: number; availableBytes: number }>;
  allocate: typeof allocate;
  clock: Clock;
  logger: Logger;
};

/**
 * Room on the data disk that is kept back for the worker's own journal and records: a file with nothing in
 * it, which is given up when the disk is full all the same (volumes stop earlier, see volume/disk-room.ts;
 * others do not), and made again when there is room. So what empties a full host can be written down.
 */
export class Ballast {
  readonly #options: BallastOptions;
  readonly #rounds: Rounds;
  #held = false;
  #looking = false;
  /** It could not be made; said once, and not tried again by this process. */
  #refused = false;

  constructor(options: BallastOptions) {
    this.#options = options;
    this.#rounds = new Rounds(options.clock, PAUSE.ballast.ms, () => this.look());
  }

  get held(): boolean {
    return this.#held;
  }

  /** Before anything else is opened: a disk that is full gets its room back at once. */
  start(): Promise<void> {
    return this.#rounds.start();
  }

  close(): void {
    this.#rounds.close();
  }

  /** Gives the room up where the disk is full, takes it where there is plenty. Never rejects. */
  async look(): Promise<void> {
    if (this.#looking || this.#rounds.closed) return;
    this.#looking = true;
    try {
      const { totalBytes, availableBytes } = await this.#options.look();
      const ballastBytes = Math.min(BALLAST_BYTES_MAX, Math.floor(totalBytes / BALLAST_PART));
      if (availableBytes < ballastBytes / 4) this.release();
      else if (!this.#held && !this.#refused && availableBytes > 3 * ballastBytes)
        await this.#take(ballastBytes);
    } catch (error) {
      this.#options.logger.warn({ reason: messageOf(error) }, 'no room is kept back for the journal');
    } finally {
      this.#looking = false;
    }
  }

  /** Idempotent. Also what an earlier process of this worker had kept. */
  release(): void {
    const { path, logger } = this.#options;
    if (this.#held)
      logger.warn({ path }, 'the disk is full: the room that was kept back for the journal is opened');
    this.#held = false;
    rmSync(path, { force: true });
  }

  async #take(lengthBytes: number): Promise<void> {
    const fd = openSync(this.#options.path, 'w', 0o600);
    try {
      await this.#options.allocate(fd, 0, lengthBytes);
      this.#held = true;
    } finally {
      closeSync(fd);
      this.#refused = !this.#held;
      if (this.#refused) rmSync(this.#options.path, { force: true });
    }
  }
}
