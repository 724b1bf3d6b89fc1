import { fstatSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';

/** What a reader that has stopped reading makes us keep; further lines are lost, and counted. */
const PENDING_BYTES_MAX = 1024 * 1024;

/** Where pino writes its lines. */
export type LogDestination = { write: (line: string) => void };

/**
 * Lines for a descriptor that never stop who writes them, neither while it runs nor at its end: a full disk
 * and a reader that is gone or has stopped reading cost lines, and the first line that goes through again
 * says how many.
 */
export function logDestination(fd: number): LogDestination {
  const stats = fstatSync(fd);
  // Writing to them may wait for their reader, for ever: without the event loop, that stops the process.
  return stats.isFIFO() || stats.isSocket() ? new PipeLog(fd) : new FileLog(fd);
}

class FileLog implements LogDestination {
  readonly #fd: number;
  readonly #lost = new LostLines();

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(line: string): void {
    const text = this.#lost.before(line);
    try {
      const bytes = Buffer.from(text);
      const written = writeSync(this.#fd, bytes);
      // The disk took a part: half a line, which the next one must not continue.
      if (written < bytes.length) this.#lost.add();
      else this.#lost.told();
    } catch {
      this.#lost.add();
    }
  }
}

class PipeLog implements LogDestination {
  readonly #socket: Socket;
  readonly #lost = new LostLines();

  constructor(fd: number) {
    this.#socket = new Socket({ fd, readable: false, writable: true });
    this.#socket.unref();
    // A reader that has gone.
    this.#socket.on('error', () => {});
  }

  write(line: string): void {
    if (!this.#socket.writable || this.#socket.writableLength > PENDING_BYTES_MAX) {
      this.#lost.add();
      return;
    }
    this.#socket.write(this.#lost.before(line));
    this.#lost.told();
  }
}

class LostLines {
  #count = 0;

  add(): void {
    this.#count++;
  }

  before(line: string): string {
    return this.#count === 0
      ? line
      : `\n{"level":40,"msg":"${this.#count} lines of this log were lost: it took none"}\n${line}`;
  }

  told(): void {
    this.#count = 0;
  }
}
