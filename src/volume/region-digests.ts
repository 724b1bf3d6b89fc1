import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { Serial } from '../base/serial.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import { digestOfZeros } from '../receipt/comparison.ts';
import type { BlockRange, StatedPage, StatedRange } from '../receipt/proof.ts';
import { PROOF_RANGES_MAX, REGION_BYTES, rangeBytes } from '../receipt/range.ts';
import { SHA256_BYTES, sha256 } from '../sys/sha256.ts';

/**
 * SHA-256 of the sealed content of a volume, by regions of 1 MiB: taken once, soon after the seal, and what
 * every later look at the content is held against. Beside the data in a sparse file, so that the next server
 * of the export goes on where this one was:
 *
 *     0..31    SHA-256 of "godwit region digests v1\n<volume id>\n<generation>\n<length in bytes>\n"
 *    32..      32 bytes for each region: its SHA-256; zeros: not taken
 *
 * Not made durable: what a power cut takes away is taken again.
 */
const REGION_BLOCKS = REGION_BYTES / BLOCK_BYTES;
const EXTENTS_LIMIT = 64;
/** While clients read, digesting takes this share of the time at most: serving comes first. */
const BUSY_SHARE = 0.1;
const IDLE_SHARE = 0.5;
const REST_MS_MIN = 5;

export type RegionDigestsOptions = {
  /** The sealed content. */
  device: BlockDevice;
  path: string;
  volumeId: string;
  generation: number;
  /** Blocks that do not travel, ascending; null: none is known. */
  freeRuns: readonly BlockRun[] | null;
  clock: Clock;
  logger: Logger;
  /** Bytes that clients have read so far. */
  bytesServed: () => number;
};

export class RegionDigests {
  readonly #options: RegionDigestsOptions;
  readonly #file: FileHandle;
  readonly #ending = new AbortController();
  #pass: Promise<void> | null = null;
  /**
   * The region that was read last and found to be what its digest says: questions come in the order of the
   * volume, mostly.
   */
  #checked: { region: number; content: Buffer } | null = null;
  readonly #work = new Serial();
  #servedBefore: number;
  /** The hole that was seen last: sealed content keeps its holes. */
  #hole = { startBytes: 0, endBytes: 0 };

  private constructor(options: RegionDigestsOptions, file: FileHandle) {
    this.#options = options;
    this.#file = file;
    this.#servedBefore = options.bytesServed();
  }

  /** A table of another generation is begun anew. */
  static async open(options: RegionDigestsOptions): Promise<RegionDigests> {
    const file = await open(options.path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
    try {
      const { volumeId, generation, device } = options;
      const identity = createHash('sha256')
        .update(`godwit region digests v1\n${volumeId}\n${generation}\n${device.lengthBytes}\n`)
        .digest();
      const found = Buffer.alloc(SHA256_BYTES);
      await file.read(found, 0, SHA256_BYTES, 0);
      if (!found.equals(identity)) {
        await file.truncate(0);
        await file.write(identity, 0, SHA256_BYTES, 0);
      }
      return new RegionDigests(options, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Takes all digests in the background, from front to back. */
  start(): void {
    this.#pass ??= this.#takeAll().catch((error: unknown) => {
      if (!this.#ending.signal.aborted)
        this.#options.logger.warn({ reason: messageOf(error) }, 'digests are taken when they are asked for');
    });
  }

  /**
   * The digest of each range, which lies in one region. Rejects `VOLUME_REGION_CHANGED` where the content is
   * not any more what it was when its digest was taken.
   */
  async digestsOf(ranges: readonly BlockRange[]): Promise<string[]> {
    const digests: string[] = [];
    for (const range of ranges) digests.push(await this.#work.run(() => this.#digestOf(range)));
    return digests;
  }

  /**
   * Of blocks that did not travel, those that should have: the source has data there, and its free map does
   * not name them. From `cursor` (a block) on; each in one region.
   */
  async owed(range: BlockRange, cursor: number): Promise<{ ranges: StatedRange[]; next: number | null }> {
    const { device } = this.#options;
    const end = range.first + range.blocks;
    const ranges: StatedRange[] = [];
    let block = Math.max(range.first, cursor);
    while (block < end && ranges.length < PROOF_RANGES_MAX) {
      if (turnIsLong()) await nextTurn();
      const offset = block * BLOCK_BYTES;
      const extents = await device.extents!(
        offset,
        rangeBytes({ first: block, blocks: end - block }, device.lengthBytes),
        EXTENTS_LIMIT,
      );
      for (const extent of extents) {
        const extentEnd = Math.min(end, Math.ceil((extent.offsetBytes + extent.lengthBytes) / BLOCK_BYTES));
        if (extent.kind === 'data') {
          for (const part of this.#usedParts(
            Math.max(block, Math.floor(extent.offsetBytes / BLOCK_BYTES)),
            extentEnd,
          )) {
            if (ranges.length >= PROOF_RANGES_MAX) return { ranges, next: part.first };
            const [digest] = await this.digestsOf([part]);
            ranges.push({ ...part, digest: digest! });
          }
        }
        block = Math.max(block, extentEnd);
      }
    }
    return { ranges, next: block < end ? block : null };
  }

  /**
   * All that is not in the free map, from the block `cursor` on; each range in one region. Holes are not
   * read.
   */
  async stated(cursor: number): Promise<StatedPage> {
    const { device } = this.#options;
    const end = Math.ceil(device.lengthBytes / BLOCK_BYTES);
    const mapped = this.#options.freeRuns !== null;
    const ranges: StatedRange[] = [];
    for (const part of this.#usedParts(cursor, end)) {
      if (ranges.length >= PROOF_RANGES_MAX) return { ranges, next: part.first, mapped };
      const digest = (await this.#isHole(part))
        ? digestOfZeros(rangeBytes(part, device.lengthBytes)).toString('hex')
        : await this.#work.run(() => this.#digestOf(part));
      ranges.push({ ...part, digest });
    }
    return { ranges, next: null, mapped };
  }

  async close(): Promise<void> {
    this.#ending.abort();
    await this.#pass;
    await this.#work.idle();
    await this.#file.close();
  }

  /** By extents: what the volume does not have costs nothing, whatever its size. */
  async #takeAll(): Promise<void> {
    const { device } = this.#options;
    let next = 0;
    for (let offset = 0; offset < device.lengthBytes; ) {
      const extents = await device.extents!(offset, device.lengthBytes - offset, EXTENTS_LIMIT);
      for (const extent of extents) {
        offset = extent.offsetBytes + extent.lengthBytes;
        if (extent.kind === 'hole') continue;
        const end = Math.ceil(offset / REGION_BYTES);
        next = Math.max(next, Math.floor(extent.offsetBytes / REGION_BYTES));
        for (; next < end; next++) {
          if (this.#isUsed(next)) await this.#takeUnlessKnown(next);
          if (turnIsLong()) await nextTurn();
          this.#ending.signal.throwIfAborted();
        }
      }
      if (turnIsLong()) await nextTurn();
      this.#ending.signal.throwIfAborted();
    }
  }

  async #takeUnlessKnown(region: number): Promise<void> {
    if ((await this.#known(region)) !== null) return;
    const { clock, bytesServed } = this.#options;
    const startedMs = clock.monotonicMs();
    await this.#work.run(() => this.#read(region));
    const tookMs = clock.monotonicMs() - startedMs;
    const share = bytesServed() === this.#servedBefore ? IDLE_SHARE : BUSY_SHARE;
    this.#servedBefore = bytesServed();
    await clock.sleep(Math.max(REST_MS_MIN, (tookMs * (1 - share)) / share), this.#ending.signal);
  }

  /** False: nothing of the region travels. */
  #isUsed(region: number): boolean {
    const { lengthBytes } = this.#options.device;
    const end = Math.ceil(Math.min((region + 1) * REGION_BYTES, lengthBytes) / BLOCK_BYTES);
    return !this.#usedParts(region * REGION_BLOCKS, end).next().done;
  }

  async #isHole(range: BlockRange): Promise<boolean> {
    const { device } = this.#options;
    const startBytes = range.first * BLOCK_BYTES;
    const endBytes = startBytes + rangeBytes(range, device.lengthBytes);
    if (startBytes < this.#hole.startBytes || endBytes > this.#hole.endBytes) {
      const [extent] = await device.extents!(startBytes, device.lengthBytes - startBytes, 1);
      if (extent?.kind !== 'hole') return false;
      this.#hole = { startBytes, endBytes: startBytes + extent.lengthBytes };
    }
    return endBytes <= this.#hole.endBytes;
  }

  /** The parts of [first, end) that are not in the free map, cut at the borders of regions. */
  *#usedParts(first: number, end: number): Generator<BlockRange> {
    const runs = this.#options.freeRuns ?? [];
    let index = firstRunEndingBehind(runs, first);
    for (let block = first; block < end; ) {
      const run = runs[index];
      if (run !== undefined && run.first <= block) {
        block = Math.min(end, run.end);
        index++;
        continue;
      }
      const regionEnd = (Math.floor(block / REGION_BLOCKS) + 1) * REGION_BLOCKS;
      const partEnd = Math.min(end, regionEnd, run?.first ?? end);
      yield { first: block, blocks: partEnd - block };
      block = partEnd;
    }
  }

  async #digestOf(range: BlockRange): Promise<string> {
    const { lengthBytes } = this.#options.device;
    const region = Math.floor(range.first / REGION_BLOCKS);
    const regionBytes = Math.min(REGION_BYTES, lengthBytes - region * REGION_BYTES);
    const offsetBytes = range.first * BLOCK_BYTES - region * REGION_BYTES;
    const bytes = rangeBytes(range, lengthBytes);
    const outside = range.first + range.blocks > Math.ceil(lengthBytes / BLOCK_BYTES);
    if (outside || offsetBytes + bytes > regionBytes) {
      throw new GodwitError('VOLUME_BAD_SPEC', 'a digest is of blocks of one region of the volume', {
        values: { first: range.first, blocks: range.blocks },
        nextAction: 'Both workers must be of the same godwit version.',
      });
    }
    if (bytes === regionBytes) {
      const known = await this.#known(region);
      if (known !== null) return known.toString('hex');
    }
    const content = await this.#read(region);
    return Buffer.from(await sha256(content.subarray(offsetBytes, offsetBytes + bytes))).toString('hex');
  }

  /** The content of a region, which is what its digest says; the digest is taken where it was not yet. */
  async #read(region: number): Promise<Buffer> {
    if (this.#checked?.region === region) return this.#checked.content;
    const { device } = this.#options;
    const offsetBytes = region * REGION_BYTES;
    const content = Buffer.alloc(Math.min(REGION_BYTES, device.lengthBytes - offsetBytes));
    await device.read(offsetBytes, content);
    const digest = Buffer.from(await sha256(content));
    const known = await this.#known(region);
    if (known === null) await this.#file.write(digest, 0, SHA256_BYTES, tableOffset(region));
    else if (!known.equals(digest)) throw this.#changed(region);
    this.#checked = { region, content };
    return content;
  }

  async #known(region: number): Promise<Buffer | null> {
    const digest = Buffer.alloc(SHA256_BYTES);
    await this.#file.read(digest, 0, SHA256_BYTES, tableOffset(region));
    return digest.every((byte) => byte === 0) ? null : digest;
  }

  #changed(region: number): GodwitError {
    const { volumeId, generation, path } = this.#options;
    return new GodwitError(
      'VOLUME_REGION_CHANGED',
      `the sealed content of ${volumeId} is not what it was: its MiB ${region} has another digest than after the seal`,
      {
        values: { volumeId, generation, offsetBytes: region * REGION_BYTES },
        nextAction:
          `The disk of this worker, or ${path}, is damaged: see the kernel's log. Nothing is released. What the target fetched before may still be ` +
          'right: compare it with a backup, then end the run by force (godwit runs force).',
      },
    );
  }
}

function tableOffset(region: number): number {
  return SHA256_BYTES * (1 + region);
}

function firstRunEndingBehind(runs: readonly BlockRun[], block: number): number {
  let low = 0;
  for (let high = runs.length; low < high; ) {
    const middle = (low + high) >>> 1;
    if (runs[middle]!.end <= block) low = middle + 1;
    else high = middle;
  }
  return low;
}
