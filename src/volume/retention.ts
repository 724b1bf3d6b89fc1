import { readFile } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { replaceFile } from '../sys/durable-file.ts';

/*
 * `.retention.json` among the volumes: for how long each copy that a move left is still to be kept, in time
 * that this worker was up. The wall clock may be set, by years where a host's battery is empty, and the last
 * way back of a volume must not go for that.
 *
 *   {"formatVersion": 1, "leftMs": {"v_…@3": 601200000}}
 */

/**
 * A copy whose time seems to be over when it is seen first is kept for this long all the same, or as long as
 * any is: the clock may be wrong, or was.
 */
const GRACE_MS = 24 * 3_600_000;
/** Of one volume on this worker, the newest. */
const COPIES_MAX = 3;

export type RetainedCopy = { id: string; generation: number; destroyAfterMs: number | null };

export type RetentionOptions = { path: string; clock: Clock; logger: Logger };

const keyOf = ({ id, generation }: RetainedCopy) => `${id}@${generation}`;

/** Which copies have been kept for long enough. */
export class Retention {
  readonly #options: RetentionOptions;
  #leftMs: Map<string, number> | null = null;
  #lookedMs: number;

  constructor(options: RetentionOptions) {
    this.#options = options;
    this.#lookedMs = options.clock.monotonicMs();
  }

  /**
   * `copies`: all that there are. `keepMs`: how long any is kept at most. Those whose time is over, and the
   * oldest of a volume beyond `COPIES_MAX`.
   */
  async over<Copy extends RetainedCopy>(copies: readonly Copy[], keepMs: number): Promise<Copy[]> {
    const { clock } = this.#options;
    const before = this.#leftMs ?? (await this.#read());
    const nowMs = clock.monotonicMs();
    const passedMs = nowMs - this.#lookedMs;
    this.#lookedMs = nowMs;
    const left = new Map<string, number>();
    for (const copy of copies) {
      const known = before.get(keyOf(copy));
      left.set(
        keyOf(copy),
        known === undefined ? this.#first(copy, keepMs) : Math.min(known - passedMs, keepMs),
      );
    }
    this.#leftMs = left;
    if (left.size > 0 || before.size > 0) await this.#write(left);
    const beyond = new Set(beyondMax(copies));
    return copies.filter((copy) => left.get(keyOf(copy))! <= 0 || beyond.has(copy));
  }

  #first({ destroyAfterMs }: RetainedCopy, keepMs: number): number {
    const leftMs = destroyAfterMs === null ? keepMs : destroyAfterMs - this.#options.clock.wallMs();
    return leftMs > 0 ? Math.min(leftMs, keepMs) : Math.min(GRACE_MS, keepMs);
  }

  /** Nothing known, or nothing that can be read: all are seen for the first time. */
  async #read(): Promise<Map<string, number>> {
    const { path, logger } = this.#options;
    try {
      const { leftMs } = JSON.parse(await readFile(path, 'utf8')) as { leftMs?: Record<string, unknown> };
      const entries = Object.entries(leftMs ?? {});
      return new Map(entries.filter((entry): entry is [string, number] => Number.isFinite(entry[1])));
    } catch (error) {
      if (systemErrorCode(error) !== 'ENOENT')
        logger.warn(
          { path, reason: messageOf(error) },
          'how long copies were kept is not known: from now on',
        );
      return new Map();
    }
  }

  /** A disk that is full costs what has passed since it was written last: copies are kept for longer. */
  async #write(leftMs: ReadonlyMap<string, number>): Promise<void> {
    const { path, logger } = this.#options;
    const text = JSON.stringify({ formatVersion: 1, leftMs: Object.fromEntries(leftMs) });
    await replaceFile(path, `${text}\n`).catch((error: unknown) => {
      logger.warn({ path, reason: messageOf(error) }, 'how long copies were kept cannot be written down');
    });
  }
}

/** The oldest of each volume, of which there are newer ones enough. Pure. */
export function beyondMax<Copy extends Pick<RetainedCopy, 'id' | 'generation'>>(
  copies: readonly Copy[],
): Copy[] {
  return copies.filter(
    ({ id, generation }) =>
      copies.filter((other) => other.id === id && other.generation > generation).length >= COPIES_MAX,
  );
}
