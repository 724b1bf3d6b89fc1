import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import type {
  BlockRange,
  FetchedPage,
  FetchedRange,
  MendReply,
  MendRequest,
  ProofFigures,
  UnfetchedPage,
} from '../receipt/proof.ts';
import { PROOF_RANGES_MAX, REGION_BYTES, rangeBytes } from '../receipt/range.ts';
import { RootHash } from '../receipt/root.ts';
import type { FetchLog, FetchRecord } from './fetch-log.ts';
import type { CloneSource } from './fetcher.ts';
import { HeapMapMemory, type MapMemory } from './map-memory.ts';
import { blockCountOf, ValidityMap } from './validity-map.ts';

export type FetchProofOptions = {
  /** Where fetched content is stored. */
  local: BlockDevice;
  /** The same content, past the page cache where that is possible. */
  stored: Pick<BlockDevice, 'read'>;
  source: CloneSource;
  log: FetchLog;
  /** Blocks that the guest overwrote, or may have (`CloneDeviceOptions.written`). */
  written: MapMemory;
  /**
   * SHA-256 in hex of the free map that came with the handoff, as far as it is known; null: there was none.
   */
  freeMapDigest: string | null;
  clock: Clock;
  /** Bytes that came and were not in place when a server of this clone was killed (`ValidityFile`). */
  refetchedBytes?: () => number;
  /** Does the work while nobody writes to `local`, and nobody begins to. */
  exclusively: (work: () => Promise<void>) => Promise<void>;
};

/** How long one question may read the log, in milliseconds; then it says `CLONE_PROOF_GOES_ON`. */
const SUMMING_MS = 10_000;
const SUMMED_AT_ONCE = 1024;
const EXTENTS_MAX = 256;
const REGION_BLOCKS = REGION_BYTES / BLOCK_BYTES;
const ZEROS = Buffer.alloc(BLOCK_BYTES);

/** What the log adds up to, as far as it was read. */
type Sums = {
  freeMapDigest: string | null;
  root: RootHash;
  ranges: number;
  comparedBytes: number;
  /** Blocks with a record. */
  recorded: ValidityMap;
  /** The log goes on here. */
  cursor: number;
};

/**
 * The target's part of proving a move, for a clone that is whole: says what was fetched and whether the disk
 * still has it, fetches again what was wrong, and adds up. The log is read once, as far as a question has
 * time, and from there on by the next. Bounded memory: a page of ranges, one region, and two bits a block at
 * most.
 */
export class FetchProof {
  readonly #options: FetchProofOptions;
  readonly #lengthBytes: number;
  readonly #written: ValidityMap;
  #sums: Sums | null = null;

  constructor(options: FetchProofOptions) {
    this.#options = options;
    this.#lengthBytes = options.log.identity.lengthBytes;
    this.#written = new ValidityMap(options.written, blockCountOf(this.#lengthBytes), {
      counted: false,
    });
  }

  /**
   * A part of the fetch log in its order, from `cursor` on (0, or a `next`). Reads the local content of its
   * ranges.
   */
  async fetched(cursor: number): Promise<FetchedPage> {
    const { records, next, ended } = await this.#options.log.read(cursor, PROOF_RANGES_MAX);
    const ranges: FetchedRange[] = [];
    // One after the other: the guest's own reads pass in between.
    for (const record of records) {
      const { position, first, blocks, digest } = record;
      ranges.push({
        position,
        first,
        blocks,
        digest: hex(digest),
        stored: await this.#compareStored(record),
      });
    }
    return { ranges, next, ended };
  }

  /**
   * What is local without having been fetched or written: holes and unused blocks, if all is well, which read
   * as zeros; and what of it does not. From the block `cursor` on, as far as one question may take. Rejects
   * `CLONE_PROOF_GOES_ON` where the log takes longer to read: ask again.
   */
  async unfetched(cursor: number): Promise<UnfetchedPage> {
    const { blockCount } = this.#written;
    const untilMs = this.#options.clock.monotonicMs() + SUMMING_MS;
    const { recorded: explained } = await this.#sum(this.#sums?.freeMapDigest ?? this.#options.freeMapDigest);
    const ranges: UnfetchedPage['ranges'] = [];
    const garbage: BlockRange[] = [];
    let block = cursor;
    while (block < blockCount && ranges.length < PROOF_RANGES_MAX) {
      const first = this.#firstUnexplained(block, explained);
      if (first === blockCount) return { ranges, next: null, garbage };
      const end = Math.min(
        explained.firstPresent(first, blockCount),
        this.#written.firstPresent(first, blockCount),
      );
      block = await this.#findGarbage(first, end, garbage, untilMs);
      ranges.push({ first, blocks: block - first });
      if (block < end) break;
    }
    return { ranges, next: block < blockCount ? block : null, garbage };
  }

  /**
   * What of [first, end) is not zeros on the disk, and not of the guest. Looks at one region at least;
   * returns where it stopped.
   */
  async #findGarbage(first: number, end: number, found: BlockRange[], untilMs: number): Promise<number> {
    const { local, stored, clock } = this.#options;
    if (!local.extents) return end;
    const endBytes = Math.min(end * BLOCK_BYTES, this.#lengthBytes);
    let block = first;
    while (block < end) {
      const from = block * BLOCK_BYTES;
      for (const extent of await local.extents(from, endBytes - from, EXTENTS_MAX)) {
        const extentEnd = Math.ceil((extent.offsetBytes + extent.lengthBytes) / BLOCK_BYTES);
        if (extent.kind === 'hole') block = extentEnd;
        while (block < extentEnd) {
          const regionEnd = (Math.floor(block / REGION_BLOCKS) + 1) * REGION_BLOCKS;
          const blocks = Math.min(extentEnd, regionEnd) - block;
          const content = Buffer.alloc(rangeBytes({ first: block, blocks }, this.#lengthBytes));
          await stored.read(block * BLOCK_BYTES, content);
          const runs = nonZeroRuns(content).map((run) => ({ first: block + run.first, blocks: run.blocks }));
          // Whoever writes sets the bit first.
          found.push(...runs.filter((run) => !this.#isWritten(run.first, run.first + run.blocks)));
          block += blocks;
          if (found.length >= PROOF_RANGES_MAX || clock.monotonicMs() >= untilMs) return block;
        }
      }
    }
    return end;
  }

  /**
   * Fetches ranges again and stores them where the guest has not written, if they are what the source says
   * that it has: durably, content before record. Idempotent but for the bytes on the wire.
   */
  async mend(request: MendRequest): Promise<MendReply> {
    const results: MendReply['results'] = [];
    for (const range of request.ranges) results.push(await this.#mendRange(range));
    return { results };
  }

  /**
   * `freeMapDigest`: SHA-256 in hex, null where there was no map. Rejects `CLONE_PROOF_GOES_ON` where the log
   * takes longer to read: ask again.
   */
  async figures(freeMapDigest: string | null): Promise<ProofFigures> {
    const { root, ranges, comparedBytes, recorded } = await this.#sum(freeMapDigest);
    const lastBlock = recorded.blockCount - 1;
    const cutBytes = recorded.has(lastBlock) ? recorded.blockCount * BLOCK_BYTES - this.#lengthBytes : 0;
    const refetchedBytes = this.#options.refetchedBytes?.() ?? 0;
    return {
      root: root.hex(),
      ranges,
      comparedBytes,
      fetchedBytes: recorded.presentCount * BLOCK_BYTES - cutBytes,
      ...(refetchedBytes > 0 && { refetchedBytes }),
    };
  }

  /** The first block from `from` on that neither map has. */
  #firstUnexplained(from: number, recorded: ValidityMap): number {
    const { blockCount } = this.#written;
    for (let block = from; ; ) {
      const first = recorded.firstAbsent(block, blockCount);
      block = this.#written.firstAbsent(first, blockCount);
      if (block === first) return block;
    }
  }

  async #compareStored({ first, blocks, digest }: FetchRecord): Promise<FetchedRange['stored']> {
    const { stored, log } = this.#options;
    const end = first + blocks;
    const content = Buffer.alloc(rangeBytes({ first, blocks }, this.#lengthBytes));
    if (this.#isWritten(first, end)) return 'written';
    await stored.read(first * BLOCK_BYTES, content);
    const found = await log.digest(first * BLOCK_BYTES, content);
    // Whoever writes sets the bit first: what is clear now was not written when the content was read.
    if (this.#isWritten(first, end)) return 'written';
    return Buffer.compare(found, digest) === 0 ? 'same' : 'differs';
  }

  #isWritten(first: number, end: number): boolean {
    return this.#written.firstPresent(first, end) < end;
  }

  async #mendRange(range: MendRequest['ranges'][number]): Promise<MendReply['results'][number]> {
    const { local, source, log, exclusively } = this.#options;
    const { first, blocks } = range;
    if (first + blocks > this.#written.blockCount) {
      throw new GodwitError('CLONE_BAD_RANGE', 'a range to fetch again lies outside of the volume', {
        values: { first, blocks, blockCount: this.#written.blockCount },
        nextAction: 'Both workers must be of the same godwit version.',
      });
    }
    const content = Buffer.alloc(rangeBytes(range, this.#lengthBytes));
    await source.read(first * BLOCK_BYTES, content, { priority: 'background' });
    const found = await log.digest(first * BLOCK_BYTES, content);
    if (hex(found) !== range.digest) return { mended: false, storedBytes: 0, leftBytes: 0 };
    let storedBytes = 0;
    await exclusively(async () => {
      const end = first + blocks;
      for (let block = first; block < end; ) {
        const from = this.#written.firstAbsent(block, end);
        block = this.#written.firstPresent(from, end);
        if (from === block) break;
        const part = content.subarray((from - first) * BLOCK_BYTES, (block - first) * BLOCK_BYTES);
        await local.write(from * BLOCK_BYTES, part);
        storedBytes += part.length;
      }
    });
    await local.flush();
    await log.append({ first, blocks, digest: found });
    await log.flush();
    if (range.position !== null) {
      await log.retire(range.position);
      // It may have been added up.
      this.#sums = null;
    }
    await log.flush();
    return { mended: true, storedBytes, leftBytes: content.length - storedBytes };
  }

  /** Goes on to the end of the log. */
  async #sum(freeMapDigest: string | null): Promise<Sums> {
    const { log, clock } = this.#options;
    if (this.#sums?.freeMapDigest !== freeMapDigest) this.#sums = this.#noSums(freeMapDigest);
    const sums = this.#sums;
    const startedMs = clock.monotonicMs();
    for (;;) {
      const page = await log.read(sums.cursor, SUMMED_AT_ONCE);
      sums.cursor = page.next;
      for (const record of page.records) {
        sums.root.add(record);
        sums.ranges++;
        sums.comparedBytes += rangeBytes(record, this.#lengthBytes);
        sums.recorded.setRange(record.first, record.first + record.blocks);
      }
      if (page.ended) return sums;
      if (clock.monotonicMs() - startedMs >= SUMMING_MS) throw goesOn(sums);
      if (turnIsLong()) await nextTurn();
    }
  }

  #noSums(freeMapDigest: string | null): Sums {
    const { blockCount } = this.#written;
    const digest = freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex');
    return {
      freeMapDigest,
      root: new RootHash(this.#lengthBytes, digest),
      ranges: 0,
      comparedBytes: 0,
      recorded: new ValidityMap(new HeapMapMemory(blockCount), blockCount),
      cursor: 0,
    };
  }
}

/** Runs of blocks in `content` that are not all zeros. */
function nonZeroRuns(content: Buffer): BlockRange[] {
  const runs: BlockRange[] = [];
  for (let at = 0; at < content.length; at += BLOCK_BYTES) {
    const bytes = Math.min(BLOCK_BYTES, content.length - at);
    if (content.compare(ZEROS, 0, bytes, at, at + bytes) === 0) continue;
    const block = at / BLOCK_BYTES;
    const last = runs.at(-1);
    if (last && last.first + last.blocks === block) last.blocks++;
    else runs.push({ first: block, blocks: 1 });
  }
  return runs;
}

function goesOn({ ranges, comparedBytes }: Sums): GodwitError {
  return new GodwitError('CLONE_PROOF_GOES_ON', 'the log of what was fetched is still being added up', {
    values: { ranges, addedUpBytes: comparedBytes },
    nextAction: 'Nothing to do: it is asked again by itself, and goes on where it was.',
  });
}

function hex(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.length).toString('hex');
}
