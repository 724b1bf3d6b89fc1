/** Does one thing after the other, whatever becomes of those before. */
export class Serial {
  #last: Promise<unknown> = Promise.resolve();

  /** As `work`, when all that was given before has ended. */
  run<Value>(work: () => Promise<Value>): Promise<Value> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }

  /** Resolves when all that was given until now has ended. */
  async idle(): Promise<void> {
    await this.#last;
  }
}

/** The same for what has one key; what has different keys goes side by side. */
export class SerialByKey {
  readonly #queues = new Map<string, { serial: Serial; count: number }>();

  async run<Value>(key: string, work: () => Promise<Value>): Promise<Value> {
    let queue = this.#queues.get(key);
    if (queue === undefined) {
      queue = { serial: new Serial(), count: 0 };
      this.#queues.set(key, queue);
    }
    queue.count += 1;
    try {
      return await queue.serial.run(work);
    } finally {
      queue.count -= 1;
      if (queue.count === 0) this.#queues.delete(key);
    }
  }

  /** Keys of which something is under way. */
  get size(): number {
    return this.#queues.size;
  }
}

/**
 * For work that does for everybody at once what each asks for, as a flush does (group commit): one runs at a
 * time, and all that ask meanwhile share the next.
 */
export class SharedRuns {
  #running: Promise<void> | null = null;
  #next: Promise<void> | null = null;

  get running(): boolean {
    return this.#running !== null;
  }

  /** Resolves, or rejects, with a run of `work` that began after this call. */
  run(work: () => Promise<void>): Promise<void> {
    if (this.#next !== null) return this.#next;
    if (this.#running === null) return this.#start(work);
    this.#next = this.#running
      .catch(() => {}) // those who waited for it were told
      .then(() => {
        this.#next = null;
        return this.#start(work);
      });
    return this.#next;
  }

  #start(work: () => Promise<void>): Promise<void> {
    const running = work().finally(() => {
      if (this.#running === running) this.#running = null;
    });
    this.#running = running;
    return running;
  }
}
