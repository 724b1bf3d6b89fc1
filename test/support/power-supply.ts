import type { Random } from '../../src/base/random.ts';

/** Something that forgets when power goes. */
export interface PowerLoad {
  /** Called at the instant of the cut: settle what survives. */
  powerCut(random: Random): void;
}

/**
 * The power of one simulated host. All FaultDevices of the host share one, so that a test can cut the power
 * of data and metadata devices at the same instant, at the k-th mutating operation (write, discard,
 * writeZeroes, flush) counted over all of them.
 *
 * To visit every crash point of a scenario: run it once without a cut and read `operations`; then run it
 * again for k = 1 to that number with `cutAt = k`, and check what a fresh host finds after `restore()`.
 */
export class PowerSupply {
  /** Mutating operations that began so far, over all devices. */
  operations = 0;
  /**
   * The operation (counted from 1) at which power goes: it may survive, or be lost, or be torn. null: never.
   */
  cutAt: number | null;
  /** Called after all devices lost power. */
  onCut: (() => void) | null = null;
  readonly #random: Random;
  readonly #loads = new Set<PowerLoad>();
  #on = true;

  constructor(random: Random, cutAt: number | null = null) {
    this.#random = random;
    this.cutAt = cutAt;
  }

  get on(): boolean {
    return this.#on;
  }

  connect(load: PowerLoad): void {
    this.#loads.add(load);
  }

  disconnect(load: PowerLoad): void {
    this.#loads.delete(load);
  }

  /**
   * A device reports that a mutating operation begins. True: power goes now, and the device's own part of
   * `cut` follows.
   */
  beginOperation(): boolean {
    this.operations++;
    return this.operations === this.cutAt;
  }

  /** Every call on every device rejects with `BLOCK_POWER_LOST` from here on. Idempotent. */
  cut(): void {
    if (!this.#on) return;
    this.#on = false;
    for (const load of this.#loads) load.powerCut(this.#random);
    this.onCut?.();
  }

  /** Devices work again, with what survived. `cutAt` is disarmed; counting goes on. */
  restore(): void {
    this.cutAt = null;
    this.#on = true;
  }
}
