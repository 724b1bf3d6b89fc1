import { inspect } from 'node:util';

/**
 * Bytes that must not be seen: a volume key, a passphrase. They live in memory of their own, which is
 * overwritten by `dispose` (or at the end of a `using` block); whatever prints or serialises the object
 * prints `[secret]`. There is no string of it anywhere, because strings cannot be overwritten.
 */
export class Secret {
  readonly #bytes: Buffer;
  #disposed = false;

  private constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** Moves the bytes in: the caller's copy is zeros afterwards. */
  static take(bytes: Uint8Array): Secret {
    // Not from the shared pool of small buffers: another buffer's neighbour could be read past its end.
    const own = Buffer.allocUnsafeSlow(bytes.length);
    own.set(bytes);
    bytes.fill(0);
    return new Secret(own);
  }

  get lengthBytes(): number {
    return this.#bytes.length;
  }

  /** The bytes themselves, not a copy. Whoever copies them overwrites the copy. Throws after `dispose`. */
  get bytes(): Buffer {
    if (this.#disposed) throw new Error('a secret was used after it was disposed of');
    return this.#bytes;
  }

  /** Another owner's copy. */
  clone(): Secret {
    return Secret.take(Buffer.from(this.bytes));
  }

  dispose(): void {
    this.#bytes.fill(0);
    this.#disposed = true;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  toString(): string {
    return '[secret]';
  }

  toJSON(): string {
    return '[secret]';
  }

  [inspect.custom](): string {
    return '[secret]';
  }
}
