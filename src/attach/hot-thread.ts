import { flushCompileCache } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { type MapPlace, sharedMapMemory } from '../clone/map-memory.ts';
import { blockCountOf, ValidityMap } from '../clone/validity-map.ts';
import { decryptSectors } from '../crypt/luks2-device.ts';
import { createXts, TWEAK_BYTES, type XtsCipher } from '../crypt/xts.ts';
import {
  addressOf,
  EAGAIN,
  EINTR,
  ENODEV,
  ENOENT,
  EOPNOTSUPP,
  ReadablePoll,
  rawCopy,
  rawRead,
  rawReadAt,
  rawReadNow,
  rawWrite,
  rawWriteAt,
} from '../sys/raw-io.ts';
import { viewAt } from '../sys/shared-mapping.ts';
import { answerMetadata } from './fuse-metadata.ts';
import {
  FuseSlot,
  OPCODE,
  PAYLOAD_AT,
  REPLY_AT,
  REQUEST_AT,
  REQUEST_BYTES_MAX,
  SLOT_BYTES,
} from './fuse-protocol.ts';
import { COUNTER, GuestCounters } from './guest-counters.ts';
import { Heat } from './heat.ts';
import { ACCESS_STANDBY, ACCESS_WRITABLE, type SharedSlots, SLOT_COUNT, Slots } from './slots.ts';

/**
 * The hot thread of a volume server: reads requests from /dev/fuse and answers at once, with synchronous
 * system calls, what needs no waiting: reads and writes of blocks that are in the local file. Everything else
 * goes to the main thread. No promise, no allocation, no thread hop on this path: see docs/performance.md for
 * what each of them costs.
 */
export type HotThreadData = {
  fuseFd: number;
  /** An event descriptor: readable when the thread shall end. */
  wakeFd: number;
  slots: SharedSlots;
  /**
   * Of a slot in memory that is always there (sys/resident-memory.ts), into which each request comes first.
   * Read into a page that is not there, while this process is being killed, a request fails with EIO at the
   * guest instead of being sent again: the kernel finds no page for who is about to end.
   */
  landingAddress: bigint;
  counters: SharedArrayBuffer;
  heat: SharedArrayBuffer;
  lengthBytes: number;
  /** Alignment of what the hot path serves; anything else is for the main thread to refuse. */
  blockBytes: number;
  /** null: no local file; every read and write goes to the main thread. */
  hot: HotPath | null;
  /** How long to look for the next request before sleeping. 0 on a machine with one processor. */
  spinMicroseconds: number;
};

/** The local file that the hot path reads and writes. */
export type HotPath = {
  dataFd: number;
  validity: MapPlace | null;
  /** Where the blocks are marked that are written to (volume/validity-file.ts), before they are. */
  written?: MapPlace | null;
  /**
   * Address of a word that is set to 1 when the guest changes data (volume/data-guard.ts); there until all is
   * whole.
   */
  unflushedAddress?: bigint | null;
  /**
   * KiB that may be written before somebody looks whether the disk has room (volume/disk-room.ts). Left out:
   * nobody looks.
   */
  portion?: SharedArrayBuffer;
  /**
   * The file is ciphertext of a LUKS2 segment from its first byte on. The thread overwrites its copy of the
   * key.
   */
  encryption?: { key: Uint8Array; sectorBytes: number };
};

/** A message of the thread: the doorbell, time to start write-back, or how /dev/fuse ended. */
export type HotThreadMessage = 'posted' | 'dirty' | { closed: number };

/**
 * Larger writes go to the file in pieces of this size. The page cache makes folios as large as the write that
 * creates them, and a later 4 KiB write costs a walk over all blocks of its folio: measured on ext4, 10.0 us
 * after 1 MiB writes, 3.0 us after 64 KiB ones.
 */
const WRITE_PIECE_BYTES = 64 * 1024;

/**
 * After this many bytes of writes the file's dirty pages start on their way to the disk, so that they do not
 * pile up until a flush (the seal before a handoff is one) or until the host throttles every writer, this
 * thread among them.
 */
const WRITE_BEHIND_BYTES = 64 * 1024 * 1024;

/** After this many spins in a row without a request, spinning pauses for `SPIN_PAUSE_REQUESTS` requests. */
const SPIN_MISSES_MAX = 4;
const SPIN_PAUSE_REQUESTS = 64;
/** A spin that took this much longer than meant was interrupted by other work; the pause is longer then. */
const PREEMPTED_AFTER_MS = 0.3;
const SPIN_PAUSE_PREEMPTED_REQUESTS = 4096;

function run(data: HotThreadData, cipher: XtsCipher | null): number {
  const { fuseFd, lengthBytes, blockBytes, hot } = data;
  const slots = new Slots(data.slots);
  const counters = new GuestCounters(data.counters);
  const heat = new Heat(data.heat);
  const dataAddress = addressOf(new Uint8Array(data.slots.data));
  const slotOffsets = Array.from({ length: SLOT_COUNT }, (_, index) =>
    Slots.offsetBytesOf(index, dataAddress),
  );
  const landingAddress = Number(data.landingAddress);
  const landingBytes = viewAt(data.landingAddress, SLOT_BYTES);
  const landing = new FuseSlot(landingBytes.buffer, landingBytes.byteOffset);
  const poll = new ReadablePoll(fuseFd, data.wakeFd);
  const dataFd = hot?.dataFd ?? -1;
  const validity = mapAt(hot?.validity, lengthBytes);
  const written = mapAt(hot?.written, lengthBytes);
  const unflushed = hot?.unflushedAddress ? wordAt(hot.unflushedAddress) : null;
  const portion = hot?.portion ? new Int32Array(hot.portion) : null;
  const cipherText = new Uint8Array(cipher === null ? 0 : WRITE_PIECE_BYTES);
  const cipherAddress = addressOf(cipherText);
  let readWithoutWaiting = rawReadNow;
  let dirtyBytes = 0;
  let spinMisses = 0;
  let spinPause = 0;

  /** One request into the slot at `address`: its length, or a negative errno (-ENODEV: unmounted). */
  function receive(address: number): number {
    for (;;) {
      const count = rawRead(fuseFd, address, REQUEST_BYTES_MAX);
      // ENOENT: the request was taken back while it was being read. EINTR: the same for this call.
      if (count >= 0 || (count !== -EAGAIN && count !== -ENOENT && count !== -EINTR)) return count;
      if (count === -EAGAIN) {
        if (spinPause > 0) {
          spinPause--;
        } else if (data.spinMicroseconds > 0) {
          const caught = spin(address);
          if (caught !== -EAGAIN) return caught;
        }
        poll.wait(-1);
        if (slots.stopped) return -ENODEV;
      }
    }
  }

  /**
   * Looks for the next request for a short while. Waking a sleeping processor takes longer than a whole
   * request, so at depth 1 this doubles the rate; where requests come slowly it gives up and costs next to
   * nothing.
   */
  function spin(address: number): number {
    const startMs = performance.now();
    const endMs = startMs + data.spinMicroseconds / 1000;
    let nowMs = startMs;
    do {
      for (let attempt = 0; attempt < 4; attempt++) {
        const count = rawRead(fuseFd, address, REQUEST_BYTES_MAX);
        if (count !== -EAGAIN && count !== -ENOENT && count !== -EINTR) {
          spinMisses = 0;
          return count;
        }
      }
      nowMs = performance.now();
    } while (nowMs < endMs);
    // Much later than meant: somebody else needed the processor. A thread that sleeps gets it at once when it
    // wakes, one that used its share up with looking does not.
    const preempted = nowMs - endMs > PREEMPTED_AFTER_MS;
    if (preempted || ++spinMisses >= SPIN_MISSES_MAX) {
      spinMisses = 0;
      spinPause = preempted ? SPIN_PAUSE_PREEMPTED_REQUESTS : SPIN_PAUSE_REQUESTS;
    }
    return -EAGAIN;
  }

  function isLocal(offsetBytes: number, sizeBytes: number): boolean {
    if ((offsetBytes | sizeBytes) & (blockBytes - 1) || offsetBytes + sizeBytes > lengthBytes) return false;
    if (sizeBytes === 0 || validity === null || slots.whole) return true;
    return validity.hasAll(
      Math.floor(offsetBytes / BLOCK_BYTES),
      Math.ceil((offsetBytes + sizeBytes) / BLOCK_BYTES),
    );
  }

  function tryRead(slot: FuseSlot, address: number): number {
    const offsetBytes = slot.offsetBytes;
    const sizeBytes = slot.sizeBytes;
    if (dataFd < 0 || slots.access === ACCESS_STANDBY || !isLocal(offsetBytes, sizeBytes)) return 0;
    const startMs = performance.now();
    let count = readWithoutWaiting(dataFd, address + PAYLOAD_AT, sizeBytes, offsetBytes);
    if (count === -EOPNOTSUPP) {
      // tmpfs and the like: no promise is possible, and none is needed.
      readWithoutWaiting = rawReadAt;
      count = rawReadAt(dataFd, address + PAYLOAD_AT, sizeBytes, offsetBytes);
    }
    // Not in the page cache, and the attempt has started the disk. Nobody else waits: then waiting here is
    // quicker than two thread hops. Somebody does: then the main thread waits, and reads of the disk run side
    // by side.
    if (count !== sizeBytes && poll.wait(0) === 0) {
      count = rawReadAt(dataFd, address + PAYLOAD_AT, sizeBytes, offsetBytes);
    }
    if (count !== sizeBytes) return 0;
    if (cipher !== null && sizeBytes > 0)
      decryptSectors(cipher, slot.payload(sizeBytes), offsetBytes / TWEAK_BYTES);
    const replyBytes = slot.replyRead(sizeBytes);
    rawWrite(fuseFd, address + REPLY_AT, replyBytes);
    heat.read(offsetBytes, sizeBytes);
    counters.add(COUNTER.reads, 1);
    counters.add(COUNTER.readBytes, sizeBytes);
    const milliseconds = performance.now() - startMs;
    counters.readLatency.record(milliseconds);
    counters.waited('read', milliseconds);
    return replyBytes;
  }

  /**
   * Mostly a look at one word: what is written once is written often. False: the map needs memory for that,
   * which is the main thread's to reserve; once in 128 MiB.
   */
  function markWritten(offsetBytes: number, endBytes: number): boolean {
    const first = Math.floor(offsetBytes / BLOCK_BYTES);
    const end = Math.ceil(endBytes / BLOCK_BYTES);
    return written!.hasAll(first, end) || written!.trySetRange(first, end);
  }

  /** False: the main thread is to look at the disk first. */
  function hasRoom(sizeBytes: number): boolean {
    const units = (sizeBytes + 1023) >> 10;
    return portion === null || Atomics.sub(portion, 0, units) >= units;
  }

  function tryWrite(slot: FuseSlot, address: number): number {
    const offsetBytes = slot.offsetBytes;
    const sizeBytes = slot.sizeBytes;
    if (dataFd < 0 || slots.access !== ACCESS_WRITABLE || !isLocal(offsetBytes, sizeBytes)) return 0;
    if (!hasRoom(sizeBytes)) return 0;
    const startMs = performance.now();
    if (written !== null && !slots.whole && !markWritten(offsetBytes, offsetBytes + sizeBytes)) return 0;
    if (unflushed !== null && !slots.whole) unflushed[0] = 1;
    for (let done = 0; done < sizeBytes; ) {
      const pieceBytes = Math.min(WRITE_PIECE_BYTES, sizeBytes - done);
      let from = address + PAYLOAD_AT + done;
      if (cipher !== null) {
        // Beside the payload, which must stay as it is should the main thread have to do the write again.
        const piece = slot.payload(sizeBytes).subarray(done, done + pieceBytes);
        cipher.encrypt(piece, cipherText.subarray(0, pieceBytes), (offsetBytes + done) / TWEAK_BYTES);
        from = cipherAddress;
      }
      const count = rawWriteAt(dataFd, from, pieceBytes, offsetBytes + done);
      // Half a sector of ciphertext is no place to go on from.
      if (cipher !== null && count >= 0 && count < pieceBytes) return 0;
      // A full disk and the like: the main thread does the whole write again and finds the words for it.
      if (count <= 0 && count !== -EINTR) return 0;
      done += Math.max(0, count);
    }
    // Again: a flush that began meanwhile did not cover it.
    if (unflushed !== null && !slots.whole) unflushed[0] = 1;
    const replyBytes = slot.replyWrite(sizeBytes);
    rawWrite(fuseFd, address + REPLY_AT, replyBytes);
    dirtyBytes += sizeBytes;
    if (dirtyBytes >= WRITE_BEHIND_BYTES) {
      dirtyBytes = 0;
      parentPort!.postMessage('dirty' satisfies HotThreadMessage);
    }
    heat.write(offsetBytes, sizeBytes);
    counters.add(COUNTER.writes, 1);
    counters.add(COUNTER.writeBytes, sizeBytes);
    const milliseconds = performance.now() - startMs;
    counters.writeLatency.record(milliseconds);
    counters.waited('write', milliseconds);
    return replyBytes;
  }

  /** True when the request is done with; false: it is for the main thread. */
  function answer(slot: FuseSlot, address: number): boolean {
    const opcode = slot.opcode;
    if (opcode === OPCODE.read) return tryRead(slot, address) > 0;
    if (opcode === OPCODE.write) return tryWrite(slot, address) > 0;
    const replyBytes = answerMetadata(slot, lengthBytes);
    if (replyBytes === null) return false;
    // A failure here is ENOENT: the request was aborted, and nobody waits for the reply.
    if (replyBytes > 0) rawWrite(fuseFd, address + REPLY_AT, replyBytes);
    return true;
  }

  // Before a request is taken in there is a slot for it.
  for (let index = slots.take(); index !== -1; ) {
    const count = receive(landingAddress + REQUEST_AT);
    if (count < 0) return count;
    slots.begin();
    const done = answer(landing, landingAddress);
    if (!done) {
      rawCopy(dataAddress + slotOffsets[index]! + REQUEST_AT, landingAddress + REQUEST_AT, count);
      if (slots.post(index)) parentPort!.postMessage('posted' satisfies HotThreadMessage);
    }
    slots.end();
    if (!done) index = slots.take();
  }
  return -ENODEV;
}

function cipherOf({ hot }: HotThreadData): XtsCipher | null {
  if (!hot?.encryption) return null;
  const made = createXts(hot.encryption.key, hot.encryption.sectorBytes);
  hot.encryption.key.fill(0);
  return made;
}

function mapAt(place: MapPlace | null | undefined, lengthBytes: number): ValidityMap | null {
  return place == null
    ? null
    : new ValidityMap(sharedMapMemory(place), blockCountOf(lengthBytes), { counted: false });
}

function wordAt(address: bigint): Uint32Array {
  const bytes = viewAt(address, 4);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, 1);
}

assert(parentPort !== null, 'the hot thread is a worker of the FUSE server');
// A server usually ends by a signal, and then nothing would be kept for the next one. No effect without
// NODE_COMPILE_CACHE.
flushCompileCache();
const data = workerData as HotThreadData;
const cipher = cipherOf(data);
parentPort.postMessage({ closed: run(data, cipher) } satisfies HotThreadMessage);
cipher?.dispose();
