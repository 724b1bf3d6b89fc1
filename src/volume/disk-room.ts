import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PAUSE } from '../base/patience.ts';
import { BLOCK_BYTES, type BlockDevice, type Extent } from '../block/block-device.ts';
import type { FileDevice } from '../block/file-device.ts';
import type { ArrivalStore } from '../clone/arrival.ts';
import type { AttachSpec, Leaving } from '../opening/spec.ts';
import { fileSystemOf } from '../sys/file-system.ts';

/**
 * Volumes are thin: together they may promise more than their disk has. What is kept back at its end:
 *
 *     free ────────────────────────────────────────────────────────────────────────▶ 0
 *     │ volumes write │ reserve: a machine that leaves │ … and has stopped │ last: journal, records │
 *
 * Writes that need room stop before the reserve, those of all volumes at the same place and in small
 * portions, and wait there (`pause`: the guest sees a slow disk, and goes on when there is room) or fail with
 * `BLOCK_NO_SPACE` (`error`). Writes of what the file has already go on. The reserve is opened for the
 * machine that leaves: what its page cache holds must reach the volume before it can be unmounted. Half of it
 * only when it has stopped: else it would write on until nothing is left for that.
 */
const RESERVE_BYTES_MAX = 256 * 2 ** 20;
const RESERVE_PART = 16;
const LAST_PART = 4;

/** Bytes of a disk of this size that volumes leave free. */
export function diskReserveBytes(totalBytes: number): number {
  return Math.min(RESERVE_BYTES_MAX, Math.floor(totalBytes / RESERVE_PART));
}

/** Bytes of it that they leave free even when a machine leaves. */
export function lastReserveBytes(totalBytes: number): number {
  return Math.floor(diskReserveBytes(totalBytes) / LAST_PART);
}

/** Bytes of a disk of this size that a volume leaves free. */
export function keptBytes(totalBytes: number, leaving: Leaving): number {
  const [reserveBytes, lastBytes] = [diskReserveBytes(totalBytes), lastReserveBytes(totalBytes)];
  if (leaving === 'no') return reserveBytes;
  return leaving === 'stopped' ? lastBytes : Math.ceil((reserveBytes + lastBytes) / 2);
}

/**
 * What a volume may write before it looks at the disk again: a part of what is free, so that many volumes do
 * not pass the reserve at once.
 */
const PORTION_PART = 16;
const PORTION_BYTES_MIN = 2 ** 20;
const PORTION_BYTES_MAX = 64 * 2 ** 20;
const UNIT_BYTES = 1024;
const LOOK_MS = PAUSE.roomLook.ms;
/**
 * What is not written of a portion by then is nobody's: else many volumes that hardly write would together
 * have promised more than the reserve.
 */
const PORTION_MS = PAUSE.roomPortion.ms;
/** What was seen of the disk counts for so long for fetched blocks, of which there are many. */
const FRESH_MS = 250;

export type WhenFull = 'pause' | 'error';

export type NoRoom = {
  /** Wall clock. */
  sinceMs: number;
  /** Writes of the guest that wait; 0 with `error`, where they fail. */
  waiting: number;
  freeBytes: number;
  /** What stays free. */
  reserveBytes: number;
  /** It is not the disk that is full but where this file is, the live map of a clone: memory, mostly. */
  map?: string;
};

export type DiskRoomOptions = {
  /** Of the filesystem that the volume's file is on. */
  look: () => Promise<{ totalBytes: number; availableBytes: number }>;
  /** What of the volume's file is there already. */
  extents: (offsetBytes: number, lengthBytes: number, limitExtents: number) => Promise<Extent[]>;
  whenFull: WhenFull;
  /** Default: none of the reserve is open. */
  leaving?: Leaving;
  clock: Clock;
};

type Waiter = { lengthBytes: number; admit: () => void; refuse: (error: Error) => void };

/** The room that one volume finds on its disk. */
export class DiskRoom {
  /**
   * What may be written before the next look, in KiB; shared with the hot thread, which takes its part of it.
   */
  readonly portion = new SharedArrayBuffer(4);
  readonly #portion = new Int32Array(this.portion);
  readonly #options: DiskRoomOptions;
  #leaving: Leaving;
  #waiters: Waiter[] = [];
  #looking: Promise<number> | null = null;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #freeBytes = 0;
  /** Above what stays free, less what was let in since that was looked at. */
  #roomBytes = 0;
  /** Let in, and not written yet: the disk does not know of it. */
  #pendingBytes = 0;
  #reserveBytes = 0;
  #sinceMs: number | null = null;
  #cancelTimer: (() => void) | null = null;
  #cancelPortion: (() => void) | null = null;
  /** Calls of the guest that wait for memory for the live map. */
  #mapWaits: { path: string; sinceMs: number; waiting: number } | null = null;
  #closed = false;
  #refuses = false;

  constructor(options: DiskRoomOptions) {
    this.#options = options;
    this.#leaving = options.leaving ?? 'no';
  }

  /** How much of the reserve is open to this volume. */
  get leaving(): Leaving {
    return this.#leaving;
  }

  /** null: there is room, as far as anybody has asked. */
  shortage(): NoRoom | null {
    const [freeBytes, reserveBytes] = [this.#freeBytes, this.#reserveBytes];
    // Nobody waits, and so nobody looks: who was refused may never write again.
    const isStale = this.#options.clock.monotonicMs() - this.#lookedMs > PORTION_MS;
    const isIdle = this.#sinceMs !== null && this.#waiters.length === 0 && !this.#closed;
    if (isStale && isIdle) void this.#look().catch(() => {});
    if (this.#sinceMs !== null)
      return { sinceMs: this.#sinceMs, waiting: this.#waiters.length, freeBytes, reserveBytes };
    if (this.#mapWaits === null) return null;
    const { path, sinceMs, waiting } = this.#mapWaits;
    return { sinceMs, waiting, freeBytes, reserveBytes, map: path };
  }

  /** Opens the reserve for a machine that leaves, or closes it again. Idempotent. */
  async leave(leaving: Leaving): Promise<void> {
    this.#leaving = leaving;
    await this.#look();
    await this.#letIn();
  }

  /** True: that much may be written without a look. */
  spend(lengthBytes: number): boolean {
    const units = Math.ceil(lengthBytes / UNIT_BYTES);
    return Atomics.sub(this.#portion, 0, units) >= units;
  }

  /**
   * Resolves when the guest may write this; `done` follows when it has. Rejects `BLOCK_NO_SPACE` where writes
   * fail for want of room.
   */
  async admit(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (this.#waiters.length === 0 && this.spend(lengthBytes)) {
      this.#pendingBytes += lengthBytes;
      return;
    }
    await this.#look();
    // Many may have come for one look: each takes its part of what it saw.
    if (this.#waiters.length === 0 && this.#take(lengthBytes)) return;
    if (await this.#isThere(offsetBytes, lengthBytes)) {
      this.#pendingBytes += lengthBytes;
      return;
    }
    this.#sinceMs ??= this.#options.clock.wallMs();
    if (this.#options.whenFull === 'error') throw noSpace(this.shortage()!);
    await this.#wait(lengthBytes);
  }

  done(lengthBytes: number): void {
    this.#pendingBytes -= lengthBytes;
  }

  #take(lengthBytes: number): boolean {
    if (this.#roomBytes < lengthBytes) return false;
    this.#roomBytes -= lengthBytes;
    this.#pendingBytes += lengthBytes;
    return true;
  }

  /**
   * The disk refused though it seemed to have room: others were quicker, or there is a quota. True: try
   * again; false: the guest is to be told.
   */
  refused(): Promise<boolean> {
    if (this.#options.whenFull === 'pause') this.#sinceMs ??= this.#options.clock.wallMs();
    return this.#mayTryAgain();
  }

  /** The same where the live map at `path` found no memory. */
  async refusedByMap(path: string): Promise<boolean> {
    this.#mapWaits ??= { path, sinceMs: this.#options.clock.wallMs(), waiting: 0 };
    const waits = this.#mapWaits;
    waits.waiting++;
    try {
      return await this.#mayTryAgain();
    } finally {
      waits.waiting--;
    }
  }

  /** The live map has memory again, as far as who waited for it knows. */
  mapHasRoom(): void {
    if (this.#mapWaits?.waiting === 0) this.#mapWaits = null;
  }

  async #mayTryAgain(): Promise<boolean> {
    if (this.#options.whenFull === 'error') return false;
    if (!this.#closed) await this.#options.clock.sleep(LOOK_MS);
    // As in `close`: a server that ends answers nothing that the next one can do.
    if (this.#closed && !this.#refuses) await new Promise<never>(() => {});
    return !this.#closed;
  }

  /** For a fetched block, which can stay at its source: rejects `BLOCK_NO_SPACE` at the reserve. */
  async admitFetched(lengthBytes: number): Promise<void> {
    const { clock } = this.#options;
    if (clock.monotonicMs() - this.#lookedMs > FRESH_MS || this.#freeBytes - this.#reserveBytes < lengthBytes)
      await this.#look();
    if (this.#freeBytes - this.#reserveBytes >= lengthBytes) return;
    this.#sinceMs ??= clock.wallMs();
    throw noSpace(this.shortage()!);
  }

  /**
   * Looks no more. `refuse`: who waits is told that there is no room, and else waits on: for a server that
   * ends, since the kernel sends to the next one what this one did not answer.
   */
  close({ refuse }: { refuse: boolean }): void {
    this.#closed = true;
    this.#refuses ||= refuse;
    this.#cancelTimer?.();
    this.#cancelPortion?.();
    if (refuse) for (const waiter of this.#waiters.splice(0)) waiter.refuse(noSpace(this.shortage()!));
  }

  async #isThere(offsetBytes: number, lengthBytes: number): Promise<boolean> {
    const startBytes = offsetBytes - (offsetBytes % BLOCK_BYTES);
    const endBytes = Math.ceil((offsetBytes + lengthBytes) / BLOCK_BYTES) * BLOCK_BYTES;
    const extents = await this.#options.extents(startBytes, endBytes - startBytes, 2);
    return (
      extents.length === 1 && extents[0]!.kind === 'data' && extents[0]!.lengthBytes >= endBytes - startBytes
    );
  }

  /** Bytes above what stays free; what may be written of them before the next look is noted. */
  #look(): Promise<number> {
    this.#looking ??= this.#lookOnce().finally(() => {
      this.#looking = null;
    });
    return this.#looking;
  }

  async #lookOnce(): Promise<number> {
    const { look, clock } = this.#options;
    const { totalBytes, availableBytes } = await look();
    this.#lookedMs = clock.monotonicMs();
    this.#freeBytes = availableBytes;
    this.#reserveBytes = keptBytes(totalBytes, this.#leaving);
    const roomBytes = Math.max(0, availableBytes - this.#reserveBytes - this.#pendingBytes);
    // A little more than the least write: at the very edge nobody is let in and stopped by turns.
    const hasRoom = roomBytes >= 2 * PORTION_BYTES_MIN;
    const portionBytes = Math.min(PORTION_BYTES_MAX, Math.max(PORTION_BYTES_MIN, roomBytes / PORTION_PART));
    Atomics.store(this.#portion, 0, hasRoom ? Math.floor(portionBytes / UNIT_BYTES) : 0);
    this.#endPortion(hasRoom);
    if (hasRoom && this.#waiters.length === 0) this.#sinceMs = null;
    this.#roomBytes = hasRoom ? roomBytes : 0;
    return this.#roomBytes;
  }

  /** One timer from a look on, and none while nobody writes. */
  #endPortion(hasPortion: boolean): void {
    this.#cancelPortion?.();
    this.#cancelPortion = null;
    if (!hasPortion || this.#closed) return;
    this.#cancelPortion = this.#options.clock.timer(PORTION_MS, () => {
      this.#cancelPortion = null;
      Atomics.store(this.#portion, 0, 0);
    });
  }

  #wait(lengthBytes: number): Promise<void> {
    return new Promise((admit, refuse) => {
      this.#waiters.push({ lengthBytes, admit, refuse });
      this.#lookLater();
    });
  }

  #lookLater(): void {
    if (this.#cancelTimer !== null || this.#waiters.length === 0 || this.#closed) return;
    this.#cancelTimer = this.#options.clock.timer(LOOK_MS, () => {
      this.#cancelTimer = null;
      void this.#look()
        .then(() => this.#letIn())
        // A disk that cannot be asked has no room.
        .catch(() => {})
        .finally(() => this.#lookLater());
    });
  }

  /** In the order in which they came, as many as one portion has room for; the next ones at the next look. */
  async #letIn(): Promise<void> {
    let leftBytes = Atomics.load(this.#portion, 0) * UNIT_BYTES;
    while (this.#waiters.length > 0) {
      const { lengthBytes, admit } = this.#waiters[0]!;
      // No write is larger than the least portion by much: the first of a portion always fits.
      if (leftBytes <= 0 || !this.#take(lengthBytes)) return;
      leftBytes -= lengthBytes;
      this.#waiters.shift();
      admit();
    }
    if (this.#roomBytes > 0) this.#sinceMs = null;
  }
}

/** A volume as its guest writes to it: what needs room waits for it. Everything else is the device's. */
export class RoomyDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly extents?: NonNullable<BlockDevice['extents']>;
  readonly readNow?: NonNullable<BlockDevice['readNow']>;
  readonly #device: BlockDevice;
  readonly #room: DiskRoom;

  constructor(device: BlockDevice, room: DiskRoom) {
    this.#device = device;
    this.#room = room;
    this.lengthBytes = device.lengthBytes;
    this.blockBytes = device.blockBytes;
    if (device.extents) this.extents = device.extents.bind(device);
    if (device.readNow) this.readNow = device.readNow.bind(device);
  }

  get writable(): boolean {
    return this.#device.writable;
  }

  read(offsetBytes: number, into: Uint8Array): Promise<void> {
    return this.#device.read(offsetBytes, into);
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.#withRoom(async () => {
      await this.#room.admit(offsetBytes, from.length);
      try {
        await this.#device.write(offsetBytes, from);
      } finally {
        this.#room.done(from.length);
      }
    });
  }

  writeNow(offsetBytes: number, from: Uint8Array): boolean {
    return this.#room.spend(from.length) && this.#device.writeNow?.(offsetBytes, from) === true;
  }

  flush(): Promise<void> {
    return this.#device.flush();
  }

  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#withRoom(() => this.#device.discard(offsetBytes, lengthBytes));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#withRoom(() => this.#device.writeZeroes(offsetBytes, lengthBytes));
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  /** Again for as long as the disk is full, or where the live map is: each of these may be repeated. */
  async #withRoom(call: () => Promise<void>): Promise<void> {
    let waitedForMap = false;
    try {
      for (;;) {
        try {
          return await call();
        } catch (error) {
          let again = false;
          if (isGodwitError(error, 'BLOCK_NO_SPACE')) again = await this.#room.refused();
          else if (isGodwitError(error, 'VOLUME_NO_SPACE')) {
            waitedForMap = true;
            again = await this.#room.refusedByMap(String(error.values.path));
          }
          if (!again) throw error;
        }
      }
    } finally {
      if (waitedForMap) this.#room.mapHasRoom();
    }
  }
}

/** Where fetched blocks are put: at the reserve the disk is full for them. */
export function roomyArrivals(store: ArrivalStore, room: DiskRoom): ArrivalStore {
  return {
    write: async (offsetBytes, from) => {
      await room.admitFetched(from.length);
      await store.write(offsetBytes, from);
    },
    discard: (offsetBytes, lengthBytes) => store.discard(offsetBytes, lengthBytes),
    ...(store.writeBack && { writeBack: store.writeBack.bind(store) }),
    ...(store.beginWriteBack && { beginWriteBack: store.beginWriteBack.bind(store) }),
  };
}

/** `local`: the data file of the volume that the spec is of. */
export function roomOf(
  { volumeDir, whenFull, leaving }: Pick<AttachSpec, 'volumeDir' | 'whenFull' | 'leaving'>,
  local: FileDevice,
  clock: Clock,
): DiskRoom {
  return new DiskRoom({
    look: () => fileSystemOf(volumeDir),
    extents: (offsetBytes, lengthBytes, limit) => local.extents(offsetBytes, lengthBytes, limit),
    whenFull: whenFull ?? 'pause',
    ...(leaving && { leaving }),
    clock,
  });
}

function noSpace({ freeBytes, reserveBytes }: NoRoom): GodwitError {
  return new GodwitError('BLOCK_NO_SPACE', 'the disk of the volumes is full but for what is kept back', {
    values: { freeBytes, reserveBytes },
    nextAction: 'Free space on the filesystem that holds the volumes, or move machines away.',
  });
}
