import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { SharedRuns } from '../base/serial.ts';
import type { BlockDevice, ByteRange, Extent } from '../block/block-device.ts';
import type { FileDevice } from '../block/file-device.ts';
import { createFile, removeFile, replaceFile } from '../sys/durable-file.ts';
import { VOLUME_FILES } from './files.ts';

/**
 * `data-loss.json` in a volume's folder: what a guest wrote there at this generation, and was told to be
 * accepted, is not on the disk, and nobody knows which part of it. It stands until an operator accepts it
 * (`acceptDataLoss`).
 *
 *   {"formatVersion": 1, "volumeId": "v_…", "generation": 3, "atMs": 1767225600000, "reason": "flush failed: EIO"}
 */
export type DataLoss = {
  formatVersion: 1;
  volumeId: string;
  generation: number;
  /** Wall clock. */
  atMs: number;
  reason: string;
};

const WRITE_RETRY_FIRST_MS = 500;
const WRITE_RETRY_MAX_MS = 30_000;
/** Positions of `unflushed` (validity-file.ts), and what the second one says. */
const WROTE = 0;
const FLUSHING = 1;
const IDLE = 0;
const UNDER_WAY = 1;
const LOST = 2;

/** Null: nothing is known to be lost. A file that cannot be read counts: it was written for a reason. */
export function readDataLoss(
  volumeDir: string,
  { volumeId, generation }: { volumeId: string; generation: number },
): DataLoss | null {
  let text: string;
  try {
    text = readFileSync(join(volumeDir, VOLUME_FILES.dataLoss), 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
  const unread: DataLoss = { formatVersion: 1, volumeId, generation, atMs: 0, reason: 'not known any more' };
  try {
    const found = JSON.parse(text) as Partial<DataLoss> | null;
    if (typeof found?.generation !== 'number') return unread;
    // Also of an earlier generation of this file: a seal finds a loss when the record is sealed, and then the
    // move is undone, which makes it a later one.
    if (found.generation > generation) return null;
    return { ...unread, atMs: Number(found.atMs ?? 0), reason: String(found.reason ?? unread.reason) };
  } catch {
    return unread;
  }
}

/** One that an operator has decided to go on with. */
export type AcceptedLoss = DataLoss & { acceptedAtMs: number };

/** What was accepted is kept in `data-loss-accepted.json`, newest last: this many. */
const ACCEPTED_MAX = 32;

/**
 * Ends the loss that was found at `atMs`: what the disk has counts from now on, and `data-loss-accepted.json`
 * says that somebody wanted that. For a volume that nobody has open. Idempotent. Null: there is no such loss;
 * another one, which came since, stands.
 */
export async function acceptDataLoss(
  volumeDir: string,
  volume: { volumeId: string; generation: number },
  { atMs, nowMs }: { atMs: number; nowMs: number },
): Promise<AcceptedLoss | null> {
  const path = join(volumeDir, VOLUME_FILES.dataLossAccepted);
  const accepted = readAccepted(path);
  const before = accepted.find((loss) => loss.atMs === atMs && loss.generation === volume.generation);
  const loss = readDataLoss(volumeDir, volume);
  if (loss?.atMs !== atMs) return loss === null ? (before ?? null) : null;
  const now = before ?? { ...loss, acceptedAtMs: Math.round(nowMs) };
  // First that it was wanted: a crash in between leaves the loss, and the same may be asked again.
  if (!before) {
    const kept = [...accepted, now].slice(-ACCEPTED_MAX);
    await replaceFile(path, `${JSON.stringify({ formatVersion: 1, accepted: kept })}\n`);
  }
  await removeFile(join(volumeDir, VOLUME_FILES.dataLoss));
  return now;
}

/**
 * For who ends a volume server, and is the last to know that data was lost while the disk refused the word of
 * it: writes it down, unless it is, or an operator has accepted that loss. Rejects with the error of the
 * disk.
 */
export async function keepDataLoss(
  volume: Pick<DataLoss, 'volumeId' | 'generation'> & { volumeDir: string },
  told: { atMs: number; reason: string },
): Promise<void> {
  const { volumeDir, volumeId, generation } = volume;
  if (readDataLoss(volumeDir, volume) !== null || isAccepted(volume, told.atMs)) return;
  // Its server may write the same just now.
  const loss: DataLoss = { formatVersion: 1, volumeId, generation, ...told };
  await createFile(join(volumeDir, VOLUME_FILES.dataLoss), fileOf(loss), { token: 'kept' });
}

function fileOf(loss: DataLoss): string {
  return `${JSON.stringify(loss)}\n`;
}

function isAccepted(
  { volumeDir, generation }: Pick<DataGuardOptions, 'volumeDir' | 'generation'>,
  atMs: number,
): boolean {
  const accepted = readAccepted(join(volumeDir, VOLUME_FILES.dataLossAccepted));
  return accepted.some((loss) => loss.atMs === atMs && loss.generation === generation);
}

/** A file that cannot be understood is no reason to keep a volume down: it is begun anew. */
function readAccepted(path: string): AcceptedLoss[] {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw error;
  }
  try {
    const { accepted } = JSON.parse(text) as { accepted?: unknown };
    return Array.isArray(accepted) ? (accepted as AcceptedLoss[]) : [];
  } catch {
    return [];
  }
}

export type DataGuardOptions = {
  volumeDir: string;
  volumeId: string;
  generation: number;
  /** What an earlier server of this guest told to be lost. It counts unless an operator has accepted it. */
  dataLoss?: { atMs: number; reason: string };
  clock: Clock;
  logger: Logger;
};

/**
 * What a guest wrote and the disk lost is an error, never old bytes: the kernel says once that a write-back
 * failed, then calls the pages clean. From then on the volume refuses everything, for this server and every
 * later one, until an operator decides. What was fetched is no loss (clone/arrival.ts): a flush that fails
 * while the guest has nothing to flush is only a flush that failed.
 */
export class DataGuard {
  readonly #options: DataGuardOptions;
  #lost: DataLoss | null;
  /**
   * Shared with the hot thread and the next server; null: it is not known, and so true, that the guest wrote.
   */
  #unflushed: Uint32Array | null = null;
  readonly #flushes = new SharedRuns();
  readonly #listeners: (() => void)[] = [];

  /** Throws when it cannot be told whether data was lost. */
  constructor(options: DataGuardOptions) {
    this.#options = options;
    this.#lost = readDataLoss(options.volumeDir, options);
    const { dataLoss, volumeId, generation } = options;
    if (this.#lost !== null || dataLoss === undefined || isAccepted(options, dataLoss.atMs)) return;
    // The disk refused that word too, as far as anybody knows.
    this.#lost = { formatVersion: 1, volumeId, generation, ...dataLoss };
    void this.#writeDown(this.#lost);
  }

  get lost(): DataLoss | null {
    return this.#lost;
  }

  /** Calls at once when it has happened already. */
  onLost(listener: () => void): void {
    this.#listeners.push(listener);
    if (this.#lost !== null) listener();
  }

  /**
   * Takes over what the last server left in the live map: of a flush that it was in the middle of, the next
   * one tells.
   */
  share(unflushed: Uint32Array): void {
    this.#unflushed = unflushed;
    if (unflushed[FLUSHING] === LOST)
      this.lose('the disk lost what an earlier volume server was told to be written');
    else if (unflushed[FLUSHING] === UNDER_WAY) unflushed[WROTE] = 1;
  }

  /**
   * When its server ends in good order: of a loss that is written down, by whomever, the live map tells
   * nobody again, who may have accepted it by then.
   */
  rest(): void {
    if (this.#unflushed?.[FLUSHING] === LOST && readDataLoss(this.#options.volumeDir, this.#options) !== null)
      this.#unflushed[FLUSHING] = IDLE;
  }

  /** Before the live map goes. */
  unshare(): void {
    this.#unflushed = null;
  }

  /** Throws `VOLUME_DATA_LOST`. */
  check(): void {
    if (this.#lost !== null) throw lostError(this.#options, this.#lost);
  }

  /** The guest changes data: before it does, and after. */
  noteWrite(): void {
    if (this.#unflushed !== null) this.#unflushed[WROTE] = 1;
  }

  /**
   * `flush` makes all of the file durable. Those that come while one runs share the next. Rejects
   * `VOLUME_DATA_LOST`, or with the error of a disk that lost nothing.
   */
  flush(flush: () => Promise<void>): Promise<void> {
    return this.#flushes.run(() => this.#flushOnce(flush));
  }

  /** Idempotent: the first reason stands. */
  lose(reason: string): void {
    if (this.#unflushed !== null) this.#unflushed[FLUSHING] = LOST;
    if (this.#lost !== null) return;
    const { volumeId, generation, clock, logger } = this.#options;
    this.#lost = { formatVersion: 1, volumeId, generation, atMs: Math.round(clock.wallMs()), reason };
    logger.error(
      { volumeId, reason },
      'the disk lost what the guest wrote; the volume refuses everything from now on',
    );
    for (const listener of this.#listeners) listener();
    void this.#writeDown(this.#lost);
  }

  async #flushOnce(flush: () => Promise<void>): Promise<void> {
    this.check();
    const words = this.#unflushed;
    const wrote = words === null || words[WROTE] === 1;
    if (words !== null) {
      words[FLUSHING] = wrote ? UNDER_WAY : IDLE;
      words[WROTE] = 0;
    }
    try {
      await flush();
    } catch (error) {
      if (isGodwitError(error, 'BLOCK_CLOSED')) {
        // Nobody asked the disk: what was written is in the page cache, as when the server is killed.
        if (words !== null) {
          words[FLUSHING] = IDLE;
          if (wrote) words[WROTE] = 1;
        }
        throw error;
      }
      if (wrote || this.#unflushed?.[WROTE] === 1) {
        this.lose(messageOf(error));
        this.check();
      }
      // What it told of were fetched blocks, which are absent. A disk that takes everything else says so now.
      await flush();
    }
    if (this.#unflushed !== null && this.#unflushed[FLUSHING] === UNDER_WAY) this.#unflushed[FLUSHING] = IDLE;
  }

  /** For as long as the disk refuses that too; until then the live map has it. */
  async #writeDown(loss: DataLoss): Promise<void> {
    const { volumeDir } = this.#options;
    for (let delayMs = WRITE_RETRY_FIRST_MS; ; delayMs = Math.min(WRITE_RETRY_MAX_MS, delayMs * 2)) {
      try {
        await replaceFile(join(volumeDir, VOLUME_FILES.dataLoss), fileOf(loss));
        // The file has the word now: who accepts it has decided.
        if (this.#unflushed?.[FLUSHING] === LOST) this.#unflushed[FLUSHING] = IDLE;
        return;
      } catch (error) {
        this.#options.logger.warn(
          { volumeDir, error: messageOf(error) },
          'cannot write down that data was lost',
        );
      }
      await this.#options.clock.sleep(delayMs);
    }
  }
}

/** The data file as a guest has it. */
export class GuardedFile implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes: number;
  readonly writable: boolean;
  readonly #file: FileDevice;
  readonly #guard: DataGuard;

  /** `file` with `flushFailureStays: false`: what a failure means is decided here. */
  constructor(file: FileDevice, guard: DataGuard) {
    this.#file = file;
    this.#guard = guard;
    this.lengthBytes = file.lengthBytes;
    this.blockBytes = file.blockBytes;
    this.writable = file.writable;
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.#guard.check();
    await this.#file.read(offsetBytes, into);
  }

  readNow(offsetBytes: number, into: Uint8Array): boolean {
    return this.#guard.lost === null && this.#file.readNow(offsetBytes, into);
  }

  write(offsetBytes: number, from: Uint8Array): Promise<void> {
    return this.#change(() => this.#file.write(offsetBytes, from));
  }

  writeNow(offsetBytes: number, from: Uint8Array): boolean {
    if (this.#guard.lost !== null) return false;
    this.#guard.noteWrite();
    const written = this.#file.writeNow(offsetBytes, from);
    this.#guard.noteWrite();
    return written;
  }

  discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#change(() => this.#file.discard(offsetBytes, lengthBytes));
  }

  writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    return this.#change(() => this.#file.writeZeroes(offsetBytes, lengthBytes));
  }

  flush(): Promise<void> {
    return this.#guard.flush(() => this.#file.flush());
  }

  extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    return this.#file.extents(offsetBytes, lengthBytes, limitExtents);
  }

  writeBack(ranges: readonly ByteRange[]): Promise<void> {
    return this.#file.writeBack(ranges);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  /**
   * Noted before, so that it is known should this process die, and after, because a flush that began
   * meanwhile did not cover it.
   */
  async #change(change: () => Promise<void>): Promise<void> {
    this.#guard.check();
    this.#guard.noteWrite();
    try {
      await change();
    } finally {
      this.#guard.noteWrite();
    }
  }
}

/** `VOLUME_DATA_LOST`, which names the way out. */
export function lostError(
  { volumeDir, volumeId }: Pick<DataGuardOptions, 'volumeDir' | 'volumeId'>,
  loss: DataLoss,
): GodwitError {
  return new GodwitError(
    'VOLUME_DATA_LOST',
    `the disk lost what was written to volume ${volumeId}: ${loss.reason}`,
    {
      values: { volumeId, generation: loss.generation, atMs: loss.atMs, reason: loss.reason, volumeDir },
      nextAction:
        `Look at the kernel log for the disk, and restore the volume from a backup or its retained source. To go on with what the disk has, which may be old in places: stop the machine, ` +
        `godwit volume accept-loss ${volumeId} --yes, and start it again; its filesystem is checked then.`,
    },
  );
}
