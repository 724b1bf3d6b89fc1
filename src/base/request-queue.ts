/** A request to a remote device that waits for its turn. */
export type QueuedRequest = {
  readonly background: boolean;
  resolve: () => void;
  reject: (error: unknown) => void;
};

/**
 * Requests to a remote device that are not sent yet: those that a guest waits for go first, the background
 * never fills the whole depth.
 */
export class RequestQueue<Request extends QueuedRequest> {
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

  /** Nothing is in flight: the connection is gone. */
  allEnded(): void {
    this.#backgroundInFlight = 0;
  }

  /** Removes everything that waits. */
  drain(): Request[] {
    return [...this.#guest.splice(0), ...this.#background.splice(0)];
  }

  /** An abort rejects the request while it waits here; once it is taken it runs to its end. */
  withdrawOnAbort(request: Request, signal: AbortSignal): void {
    const onAbort = (): void => {
      const list = this.#listOf(request);
      const index = list.indexOf(request);
      if (index < 0) return;
      list.splice(index, 1);
      request.reject(signal.reason);
    };
    const { resolve, reject } = request;
    request.resolve = () => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    };
    request.reject = (error) => {
      signal.removeEventListener('abort', onAbort);
      reject(error);
    };
    if (signal.aborted) queueMicrotask(onAbort);
    else signal.addEventListener('abort', onAbort, { once: true });
  }

  #listOf(request: Request): Request[] {
    return request.background ? this.#background : this.#guest;
  }
}
