/**
 * Lets many writes in at once, or one command alone that reads and then writes (COMPARE AND WRITE, ORWRITE):
 * what it has read must still be there when it writes (SBC-3 section 5.3). The one that waits for its turn
 * comes before writes that arrive later, so a stream of writes cannot keep it waiting for ever.
 */
export class WriteGate {
  #writing = 0;
  #alone = false;
  readonly #waiting: { alone: boolean; enter: () => void }[] = [];

  /** True: a synchronous write needs no turn. */
  get open(): boolean {
    return !this.#alone && this.#waiting.length === 0;
  }

  /** Many at once. */
  shared<T>(work: () => Promise<T>): Promise<T> {
    if (this.#alone || this.#waiting.length > 0) {
      return this.#wait(false).then(() => this.#finish(work));
    }
    this.#writing += 1;
    return this.#finish(work);
  }

  /** Nobody else meanwhile. */
  async alone<T>(work: () => Promise<T>): Promise<T> {
    if (this.#alone || this.#writing > 0 || this.#waiting.length > 0) await this.#wait(true);
    else this.#alone = true;
    try {
      return await work();
    } finally {
      this.#alone = false;
      this.#next();
    }
  }

  async #finish<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } finally {
      this.#writing -= 1;
      if (this.#waiting.length > 0) this.#next();
    }
  }

  #wait(alone: boolean): Promise<void> {
    return new Promise((enter) => this.#waiting.push({ alone, enter }));
  }

  /** Places are taken here, before those who waited run, so that nobody slips in between. */
  #next(): void {
    for (;;) {
      const first = this.#waiting[0];
      if (first === undefined || this.#alone) return;
      if (first.alone && this.#writing > 0) return;
      this.#waiting.shift();
      if (first.alone) this.#alone = true;
      else this.#writing += 1;
      first.enter();
    }
  }
}
