/**
 * A block device: a fixed number of bytes with the calls that a disk has. Everything in godwit that holds
 * data is one of these or a layer over one (file, memory, fault, delay, stats, trace, clone, iSCSI
 * initiator).
 *
 * Contract, for callers and implementors alike:
 * - Ranges lie inside the device and are multiples of `blockBytes`; anything else rejects with
 *   `BLOCK_BAD_RANGE`.
 * - Calls may be in flight at the same time. Overlapping writes in flight have no defined order; a read that
 *   starts after a write resolved sees it.
 * - `flush` resolves when every write, discard and writeZeroes that had resolved before the call is durable.
 * - A discarded or zeroed range reads as zeros, now and after a power cut that follows a flush. (Linux lets a
 *   discard return anything; we do not, because another tenant's bytes could be there.)
 * - Errors: `GodwitError`; a device that is closed rejects with `BLOCK_CLOSED`, one that is read-only rejects
 *   mutations with `BLOCK_READ_ONLY`, a full disk with `BLOCK_NO_SPACE`.
 * - The buffers belong to the caller again when the promise settles, not before; a device never keeps them.
 */
export interface BlockDevice {
  readonly lengthBytes: number;
  /** The unit of addressing: every offset and length is a multiple of it. A power of two, 512 to 4096. */
  readonly blockBytes: number;
  readonly writable: boolean;

  /** Fills the whole of `into` from `offsetBytes`. */
  read(offsetBytes: number, into: Uint8Array): Promise<void>;
  write(offsetBytes: number, from: Uint8Array): Promise<void>;
  flush(): Promise<void>;
  discard(offsetBytes: number, lengthBytes: number): Promise<void>;
  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void>;
  /** Idempotent. Does not flush. */
  close(): Promise<void>;

  /**
   * The same as `read`, done synchronously, when that needs no waiting (memory, page cache). False: nothing
   * was done, call `read`. Saves the promise and the thread hop on hot paths.
   */
  readNow?(offsetBytes: number, into: Uint8Array): boolean;

  /**
   * The same as `write`, done synchronously, where that is a copy into memory (page cache) most of the time;
   * it may block when the kernel makes writers wait. False: nothing is known to be done, call `write`. For
   * small writes of callers that watch how long it takes.
   */
  writeNow?(offsetBytes: number, from: Uint8Array): boolean;

  /**
   * Which parts of the range hold data, in order, without gaps, adjacent extents of one kind merged, at most
   * `limitExtents`; so the last one may end before the range does. A hole reads as zeros. Devices that cannot
   * tell leave the method out.
   */
  extents?(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]>;

  /**
   * Resolves when what had been written to the ranges has left every cache that forgets it where the disk
   * refuses it. Not durable: that is `flush`. Rejects when something that was written through any handle on
   * the same data was refused since the last call on this one that told: what, is not known; so whoever rests
   * on it writes again all that this call has not confirmed. Devices without such a cache leave the method
   * out.
   */
  writeBack?(ranges: readonly ByteRange[]): Promise<void>;

  /** Starts what `writeBack` waits for, and says nothing of how it ends. */
  beginWriteBack?(ranges: readonly ByteRange[]): Promise<void>;
}

export type ByteRange = { offsetBytes: number; lengthBytes: number };

export type Extent = {
  offsetBytes: number;
  lengthBytes: number;
  /** 'data': may hold anything. 'hole': reads as zeros and takes no space. */
  kind: 'data' | 'hole';
};

/** The unit of validity of a clone and the largest block size that a device may ask for. */
export const BLOCK_BYTES = 4096;
