/** What a queue needs to know of a request. */
type Queued = { readonly background: boolean };

/**
 * Requests to a remote disk that are not sent yet: those that a guest waits for go first, the background
 * never fills the whole depth.
 */
export class RequestQueue<Request extends Queued> {
  readonly #guest: Request[] = [];
  readonly #background: Request[] = [];
  readonly #backgroundMax: number;
  #backgroundInFlight = 0;

  /** `depth`: requests in flight at most. The background leaves a quarter of it free. */
  constructor(depth: number) {
    this.#backgroundMax = Math.max(1, Math.floor((depth * 3) / 4));
  }

  get length(): number {
    return this.#guest.length + this.#background.length;
  }

  /** What waits, guests first. */
  waiting(): Request[] {
    return [...this.#guest, ...this.#background];
  }

  push(request: Request): void {
    this.#listOf(request).push(request);
  }

  /** Requests that were in flight, in their order: each goes before all that waits. */
  putBack(requests: readonly Request[]): void {
    for (const request of requests.toReversed()) this.#listOf(request).unshift(request);
  }

  /** The next one to send, from now on in flight; null when none may be sent. */
  take(): Request | null {
    const guest = this.#guest.shift();
    if (guest !== undefined) return guest;
    if (this.#backgroundInFlight >= this.#backgroundMax) return null;
    const background = this.#background.shift();
    if (background === undefined) return null;
    this.#backgroundInFlight += 1;
    return background;
  }

  /** One that was taken is in flight no longer. */
  ended(request: Request): void {
    if (request.background) this.#backgroundInFlight -= 1;
  }

  /** Takes a request that waits here out; false: it does not. */
  remove(request: Request): boolean {
    const list = this.#listOf(request);
    const index = list.indexOf(request);
    if (index >= 0) list.splice(index, 1);
    return index >= 0;
  }

  /** Removes everything that waits. */
  drain(): Request[] {
    return [...this.#guest.splice(0), ...this.#background.splice(0)];
  }

  #listOf(request: Request): Request[] {
    return request.background ? this.#background : this.#guest;
  }
}
