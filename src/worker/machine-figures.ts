import type { Clock } from '../base/clock.ts';
import { PAUSE } from '../base/patience.ts';
import type { MachineShow } from '../machine/manager.ts';
import { RisingSums, type Sample } from './metric.ts';

const BLOCK_BYTES = 4096;
const COUNTED = [
  'reads',
  'readBytes',
  'writes',
  'writeBytes',
  'flushes',
  'misses',
  'wireBytes',
  'twiceBytes',
] as const;
type Counted = (typeof COUNTED)[number];

export type MachineFiguresOptions = {
  /** Each in a bounded time, also of a shim that hangs. */
  look: () => Promise<readonly MachineShow[]>;
  stateOf: (show: MachineShow) => string;
  disk: () => Promise<{ totalBytes: number; availableBytes: number; reserveBytes: number }>;
  clock: Clock;
};

/**
 * What was last heard of machines, their volumes and the disk, for who asks often (`/metrics`): shims are
 * never asked while he waits. Asking has them looked at afterwards, at most every `PAUSE.figures`: without
 * anybody who asks nobody looks.
 */
export class MachineFigures {
  readonly #options: MachineFiguresOptions;
  readonly #sums = new RisingSums<Counted>(COUNTED);
  #states = new Map<string, number>();
  #missing = { volumes: 0, bytes: 0, noRoom: 0 };
  #disk: { totalBytes: number; availableBytes: number; reserveBytes: number } | null = null;
  #lookedAtMs: number | null = null;
  #looking: Promise<void> | null = null;

  constructor(options: MachineFiguresOptions) {
    this.#options = options;
  }

  /** Looks again where the last look is old; the promise is for tests. Never rejects. */
  wake(): Promise<void> {
    const { clock } = this.#options;
    const isFresh = this.#lookedAtMs !== null && clock.monotonicMs() - this.#lookedAtMs < PAUSE.figures.ms;
    if (isFresh && this.#looking === null) return Promise.resolve();
    this.#looking ??= this.#look()
      .catch(() => {})
      .finally(() => {
        this.#looking = null;
      });
    return this.#looking;
  }

  async #look(): Promise<void> {
    const { look, disk, stateOf, clock } = this.#options;
    const [shows, room] = await Promise.all([look(), disk().catch(() => null)]);
    this.#disk = room;
    this.#states = new Map();
    this.#missing = { volumes: 0, bytes: 0, noRoom: 0 };
    const counted = new Map<string, Record<Counted, number> | null>();
    for (const show of shows) {
      const state = stateOf(show);
      this.#states.set(state, (this.#states.get(state) ?? 0) + 1);
      const volume = show.shim?.volume;
      const status = volume?.status;
      if (volume || show.silentForMs !== undefined) counted.set(show.record.id, null);
      if (!status) continue;
      const { guest, hydration } = status;
      if (status.noRoom) this.#missing.noRoom++;
      if (hydration && hydration.exposedBytes > 0) {
        this.#missing.volumes++;
        this.#missing.bytes += hydration.exposedBytes;
      }
      counted.set(show.record.id, {
        ...guest,
        misses: guest.misses ?? 0,
        wireBytes: hydration?.wireBytes ?? 0,
        twiceBytes: (hydration?.blocksFetchedTwice ?? 0) * BLOCK_BYTES,
      });
    }
    this.#sums.look(counted);
    this.#lookedAtMs = clock.monotonicMs();
  }

  sum(name: Counted): number {
    return this.#sums.sum(name);
  }

  states(): Sample[] {
    return [...this.#states].map(([state, value]) => ({ labels: { state }, value }));
  }

  get missing(): Readonly<{ volumes: number; bytes: number; noRoom: number }> {
    return this.#missing;
  }

  disk(what: 'totalBytes' | 'availableBytes' | 'reserveBytes'): number {
    return this.#disk?.[what] ?? Number.NaN;
  }

  /** Seconds since the last look; NaN before the first. */
  get ageSeconds(): number {
    return this.#lookedAtMs === null
      ? Number.NaN
      : (this.#options.clock.monotonicMs() - this.#lookedAtMs) / 1000;
  }
}
