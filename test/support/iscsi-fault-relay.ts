import { connect, createServer, type Server, type Socket } from 'node:net';
import { BHS_BYTES, DIGEST_BYTES, OPCODE } from '../../src/iscsi/constants.ts';
import { ahsBytesOf, dataSegmentBytesOf, decodeLoginResponse, opcodeOf } from '../../src/iscsi/pdu.ts';
import { reset } from './reset.ts';

/** out: initiator to target. */
export type Direction = 'out' | 'in';

/**
 * Where in a PDU: before its first byte, or in the middle of a part of it. Where the PDU has no such part,
 * before its last byte.
 */
export const FAULT_PARTS = ['boundary', 'header', 'data', 'digest'] as const;
export type FaultPart = (typeof FAULT_PARTS)[number];

/**
 *   reset          RST to both sides
 *   cut            FIN to both sides
 *   stall          both connections stay open and nothing passes any more, in either direction
 *   target-gone    the target's connection is reset; the initiator's stays open in silence
 *   initiator-gone the other way round
 *   late           what follows in that direction is held back until there is another connection, and arrives then
 *   duplicate      bytes come twice; at a boundary a whole PDU
 *   garbage        other bytes instead; at a boundary bytes between the PDUs
 */
export const FAULT_KINDS = [
  ...['reset', 'cut', 'stall', 'target-gone', 'initiator-gone', 'late'],
  ...['duplicate', 'garbage'],
] as const;
export type FaultKind = 'reset' | 'cut' | 'stall' | 'target-gone' | 'initiator-gone' | 'late' | Corruption;
export type Corruption = 'duplicate' | 'garbage';

export type Fault = { kind: FaultKind; direction: Direction; pdu: number; part: FaultPart };

export type RecordedPdu = { opcode: number; parts: FaultPart[] };

const RECENT_PDU_BYTES = 64 * 1024;
const LATE_MS = 10;
const GARBAGE_BYTES = 5;

/** Follows one direction of a connection from PDU to PDU. */
class Tap {
  readonly direction: Direction;
  readonly pdus: RecordedPdu[] = [];
  /** Digests are in use from here on. */
  digests = false;
  readonly #header = Buffer.alloc(BHS_BYTES);
  /** Bytes of the current PDU that have gone by. */
  position = 0;
  /** The whole PDU; null while its header is not here. */
  lengthBytes: number | null = null;
  #faultAt: Partial<Record<FaultPart, number>> = {};

  constructor(direction: Direction) {
    this.direction = direction;
  }

  get index(): number {
    return this.pdus.length;
  }

  /** How many of these bytes may go before the fault happens; `bytes.length` or more: all of them. */
  until(fault: Fault | null, bytes: number): number {
    if (fault === null || fault.direction !== this.direction || fault.pdu !== this.index) return bytes;
    const at = this.#faultOffset(fault.part);
    return at === null || at < this.position ? bytes : at - this.position;
  }

  #faultOffset(part: FaultPart): number | null {
    if (part === 'boundary') return 0;
    if (part === 'header') return BHS_BYTES / 2;
    if (this.lengthBytes === null) return null;
    return this.#faultAt[part] ?? this.lengthBytes - 1;
  }

  /** At most up to the end of the header or of the PDU; returns how many were taken. */
  advance(bytes: Buffer): number {
    const inHeader = this.position < BHS_BYTES;
    const end = inHeader ? BHS_BYTES : this.lengthBytes!;
    const count = Math.min(bytes.length, end - this.position);
    if (inHeader) bytes.copy(this.#header, this.position, 0, count);
    this.position += count;
    if (this.position === BHS_BYTES && inHeader) this.#measure();
    return count;
  }

  /** Returns the header of a PDU that has just ended, else null. */
  ended(): Buffer | null {
    if (this.lengthBytes === null || this.position < this.lengthBytes) return null;
    const parts: FaultPart[] = ['boundary', 'header'];
    if (this.#faultAt.data !== undefined) parts.push('data');
    if (this.#faultAt.digest !== undefined) parts.push('digest');
    this.pdus.push({ opcode: opcodeOf(this.#header), parts });
    this.position = 0;
    this.lengthBytes = null;
    return this.#header;
  }

  #measure(): void {
    const digestBytes = this.digests ? DIGEST_BYTES : 0;
    const dataStart = BHS_BYTES + ahsBytesOf(this.#header) + digestBytes;
    const dataBytes = dataSegmentBytesOf(this.#header);
    const padded = dataBytes + (-dataBytes & 3);
    this.lengthBytes = dataStart + (dataBytes === 0 ? 0 : padded + digestBytes);
    this.#faultAt = {};
    if (dataBytes > 0) this.#faultAt.data = dataStart + Math.floor(dataBytes / 2);
    if (this.digests) this.#faultAt.digest = this.lengthBytes - DIGEST_BYTES / 2;
  }
}

type Pair = { client: Socket; upstream: Socket; taps: Record<Direction, Tap>; frozen: boolean };

/**
 * A TCP relay between an iSCSI initiator and a target that knows where PDUs begin and end, and does one thing
 * wrong at one exact place of the first connection. Connections after it go through as they are.
 */
export class IscsiFaultRelay {
  readonly #server: Server;
  readonly #upstream: { host: string; port: number };
  readonly #digests: boolean;
  readonly #random: (bytes: number) => Uint8Array;
  readonly #sockets = new Set<Socket>();
  readonly #held: (() => void)[] = [];
  #fault: Fault | null;
  /** On the clock of performance.now; null: it did not happen. */
  firedAtMs: number | null = null;
  accepted = 0;
  /** PDUs of the first connection up to the fault. */
  recorded: Record<Direction, RecordedPdu[]> = { out: [], in: [] };

  constructor(options: {
    upstream: { host: string; port: number };
    /** What the two sides will agree on. */
    digests: boolean;
    fault: Fault | null;
    random: (bytes: number) => Uint8Array;
  }) {
    this.#upstream = options.upstream;
    this.#digests = options.digests;
    this.#fault = options.fault;
    this.#random = options.random;
    this.#server = createServer((client) => this.#accept(client));
  }

  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    const address = this.#server.address();
    if (typeof address !== 'object' || address === null) throw new Error('the relay does not listen');
    return address.port;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(client: Socket): void {
    this.accepted += 1;
    if (this.#held.length > 0) {
      const held = this.#held.splice(0);
      setTimeout(() => {
        for (const release of held) release();
      }, LATE_MS);
    }
    const upstream = connect(this.#upstream);
    const taps = { out: new Tap('out'), in: new Tap('in') };
    const pair: Pair = { client, upstream, taps, frozen: false };
    if (this.accepted === 1) this.recorded = { out: taps.out.pdus, in: taps.in.pdus };
    this.#join(pair, 'out');
    this.#join(pair, 'in');
  }

  #join(pair: Pair, direction: Direction): void {
    const [from, to] = direction === 'out' ? [pair.client, pair.upstream] : [pair.upstream, pair.client];
    const first = this.accepted === 1;
    let hold: Buffer[] | null = null;
    const state = { broken: false, again: null as Buffer[] | null };
    this.#sockets.add(from);
    from.setNoDelay(true);
    from.on('error', () => {});
    from.on('end', () => {
      if (!pair.frozen && hold === null) to.end();
    });
    from.on('close', () => {
      this.#sockets.delete(from);
      if (!pair.frozen && hold === null) to.destroy();
    });
    from.on('data', (chunk: Buffer) => {
      if (pair.frozen) return;
      if (hold !== null) {
        hold.push(chunk);
        return;
      }
      if (!first || state.broken) {
        to.write(chunk);
        return;
      }
      let bytes = chunk;
      while (bytes.length > 0 && !pair.frozen) {
        const tap = pair.taps[direction];
        const free = tap.until(this.#fault, bytes.length);
        if (free === 0) {
          const fault = this.#fire();
          if (fault.kind === 'late') {
            hold = [bytes];
            this.#held.push(() => {
              for (const one of hold ?? []) to.write(one);
              to.end();
            });
            return;
          }
          if (fault.kind === 'garbage') {
            state.broken = true;
            to.write(this.#corrupt(bytes, fault.part === 'boundary'));
            return;
          }
          if (fault.kind === 'duplicate') {
            if (fault.part !== 'boundary') {
              state.broken = true;
              to.write(bytes.subarray(0, GARBAGE_BYTES));
              to.write(bytes);
              return;
            }
            state.again = [];
          } else {
            this.#end(fault.kind, pair);
            return;
          }
        }
        // Only up to the fault, which may be in the middle of what is here.
        const step = bytes.subarray(0, free === 0 ? bytes.length : Math.min(free, bytes.length));
        const count = tap.advance(step);
        to.write(bytes.subarray(0, count));
        state.again?.push(bytes.subarray(0, count));
        bytes = bytes.subarray(count);
        const header = tap.ended();
        if (header === null) continue;
        if (state.again !== null) {
          // A whole PDU was to come twice, and is complete.
          const twice = Buffer.concat(state.again);
          if (twice.length <= RECENT_PDU_BYTES) to.write(twice);
          if (bytes.length > 0) to.write(bytes);
          state.broken = true;
          return;
        }
        this.#follow(pair, direction, header);
      }
    });
  }

  #fire(): Fault {
    const fault = this.#fault!;
    this.#fault = null;
    this.firedAtMs = performance.now();
    return fault;
  }

  /** Digests begin with the first PDU after the login. */
  #follow(pair: Pair, direction: Direction, header: Buffer): void {
    if (direction !== 'in' || opcodeOf(header) !== OPCODE.loginResponse) return;
    const response = decodeLoginResponse(header);
    if (!response.transit || response.nextStage !== 3) return;
    pair.taps.in.digests = this.#digests;
    pair.taps.out.digests = this.#digests;
  }

  #corrupt(bytes: Buffer, between: boolean): Buffer {
    const garbage = Buffer.from(
      this.#random(between ? GARBAGE_BYTES : Math.min(GARBAGE_BYTES, bytes.length)),
    );
    if (between) return Buffer.concat([garbage, bytes]);
    // Never by chance what was there before.
    for (let at = 0; at < garbage.length; at += 1) garbage[at] = bytes[at]! ^ (garbage[at]! | 1);
    return Buffer.concat([garbage, bytes.subarray(garbage.length)]);
  }

  #end(kind: Exclude<FaultKind, Corruption | 'late'>, pair: Pair): void {
    pair.frozen = true;
    switch (kind) {
      case 'reset':
        reset(pair.client);
        reset(pair.upstream);
        break;
      case 'cut':
        pair.client.end();
        pair.upstream.end();
        break;
      case 'target-gone':
        reset(pair.upstream);
        break;
      case 'initiator-gone':
        reset(pair.client);
        break;
      case 'stall':
        break;
    }
  }
}
