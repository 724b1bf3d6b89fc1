import { rawRelease } from '../sys/raw-io.ts';
import { PAYLOAD_BYTES_MAX, SLOT_BYTES } from './fuse-protocol.ts';

/**
 * What the hot thread and the main thread of a volume server share: request slots, and a ring through which
 * the hot thread hands requests over by number. All of it is allocated once. When every slot is with the main
 * thread, the hot thread waits: so the memory for requests is bounded, and the kernel keeps the rest.
 */

/**
 * What the kernel sends at once at most (`max_background` of the handshake). A loop device has 128 requests
 * of at most 1280 KiB (LOOP_DEFAULT_HW_Q_DEPTH in drivers/block/loop.c, max_sectors_kb), each of which is two
 * of FUSE's 1 MiB: 256, when all of them wait for a source. At its limit the kernel makes the loop device's
 * only thread wait, and with it every request behind; so there is room for a loop device of twice the depth.
 */
export const BACKGROUND_REQUESTS_MAX = 512;
/**
 * Flushes, discards and metadata are not counted there: one for each thread that sends some. Address space
 * only: a page that was never used costs nothing.
 */
const FOREGROUND_SLOTS = 64;
export const SLOT_COUNT = BACKGROUND_REQUESTS_MAX + FOREGROUND_SLOTS;

/** Slots from this one on give the pages of a large request back when it is done. */
const RETAINED_SLOTS = 8;
const RETAINED_BYTES = 128 * 1024;

const PAGE_BYTES = 4096;

/** Access in shared memory. */
export const ACCESS_STANDBY = 0;
export const ACCESS_WRITABLE = 1;
export const ACCESS_READONLY = 2;

/** Words of the control area. */
const ACCESS = 0;
/** Odd while the hot thread decides about and works on a request. */
const SEQUENCE = 1;
const STOP = 2;
const POSTED = 3;
const DOORBELL = 4;
const FREED = 5;
const WHOLE = 6;
const RING = 8;
/** A power of two above SLOT_COUNT. */
const RING_LENGTH = 1024;
const TAKEN = RING + RING_LENGTH;
const CONTROL_WORDS = TAKEN + SLOT_COUNT;

export type SharedSlots = { control: SharedArrayBuffer; data: SharedArrayBuffer };

/** Both threads have one, over the same memory. */
export class Slots {
  readonly shared: SharedSlots;
  readonly #control: Int32Array;
  #taken = 0;

  constructor(shared?: SharedSlots) {
    this.shared = shared ?? {
      control: new SharedArrayBuffer(CONTROL_WORDS * 4),
      // One page more, so that the first slot can start on a page border.
      data: new SharedArrayBuffer(SLOT_COUNT * SLOT_BYTES + PAGE_BYTES),
    };
    this.#control = new Int32Array(this.shared.control);
  }

  /** Where slot `index` starts in `shared.data`, given the address of that memory. */
  static offsetBytesOf(index: number, dataAddress: number): number {
    const alignment = (PAGE_BYTES - (dataAddress % PAGE_BYTES)) % PAGE_BYTES;
    return alignment + index * SLOT_BYTES;
  }

  get access(): number {
    return Atomics.load(this.#control, ACCESS);
  }

  set access(value: number) {
    Atomics.store(this.#control, ACCESS, value);
  }

  /** True: no block is absent any more, so the validity bits need not be looked at (and may be unmapped). */
  get whole(): boolean {
    return Atomics.load(this.#control, WHOLE) === 1;
  }

  set whole(value: boolean) {
    Atomics.store(this.#control, WHOLE, value ? 1 : 0);
  }

  get stopped(): boolean {
    return Atomics.load(this.#control, STOP) === 1;
  }

  stop(): void {
    Atomics.store(this.#control, STOP, 1);
    Atomics.add(this.#control, FREED, 1);
    Atomics.notify(this.#control, FREED);
  }

  /**
   * Hot thread: between `begin` and `end` it acts on what it read from `access` and `whole`. Together with
   * `sequence`, the main thread can change one of them and then know that nobody acts on the old value (all
   * four are sequentially consistent).
   */
  begin(): void {
    Atomics.add(this.#control, SEQUENCE, 1);
  }

  end(): void {
    Atomics.add(this.#control, SEQUENCE, 1);
  }

  get sequence(): number {
    return Atomics.load(this.#control, SEQUENCE);
  }

  /** Hot thread: a free slot, waiting for one if need be; -1 after `stop`. */
  take(): number {
    for (;;) {
      const freed = Atomics.load(this.#control, FREED);
      if (this.stopped) return -1;
      for (let i = 0; i < SLOT_COUNT; i++) {
        // The lowest one, so that few pages are ever touched.
        if (Atomics.load(this.#control, TAKEN + i) === 0) {
          Atomics.store(this.#control, TAKEN + i, 1);
          return i;
        }
      }
      Atomics.wait(this.#control, FREED, freed);
    }
  }

  /** Hot thread: hands a slot over. True when the main thread must be woken. */
  post(index: number): boolean {
    const posted = Atomics.load(this.#control, POSTED);
    Atomics.store(this.#control, RING + (posted & (RING_LENGTH - 1)), index);
    Atomics.store(this.#control, POSTED, posted + 1);
    return Atomics.exchange(this.#control, DOORBELL, 1) === 0;
  }

  /** Main thread, when it was woken: the next slot that was handed over, or -1. */
  next(): number {
    if (this.#taken === Atomics.load(this.#control, POSTED)) {
      Atomics.store(this.#control, DOORBELL, 0);
      // One that came between the look and the store rang no bell.
      if (this.#taken === Atomics.load(this.#control, POSTED)) return -1;
    }
    const index = Atomics.load(this.#control, RING + (this.#taken & (RING_LENGTH - 1)));
    this.#taken = (this.#taken + 1) | 0;
    return index;
  }

  /** Main thread: the request was answered. */
  free(index: number, payloadAddress: number, payloadBytes: number): void {
    if (index >= RETAINED_SLOTS && payloadBytes > RETAINED_BYTES)
      rawRelease(payloadAddress, PAYLOAD_BYTES_MAX);
    Atomics.store(this.#control, TAKEN + index, 0);
    Atomics.add(this.#control, FREED, 1);
    Atomics.notify(this.#control, FREED);
  }
}
