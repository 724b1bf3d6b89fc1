/** Buffer bytes that several connections share. Who gets none is called back, in order, once some are given back. */
export class ByteBudget {
  readonly #bytesMax: number;
  readonly #waiting = new Set<() => void>();
  #bytes = 0;

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  get bytesInUse(): number {
    return this.#bytes;
  }

  /** False when that much is not free; `retry` is then called once, when it may be worth another try. */
  take(bytes: number, retry: () => void): boolean {
    if (this.#bytes + bytes > this.#bytesMax) {
      this.#waiting.add(retry);
      return false;
    }
    this.#bytes += bytes;
    return true;
  }

  give(bytes: number): void {
    this.#bytes -= bytes;
    if (bytes === 0 || this.#waiting.size === 0) return;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const retry of waiting) retry();
  }

  /** Takes `retry` off the list. */
  forget(retry: () => void): void {
    this.#waiting.delete(retry);
  }
}
