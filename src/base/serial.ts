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
