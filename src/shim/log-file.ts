import { constants, createReadStream } from 'node:fs';
import { type FileHandle, open, rename, stat } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import type { Clock } from '../base/clock.ts';
import { systemErrorCode } from '../base/errors.ts';

/** A log is rotated when it would become longer than this; one old file (`.1`) is kept. */
const LOG_BYTES_MAX = 8 * 1024 * 1024;
/** Output that waits for the disk before the writer of a pipe is made to wait. */
const QUEUE_BYTES_MAX = 1024 * 1024;

/**
 * Writes the output of a machine to `path`, at most twice `bytesMax` on disk. Write errors (a full disk) lose
 * output and are counted; they never stop the machine.
 */
export class LogWriter {
  readonly path: string;
  readonly #bytesMax: number;
  #file: FileHandle | undefined;
  #lengthBytes = 0;
  #queue: Buffer[] = [];
  #queuedBytes = 0;
  #writing: Promise<void> | undefined;
  #paused = new Set<Readable>();
  /** Bytes that could not be written. */
  lostBytes = 0;

  constructor(path: string, bytesMax = LOG_BYTES_MAX) {
    this.path = path;
    this.#bytesMax = bytesMax;
  }

  /** Takes everything that the stream gives; the stream waits while the disk is behind. */
  attach(stream: Readable): void {
    stream.on('data', (chunk: Buffer) => {
      this.write(chunk);
      if (this.#queuedBytes > QUEUE_BYTES_MAX) {
        stream.pause();
        this.#paused.add(stream);
      }
    });
    stream.on('error', () => {});
  }

  write(chunk: Buffer): void {
    this.#queue.push(chunk);
    this.#queuedBytes += chunk.length;
    this.#writing ??= this.#drain();
  }

  /** Resolves when all that was given is written (or lost). */
  async flush(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
  }

  async close(): Promise<void> {
    await this.flush();
    await this.#file?.close().catch(() => {});
    this.#file = undefined;
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0) {
      const chunk = Buffer.concat(this.#queue);
      this.#queue = [];
      this.#queuedBytes = 0;
      for (const stream of this.#paused) stream.resume();
      this.#paused.clear();
      try {
        await this.#append(chunk);
      } catch {
        this.lostBytes += chunk.length;
      }
    }
    this.#writing = undefined;
  }

  async #append(chunk: Buffer): Promise<void> {
    for (let offset = 0; offset < chunk.length; ) {
      if (this.#file === undefined) {
        this.#file = await open(
          this.path,
          constants.O_WRONLY | constants.O_CREAT | constants.O_APPEND,
          0o600,
        );
        this.#lengthBytes = (await this.#file.stat()).size;
      }
      const room = this.#bytesMax - this.#lengthBytes;
      if (room <= 0) {
        await this.#file.close();
        this.#file = undefined;
        await rename(this.path, `${this.path}.1`);
        continue;
      }
      const { bytesWritten } = await this.#file.write(chunk, offset, Math.min(room, chunk.length - offset));
      offset += bytesWritten;
      this.#lengthBytes += bytesWritten;
    }
  }
}

export type LogReadOptions = {
  /** Last lines to begin with; all that is kept when left out. */
  tailLines?: number;
  /** Goes on with what is written later, until the signal aborts. */
  follow?: boolean;
  signal?: AbortSignal;
};

/** Between two looks at a log that is followed. */
const FOLLOW_INTERVAL_MS = 200;
const READ_BYTES = 64 * 1024;

/**
 * The kept output of a machine, oldest first, in chunks of at most 64 KiB; reads past a rotation. A machine
 * without output gives nothing.
 */
export async function* readLog(
  path: string,
  clock: Clock,
  options: LogReadOptions = {},
): AsyncGenerator<Uint8Array> {
  const old = await statOrNull(`${path}.1`);
  const current = await statOrNull(path);
  const oldBytes = old?.size ?? 0;
  const skipBytes =
    options.tailLines === undefined
      ? 0
      : await tailStart(oldBytes, current?.size ?? 0, path, options.tailLines);
  let inode = current?.ino ?? null;
  let position = Math.max(0, skipBytes - oldBytes);
  if (skipBytes < oldBytes) yield* chunks(`${path}.1`, skipBytes, oldBytes);
  while (true) {
    const now = await statOrNull(path);
    if (now !== null && now.ino !== inode) {
      // Rotated: what was written to the former file after our last read is in `.1` now.
      const rotated = await statOrNull(`${path}.1`);
      if (rotated !== null && rotated.ino === inode) yield* chunks(`${path}.1`, position, rotated.size);
      inode = now.ino;
      position = 0;
    }
    if (now !== null && now.size > position) {
      for await (const chunk of chunks(path, position, now.size)) {
        position += chunk.length;
        yield chunk;
      }
    }
    if (options.follow !== true || options.signal?.aborted) return;
    try {
      await clock.sleep(FOLLOW_INTERVAL_MS, options.signal);
    } catch {
      return;
    }
  }
}

/** Where the last `lines` lines begin, counted over the old file and the current one together. */
async function tailStart(
  oldBytes: number,
  currentBytes: number,
  path: string,
  lines: number,
): Promise<number> {
  if (lines === 0) return oldBytes + currentBytes;
  // One newline more than lines: the one before the first wanted line. The last byte of a log is mostly a
  // newline.
  let wanted = lines + 1;
  const files = [
    { path, base: oldBytes, size: currentBytes },
    { path: `${path}.1`, base: 0, size: oldBytes },
  ];
  let first = true;
  for (const file of files) {
    for (let end = file.size; end > 0; ) {
      const start = Math.max(0, end - READ_BYTES);
      const block = await readRange(file.path, start, end);
      for (let index = block.length - 1; index >= 0; index--) {
        const isNewline = block[index] === 10;
        if (first && !isNewline) wanted--; // the log ends in half a line, which counts as one
        first = false;
        if (isNewline && --wanted === 0) return file.base + start + index + 1;
      }
      end = start;
    }
  }
  return 0;
}

async function readRange(path: string, start: number, end: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks(path, start, end)) parts.push(chunk);
  return Buffer.concat(parts);
}

async function* chunks(path: string, start: number, end: number): AsyncGenerator<Uint8Array> {
  if (end <= start) return;
  try {
    yield* createReadStream(path, { start, end: end - 1, highWaterMark: READ_BYTES });
  } catch (error) {
    // Rotated away between the look and the read.
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
}

async function statOrNull(path: string): Promise<{ ino: number; size: number } | null> {
  try {
    return await stat(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
}
