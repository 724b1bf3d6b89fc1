import type { BlockDevice } from '../block/block-device.ts';
import { LeftBehind } from './left-behind.ts';
import { ALLOCATION_CONTEXT, HYDRATION_CONTEXT, TRANSMISSION_FLAG } from './protocol.ts';

/** A part of a clone: its bytes are here, or they have to be fetched from the source first. */
export type HydrationExtent = { offsetBytes: number; lengthBytes: number; kind: 'hydrated' | 'remote' };

/**
 * Which parts of a range are hydrated, in order, without gaps, adjacent extents of one kind merged, at most
 * `limitExtents`; so the last one may end before the range does. Borders are multiples of the device's
 * `blockBytes`.
 */
export type HydrationExtents = (
  offsetBytes: number,
  lengthBytes: number,
  limitExtents: number,
) => HydrationExtent[] | Promise<HydrationExtent[]>;

export type NbdExportOptions = {
  /**
   * What clients ask for: at most 4096 bytes of UTF-8. A server with one export gives it to clients that ask
   * for no name too.
   */
  name: string;
  /** For people, in lists. */
  description?: string;
  device: BlockDevice;
  /** Default true. */
  readOnly?: boolean;
  /** Of a clone: offers the metadata context `godwit:hydration`. */
  hydration?: HydrationExtents;
  /**
   * Plain writes go through `writeNow` of the device, where it has that: for files in the page cache it saves
   * two hops between threads. It holds up the process while the kernel throttles writers, so it is for
   * processes that have nothing else to do. Default false.
   */
  writesNow?: boolean;
  /**
   * `writeZeroes` of the device is faster than writing. Default: true for devices that tell their extents,
   * because they make holes.
   */
  fastZeroes?: boolean;
};

/** A device under a name, as connections see it. */
export class NbdExport {
  readonly name: string;
  readonly description: string;
  readonly device: BlockDevice;
  readonly hydration: HydrationExtents | null;
  readonly writesNow: boolean;
  readonly fastZeroes: boolean;
  /** Metadata contexts that it has; the place in the list is the identity on the wire. */
  readonly contexts: readonly string[];
  readonly leftBehind = new LeftBehind();
  readonly #readOnly: boolean;

  constructor(options: NbdExportOptions) {
    this.name = options.name;
    this.description = options.description ?? '';
    this.device = options.device;
    this.#readOnly = options.readOnly ?? true;
    this.hydration = options.hydration ?? null;
    this.writesNow = options.writesNow ?? false;
    this.fastZeroes = options.fastZeroes ?? options.device.extents !== undefined;
    this.contexts = this.hydration === null ? [ALLOCATION_CONTEXT] : [ALLOCATION_CONTEXT, HYDRATION_CONTEXT];
  }

  /** As it is now: a volume can be sealed under its clients. */
  get readOnly(): boolean {
    return this.#readOnly || !this.device.writable;
  }

  /** All connections reach one device, so what one flushed is durable for each: multi-conn always holds. */
  transmissionFlags(mode: ReplyMode): number {
    const flag = TRANSMISSION_FLAG;
    let flags = flag.hasFlags | flag.sendFlush | flag.sendFua | flag.canMultiConn | flag.sendCache;
    if (this.readOnly) flags |= flag.readOnly;
    else flags |= flag.sendTrim | flag.sendWriteZeroes | flag.sendFastZero;
    if (mode !== 'simple') flags |= flag.sendDontFragment;
    if (mode === 'extended') flags |= flag.blockStatusPayload;
    return flags;
  }
}

/** What the handshake agreed on for replies; each includes the one before. */
export type ReplyMode = 'simple' | 'structured' | 'extended';
