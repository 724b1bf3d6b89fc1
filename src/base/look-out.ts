import { availableParallelism } from 'node:os';

/**
 * Keeps the event loop looking for the next request for a moment instead of sleeping at once: waking a
 * sleeping processor takes longer than the work of a small request. Nothing waits for it: each look is a turn
 * of the loop that does whatever else there is.
 *
 * It stops looking where that does not pay: after a few looks in vain it sits out some requests.
 */
const LOOK_MS = 0.05;
const VAIN_LOOKS_MAX = 4;
const REST_REQUESTS = 64;
/** Whoever looks on the only processor keeps it from the client that is to be seen. */
export const LOOKING_PAYS = availableParallelism() > 1;

export class LookOut {
  #until = 0;
  #looking = false;
  #vainLooks = 0;
  #rest = 0;

  /** Something arrived. */
  seen(): void {
    if (!LOOKING_PAYS) return;
    if (this.#rest > 0) {
      this.#rest -= 1;
      return;
    }
    if (this.#looking) this.#vainLooks = 0;
    this.#until = performance.now() + LOOK_MS;
    if (this.#looking) return;
    this.#looking = true;
    setImmediate(this.#look);
  }

  readonly #look = (): void => {
    if (performance.now() < this.#until) {
      setImmediate(this.#look);
      return;
    }
    this.#looking = false;
    this.#vainLooks += 1;
    if (this.#vainLooks < VAIN_LOOKS_MAX) return;
    this.#vainLooks = 0;
    this.#rest = REST_REQUESTS;
  };
}
