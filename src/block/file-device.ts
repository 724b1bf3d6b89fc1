import { close, constants, fdatasync, fstat, fsyncSync, openSync, read, write, writeSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type ErrorValues, GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import { punchHole } from '../sys/fallocate.ts';
import { fileExtents } from '../sys/file-extents.ts';
import { errnoOf } from '../sys/libc.ts';
import { readNow } from '../sys/read-now.ts';
import { startWriteBackOf, writeBackAndWait } from '../sys/sync-file-range.ts';
import type { BlockDevice, ByteRange, Extent } from './block-device.ts';
import { checkGeometry, checkRange, closedError, ExtentList, rangeFits, readOnlyError } from './range.ts';

export type FileDeviceOptions = {
  /** A path to open, or an open descriptor, which the device owns and closes from here on. */
  file: string | number;
  lengthBytes: number;
  /** Default 512. */
  blockBytes?: number;
  /** Default true. False opens a path O_RDONLY. */
  writable?: boolean;
  /**
   * Default true: see the class. False is for a caller that keeps all that it wrote since the last flush that
   * succeeded, and writes it again when one fails.
   */
  flushFailureStays?: boolean;
};

/**
 * A device on a raw file, sparse: discarded and zeroed ranges become holes. The file may be longer than the
 * device, never shorter. Its data goes through the page cache; flush is fdatasync(2).
 *
 * After a flush failed, every later one fails too: the kernel reports a lost write once and then calls the
 * pages clean (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
 */
export class FileDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  /** For callers that do their own positional I/O on the file. Valid until `close`. */
  readonly fileDescriptor: number;
  readonly #flushFailureStays: boolean;
  #closed = false;
  /**
   * Calls that use the descriptor. It is closed after the last one, so that no late call hits whatever gets
   * its number next.
   */
  #inFlight = 0;
  #closing: PromiseWithResolvers<void> | null = null;
  #flushFailure: GodwitError | null = null;
  /** The filesystem cannot punch holes; zeros are written instead. */
  #holesUnsupported = false;

  private constructor(options: FileDeviceOptions, fileDescriptor: number) {
    this.lengthBytes = options.lengthBytes;
    this.blockBytes = options.blockBytes ?? 512;
    this.writable = options.writable ?? true;
    this.#flushFailureStays = options.flushFailureStays ?? true;
    this.fileDescriptor = fileDescriptor;
  }

  /**
   * Rejects with `BLOCK_BAD_GEOMETRY`, `BLOCK_SHORT_FILE`, or `BLOCK_OPEN_FAILED` with the errno in its
   * values.
   */
  static async open(options: FileDeviceOptions): Promise<FileDevice> {
    const flags = options.writable === false ? constants.O_RDONLY : constants.O_RDWR;
    let fileDescriptor: number;
    try {
      fileDescriptor = typeof options.file === 'number' ? options.file : openSync(options.file, flags);
    } catch (error) {
      throw openError(options.file, error);
    }
    const device = new FileDevice(options, fileDescriptor);
    try {
      checkGeometry(device);
      const fileLengthBytes = (await device.#stat()).size;
      if (fileLengthBytes < device.lengthBytes) throw shortFileError(device.lengthBytes, fileLengthBytes);
    } catch (error) {
      await device.close();
      throw error;
    }
    return device;
  }

  /**
   * Makes a new file of holes, durably (file and folder are synced), readable by the owner only, and opens
   * it. Rejects with `BLOCK_OPEN_FAILED` (EEXIST when there is one already) or `BLOCK_NO_SPACE`.
   */
  static async create(
    path: string,
    options: { lengthBytes: number; blockBytes?: number },
  ): Promise<FileDevice> {
    const { lengthBytes, blockBytes = 512 } = options;
    checkGeometry({ lengthBytes, blockBytes });
    const file = await open(path, 'wx', 0o600).catch((error: unknown) => {
      throw openError(path, error);
    });
    try {
      await file.truncate(lengthBytes);
      await file.sync();
      const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
      try {
        fsyncSync(folder);
      } finally {
        await closeDescriptor(folder);
      }
    } catch (error) {
      await rm(path, { force: true });
      throw ioError('create', 0, lengthBytes, error);
    } finally {
      await file.close();
    }
    return FileDevice.open({ file: path, lengthBytes, blockBytes });
  }

  /** Space that the file takes on disk (st_blocks), in bytes. */
  async allocatedBytes(): Promise<number> {
    this.#enter();
    try {
      return (await this.#stat()).blocks * 512;
    } finally {
      this.#leave();
    }
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#check(offsetBytes, into.length);
    this.#enter();
    try {
      for (let done = 0; done < into.length; ) {
        const count = await this.#readSome(offsetBytes + done, into, done);
        if (count === 0) throw shortFileError(this.lengthBytes, offsetBytes + done);
        done += count;
      }
    } finally {
      this.#leave();
    }
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    if (this.#closed || !rangeFits(this, offsetBytes, into.length)) return false;
    try {
      return readNow(this.fileDescriptor, into, offsetBytes);
    } catch {
      return false; // `read` meets the same failure and gives it its type
    }
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#checkMutation(offsetBytes, from.length);
    this.#enter();
    try {
      for (let done = 0; done < from.length; ) done += await this.#writeSome(offsetBytes + done, from, done);
    } finally {
      this.#leave();
    }
  }

  writeNow(offsetBytes: number, from: Uint8Array): boolean {
    if (this.#closed || !this.writable || !rangeFits(this, offsetBytes, from.length)) return false;
    try {
      return writeSync(this.fileDescriptor, from, 0, from.length, offsetBytes) === from.length;
    } catch {
      return false; // `write` meets the same failure and gives it its type
    }
  }

  async flush(): Promise<void> {
    this.#enter();
    try {
      if (this.#flushFailure !== null) throw this.#flushFailure;
      if (this.writable) await this.#fdatasync();
    } finally {
      this.#leave();
    }
  }

  /** Of all ranges at once, so that the disk has them side by side. */
  async writeBack(ranges: readonly ByteRange[]): Promise<void> {
    for (const { offsetBytes, lengthBytes } of ranges) this.#checkMutation(offsetBytes, lengthBytes);
    this.#enter();
    try {
      if (ranges.length > 1) await this.#settled(ranges, startWriteBackOf);
      await this.#settled(ranges, writeBackAndWait);
    } finally {
      this.#leave();
    }
  }

  async beginWriteBack(ranges: readonly ByteRange[]): Promise<void> {
    for (const { offsetBytes, lengthBytes } of ranges) this.#checkMutation(offsetBytes, lengthBytes);
    this.#enter();
    try {
      await this.#settled(ranges, startWriteBackOf);
    } finally {
      this.#leave();
    }
  }

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.writeZeroes(offsetBytes, lengthBytes);
  }

  /** As holes where the filesystem can, as written zeros where it cannot. */
  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#checkMutation(offsetBytes, lengthBytes);
    if (lengthBytes === 0) return;
    this.#enter();
    try {
      if (!this.#holesUnsupported) {
        try {
          await punchHole(this.fileDescriptor, offsetBytes, lengthBytes);
          return;
        } catch (error) {
          if (errnoOf(error) !== 'ENOTSUP') throw ioError('discard', offsetBytes, lengthBytes, error);
          this.#holesUnsupported = true;
        }
      }
      await this.#writeZeroBytes(offsetBytes, lengthBytes);
    } finally {
      this.#leave();
    }
  }

  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    this.#check(offsetBytes, lengthBytes);
    try {
      const extents = fileExtents(this.fileDescriptor, offsetBytes, lengthBytes);
      return alignExtents(extents, offsetBytes, lengthBytes, this.blockBytes, limitExtents);
    } catch (error) {
      if (isGodwitError(error, 'SYS_CALL_FAILED')) throw ioError('extents', offsetBytes, lengthBytes, error);
      throw error;
    }
  }

  /** Waits for the calls in flight, then closes the descriptor. */
  async close(): Promise<void> {
    if (this.#closing === null) {
      this.#closed = true;
      this.#closing = Promise.withResolvers();
      if (this.#inFlight === 0) this.#closeNow();
    }
    await this.#closing.promise;
  }

  #closeNow(): void {
    closeDescriptor(this.fileDescriptor).then(this.#closing!.resolve, this.#closing!.reject);
  }

  #enter(): void {
    if (this.#closed) throw closedError();
    this.#inFlight++;
  }

  #leave(): void {
    this.#inFlight--;
    if (this.#closed && this.#inFlight === 0) this.#closeNow();
  }

  #check(offsetBytes: number, lengthBytes: number): void {
    if (this.#closed) throw closedError();
    checkRange(this, offsetBytes, lengthBytes);
  }

  #checkMutation(offsetBytes: number, lengthBytes: number): void {
    this.#check(offsetBytes, lengthBytes);
    if (!this.writable) throw readOnlyError();
  }

  #readSome(offsetBytes: number, into: Uint8Array, done: number): Promise<number> {
    return new Promise((resolve, reject) => {
      read(this.fileDescriptor, into, done, into.length - done, offsetBytes, (error, count) => {
        if (error) reject(ioError('read', offsetBytes, into.length - done, error));
        else resolve(count);
      });
    });
  }

  #writeSome(offsetBytes: number, from: Uint8Array, done: number): Promise<number> {
    return new Promise((resolve, reject) => {
      write(this.fileDescriptor, from, done, from.length - done, offsetBytes, (error, count) => {
        if (error) reject(ioError('write', offsetBytes, from.length - done, error));
        else resolve(count);
      });
    });
  }

  #fdatasync(): Promise<void> {
    return new Promise((resolve, reject) => {
      fdatasync(this.fileDescriptor, (error) => {
        if (!error) return resolve();
        const failure = ioError('flush', 0, this.lengthBytes, error);
        if (this.#flushFailureStays) this.#flushFailure = failure;
        reject(failure);
      });
    });
  }

  async #writeZeroBytes(offsetBytes: number, lengthBytes: number): Promise<void> {
    const zeros = new Uint8Array(Math.min(lengthBytes, 1024 * 1024));
    for (let done = 0; done < lengthBytes; ) {
      const piece = zeros.subarray(0, Math.min(zeros.length, lengthBytes - done));
      done += await this.#writeSome(offsetBytes + done, piece, 0);
    }
  }

  /** One call after the other, because each holds a thread of the pool; all of them, also when one failed. */
  async #settled(ranges: readonly ByteRange[], call: typeof writeBackAndWait): Promise<void> {
    let failure: GodwitError | null = null;
    for (const { offsetBytes, lengthBytes } of ranges) {
      await call(this.fileDescriptor, offsetBytes, lengthBytes).catch((error: unknown) => {
        failure ??= ioError('write-back', offsetBytes, lengthBytes, error);
      });
    }
    if (failure !== null) throw failure;
  }

  #stat(): Promise<{ size: number; blocks: number }> {
    return new Promise((resolve, reject) => {
      fstat(this.fileDescriptor, (error, stats) => (error ? reject(openError('', error)) : resolve(stats)));
    });
  }
}

/**
 * Extents of a filesystem as extents of a device: the borders of the first can be finer than the blocks of
 * the second, and a block that holds any data is data. The range is aligned and `extents` covers it without
 * gaps.
 */
export function alignExtents(
  extents: Iterable<Extent>,
  offsetBytes: number,
  lengthBytes: number,
  blockBytes: number,
  limitExtents: number,
): Extent[] {
  const list = new ExtentList(limitExtents);
  const endBytes = offsetBytes + lengthBytes;
  let at = offsetBytes;
  for (const extent of extents) {
    const round = extent.kind === 'data' ? Math.ceil : Math.floor;
    const extentEndBytes = extent.offsetBytes + extent.lengthBytes;
    const end = Math.min(endBytes, round(extentEndBytes / blockBytes) * blockBytes);
    if (!list.add(at, end - at, extent.kind)) break;
    at = Math.max(at, end);
  }
  return list.extents;
}

function closeDescriptor(fileDescriptor: number): Promise<void> {
  return new Promise((resolve, reject) => {
    close(fileDescriptor, (error) => (error ? reject(ioError('close', 0, 0, error)) : resolve()));
  });
}

function shortFileError(lengthBytes: number, fileLengthBytes: number): GodwitError {
  return new GodwitError(
    'BLOCK_SHORT_FILE',
    `the file has ${fileLengthBytes} bytes and the device ${lengthBytes}: its end was cut off`,
    {
      values: { lengthBytes, fileLengthBytes },
      nextAction: 'Data is missing. Do not extend the file; restore the volume from its source or a backup.',
    },
  );
}

function openError(file: string | number, error: unknown): GodwitError {
  const errno = errnoOf(error) ?? 'unknown';
  return new GodwitError('BLOCK_OPEN_FAILED', `cannot open the file of the device: ${messageOf(error)}`, {
    values: { file, errno },
    nextAction: 'Check the path, the rights of the worker on it, and that the disk is mounted.',
    cause: error,
  });
}

function ioError(operation: string, offsetBytes: number, lengthBytes: number, error: unknown): GodwitError {
  const errno = errnoOf(error) ?? 'unknown';
  const values: ErrorValues = { operation, offsetBytes, lengthBytes, errno };
  if (errno === 'ENOSPC' || errno === 'EDQUOT') {
    return new GodwitError('BLOCK_NO_SPACE', `the disk is full: ${messageOf(error)}`, {
      values,
      nextAction: 'Free space on the filesystem that holds the volumes, then try again.',
      cause: error,
    });
  }
  return new GodwitError('BLOCK_IO', `${operation} failed: ${messageOf(error)}`, {
    values,
    nextAction: 'Look at the kernel log for the disk that fails; move the machine away from this host.',
    cause: error,
  });
}
