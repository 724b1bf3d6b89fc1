import { GodwitError } from '../base/errors.ts';
import { BLOCK_BYTES, type BlockDevice } from '../block/block-device.ts';
import type {
  FetchedPage,
  FetchedRange,
  MendReply,
  MendRequest,
  ProofFigures,
  UnfetchedPage,
} from '../receipt/proof.ts';
import { PROOF_RANGES_MAX, rangeBytes } from '../receipt/range.ts';
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
  /** Does the work while nobody writes to `local`, and nobody begins to. */
  exclusively: (work: () => Promise<void>) => Promise<void>;
};

/**
 * The target's part of proving a move, for a clone that is whole: says what was fetched and whether the disk still has it, fetches again what was wrong,
 * and adds up. Bounded memory: a page of ranges, one region, and two bits a block.
 */
export class FetchProof {
  readonly #options: FetchProofOptions;
  readonly #lengthBytes: number;
  readonly #written: ValidityMap;
  /** Blocks with a record; made when it is asked for first. */
  #recorded: ValidityMap | null = null;

  constructor(options: FetchProofOptions) {
    this.#options = options;
    this.#lengthBytes = options.log.identity.lengthBytes;
    this.#written = new ValidityMap(options.written, blockCountOf(this.#lengthBytes), {
      counted: false,
    });
  }

  /** A part of the fetch log in its order, from `cursor` on (0, or a `next`). Reads the local content of its ranges. */
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

  /** What is local without having been fetched or written: holes and unused blocks, if all is well. From the block `cursor` on. */
  async unfetched(cursor: number): Promise<UnfetchedPage> {
    const { blockCount } = this.#written;
    const explained = await this.#recordedBlocks();
    const ranges: UnfetchedPage['ranges'] = [];
    let block = cursor;
    while (block < blockCount && ranges.length < PROOF_RANGES_MAX) {
      const first = this.#firstUnexplained(block, explained);
      if (first === blockCount) return { ranges, next: null };
      block = Math.min(
        explained.firstPresent(first, blockCount),
        this.#written.firstPresent(first, blockCount),
      );
      ranges.push({ first, blocks: block - first });
    }
    return { ranges, next: block < blockCount ? block : null };
  }

  /**
   * Fetches ranges again and stores them where the guest has not written, if they are what the source says that it has: durably, content before record.
   * Idempotent but for the bytes on the wire.
   */
  async mend(request: MendRequest): Promise<MendReply> {
    const results: MendReply['results'] = [];
    for (const range of request.ranges) results.push(await this.#mendRange(range));
    return { results };
  }

  /** `freeMapDigest`: SHA-256 in hex, null where there was no map. */
  async figures(freeMapDigest: string | null): Promise<ProofFigures> {
    const root = new RootHash(
      this.#lengthBytes,
      freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex'),
    );
    let ranges = 0;
    let comparedBytes = 0;
    for await (const record of this.#records()) {
      root.add(record);
      ranges++;
      comparedBytes += rangeBytes(record, this.#lengthBytes);
    }
    const recorded = await this.#recordedBlocks();
    const lastBlock = recorded.blockCount - 1;
    const cutBytes = recorded.has(lastBlock) ? recorded.blockCount * BLOCK_BYTES - this.#lengthBytes : 0;
    return {
      root: root.hex(),
      ranges,
      comparedBytes,
      fetchedBytes: recorded.presentCount * BLOCK_BYTES - cutBytes,
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
    if (range.position !== null) await log.retire(range.position);
    await log.flush();
    this.#recorded?.setRange(first, first + blocks);
    return { mended: true, storedBytes, leftBytes: content.length - storedBytes };
  }

  async #recordedBlocks(): Promise<ValidityMap> {
    if (this.#recorded) return this.#recorded;
    const { blockCount } = this.#written;
    const recorded = new ValidityMap(new HeapMapMemory(blockCount), blockCount);
    for await (const { first, blocks } of this.#records()) recorded.setRange(first, first + blocks);
    this.#recorded = recorded;
    return recorded;
  }

  async *#records(): AsyncGenerator<FetchRecord> {
    for (let cursor = 0, ended = false; !ended; ) {
      const page = await this.#options.log.read(cursor, 4096);
      yield* page.records;
      ({ next: cursor, ended } = page);
    }
  }
}

function hex(digest: Uint8Array): string {
  return Buffer.from(digest.buffer, digest.byteOffset, digest.length).toString('hex');
}
