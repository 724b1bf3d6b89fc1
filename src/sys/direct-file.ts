import { close, constants, openSync, read } from 'node:fs';
import { promisify } from 'node:util';
import { errnoOf } from './libc.ts';
import { addressOf } from './raw-io.ts';

const ALIGNMENT_BYTES = 4096;
const BUFFER_BYTES = 2 ** 20;
const readAt = promisify(read);

/**
 * Reads of a file past the page cache (open(2), O_DIRECT): what the disk has, not what was written. The
 * kernel writes dirty pages of the range out first, and keeps the cache as it is. On a filesystem that cannot
 * do that (tmpfs before Linux 6.6) it reads through the cache. Offsets and lengths are multiples of 4096; one
 * read at a time.
 */
export class DirectFile {
  readonly #fd: number;
  readonly #buffer: Buffer;
  /** False: through the page cache. */
  readonly direct: boolean;

  /** Throws errors of open(2). */
  constructor(path: string) {
    let fd: number;
    let direct = true;
    try {
      fd = openSync(path, constants.O_RDONLY | constants.O_DIRECT);
    } catch (error) {
      if (errnoOf(error) !== 'EINVAL') throw error;
      fd = openSync(path, constants.O_RDONLY);
      direct = false;
    }
    this.#fd = fd;
    this.direct = direct;
    const memory = Buffer.alloc(BUFFER_BYTES + ALIGNMENT_BYTES);
    const skip = (ALIGNMENT_BYTES - (addressOf(memory) % ALIGNMENT_BYTES)) % ALIGNMENT_BYTES;
    this.#buffer = memory.subarray(skip, skip + BUFFER_BYTES);
  }

  /** Fills `into`; a file that ends before leaves the rest as it is. */
  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const wanted = Math.min(BUFFER_BYTES, into.length - done);
      const { bytesRead } = await readAt(this.#fd, this.#buffer, 0, wanted, offsetBytes + done);
      if (bytesRead === 0) return;
      into.set(this.#buffer.subarray(0, bytesRead), done);
      done += bytesRead;
    }
  }

  close(): Promise<void> {
    return promisify(close)(this.#fd);
  }
}
