import { createHash } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PAUSE } from '../base/patience.ts';
import type { Peer, ProofAsks } from '../contract/peer.ts';
import { Comparison } from '../receipt/comparison.ts';
import { draftReceipt, type Receipt, verifyReceipt, type WorkerKey } from '../receipt/envelope.ts';
import type { BlockRange, ProofFigures, StatedRange } from '../receipt/proof.ts';
import { PROOF_RANGES_MAX, REGION_BYTES, rangeBytes } from '../receipt/range.ts';
import { type ReceiptBody, type ReceiptDisk, unexplainedBytes } from '../receipt/receipt.ts';
import { RootHash } from '../receipt/root.ts';
import type { ReceiptBook } from './receipt-book.ts';
import type { MoveSubject, SourceSide } from './source-side.ts';

/** Sums over all attempts to prove a move, as far as they were written down. */
export type Mended = { ranges: number; bytes: number; leftBytes: number };

export type ProveOptions = {
  moveId: string;
  subject: MoveSubject & { volume: NonNullable<MoveSubject['volume']> };
  /** The source's name and key. */
  worker: { name: string };
  key: WorkerKey;
  peer: Pick<Peer, 'name'> & ProofAsks;
  source: Pick<SourceSide, 'freeMap' | 'digests' | 'owed' | 'stated'>;
  receipts: ReceiptBook;
  bytesAvoided: number;
  times: { stopped: number | null; handedOver: number };
  mended: Mended;
  /** Called when something was mended, with the new sums, before anything rests on it. */
  onMended: (mended: Mended) => void;
  /** Called now and then, with what was compared so far. */
  onProgress: (comparedBytes: number) => void;
  clock: Clock;
  signal: AbortSignal;
};

type Compared = {
  root: string;
  ranges: number;
  bytes: number;
  readBackBytes: number;
  /** Where all of the target's disk was compared. */
  disk: Comparison | null;
};
/** One digest, or one a block. */
type Digested = BlockRange & { digests: Buffer };

/** Ranges that are asked for block by block in one question: 11 KiB of digests each. */
const BY_BLOCKS_MAX = 32;
/** A target that is still adding up is left alone for so long. */
const ASK_AGAIN_MS = PAUSE.proofAgain.ms;
type ToMend = StatedRange & { position: number | null };

/**
 * The source's part of proving a move whose target is whole: holds what the target fetched against the sealed
 * content, has mended what differs, and signs with the target what was found. Only the source asks.
 * Idempotent: a receipt that either side has is the one.
 *
 * Rejects `MIGRATION_CONTENT_DIFFERS` where something was wrong twice, `MIGRATION_CONTENT_UNEXPLAINED` where
 * more differs than the guest has written, `MIGRATION_PROOF_DIFFERS` when the two workers do not get the same
 * sums, and with what the two volume servers reject.
 */
export async function proveMove(options: ProveOptions): Promise<Receipt> {
  const { moveId, peer, receipts, signal } = options;
  const kept = receipts.get(moveId);
  if (kept) return kept;
  const theirs = await peer.receipt(moveId, { signal });
  if (theirs) return receipts.keep(ownReceipt(options, theirs));

  const freeMap = await options.source.freeMap(options.subject.volume.volumeId);
  const freeMapDigest =
    freeMap === null ? null : createHash('sha256').update(Buffer.from(freeMap, 'base64')).digest('hex');
  const proof = new Proof(options);
  await proof.checkUnfetched();
  const compared = await proof.compareFetched(freeMapDigest);
  const body = await makeBody(options, compared, proof.mended, freeMapDigest);
  const draft = draftReceipt(body, options.key);
  const receipt = await goingOn(options, () => peer.countersign(moveId, draft, { signal }));
  return receipts.keep(ownReceipt(options, receipt));
}

class Proof {
  mended: Mended;
  readonly #options: ProveOptions;
  readonly #lengthBytes: number;
  /** What was mended in this attempt: wrong once more is wrong twice. */
  readonly #mendedRanges = new Set<number>();
  /** How often something was mended in this attempt. */
  #mends = 0;

  constructor(options: ProveOptions) {
    this.#options = options;
    this.#lengthBytes = options.subject.volume.lengthBytes;
    this.mended = options.mended;
  }

  /** Blocks that are local at the target and never came must be holes here, or unused, and zeros there. */
  async checkUnfetched(): Promise<void> {
    const { peer, source, moveId, signal } = this.#options;
    for (let cursor: number | null = 0; cursor !== null; ) {
      const page: Awaited<ReturnType<Peer['unfetched']>> = await goingOn(this.#options, () =>
        peer.unfetched(moveId, { cursor: cursor ?? 0 }, { signal }),
      );
      const mended: BlockRange[] = [];
      for (const range of page.ranges) {
        for (let block: number | null = range.first; block !== null; ) {
          const owed: Awaited<ReturnType<SourceSide['owed']>> = await source.owed(moveId, range, block);
          await this.#mend(owed.ranges.map((stated) => ({ ...stated, position: null })));
          for (const { first, blocks } of owed.ranges) mended.push({ first, blocks });
          block = owed.next;
        }
      }
      const garbage = (page.garbage ?? []).filter(
        ({ first, blocks }) =>
          !mended.some((range) => range.first < first + blocks && first < range.first + range.blocks),
      );
      if (garbage.length > 0) {
        const digests = await source.digests(moveId, garbage);
        await this.#mend(
          garbage.map((range, index) => ({ ...range, digest: digests[index]!, position: null })),
        );
      }
      cursor = page.next;
    }
  }

  async compareFetched(freeMapDigest: string | null): Promise<Compared> {
    const { peer, source, moveId, signal, onProgress } = this.#options;
    const root = new RootHash(
      this.#lengthBytes,
      freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex'),
    );
    const sums = { ranges: 0, bytes: 0, readBackBytes: 0 };
    let ended = false;
    // What is mended comes again at the end of the log: only a page that was asked for after the last mend
    // can say where that is.
    const ask = (cursor: number) => ({
      mends: this.#mends,
      answer: quietly(peer.fetched(moveId, { cursor }, { signal })),
    });
    let next = ask(0);
    do {
      const asked = next;
      const page = await asked.answer;
      if (page.untold) return this.#compareDisk(freeMapDigest);
      // The target reads its disk while this side digests.
      if (!page.ended) next = ask(page.next);
      const stated = page.ranges.length === 0 ? [] : await source.digests(moveId, page.ranges);
      const wrong: ToMend[] = [];
      for (const [index, range] of page.ranges.entries()) {
        const digest = stated[index]!;
        if (digest === range.digest && range.stored !== 'differs') {
          const bytes = rangeBytes(range, this.#lengthBytes);
          root.add({ first: range.first, blocks: range.blocks, digest: Buffer.from(digest, 'hex') });
          sums.ranges++;
          sums.bytes += bytes;
          if (range.stored === 'same') sums.readBackBytes += bytes;
        } else wrong.push({ first: range.first, blocks: range.blocks, digest, position: range.position });
      }
      await this.#mend(wrong);
      onProgress(sums.bytes);
      ended = page.ended && asked.mends === this.#mends;
      if (page.ended && !ended) next = ask(page.next);
    } while (!ended);
    return { ...sums, root: root.hex(), disk: null };
  }

  /**
   * Holds all that may be in use against the target's disk: by regions, and by blocks where a region differs.
   */
  async #compareDisk(freeMapDigest: string | null): Promise<Compared> {
    const { source, moveId, onProgress } = this.#options;
    const disk = new Comparison(this.#lengthBytes, freeMapDigest);
    let next = source.stated(moveId, 0);
    for (let cursor: number | null = 0; cursor !== null; ) {
      const page = await next;
      // This side reads while the target does.
      if (page.next !== null) next = quietly(source.stated(moveId, page.next));
      // What the map names is zeros at the target: without it that would be taken for damage.
      if (page.mapped !== (freeMapDigest !== null)) throw this.#mapUnreadable();
      const regions = page.ranges.map(({ first, blocks, digest }) => ({
        ...{ first, blocks },
        digests: Buffer.from(digest, 'hex'),
      }));
      const differing = await this.#compare(disk, regions);
      for (let at = 0; at < differing.length; at += BY_BLOCKS_MAX) {
        const byBlocks: Digested[] = [];
        for (const { first, blocks } of differing.slice(at, at + BY_BLOCKS_MAX))
          byBlocks.push({ first, blocks, digests: await this.#blockDigests({ first, blocks }) });
        await this.#compare(disk, byBlocks);
      }
      onProgress(disk.sums().comparedBytes);
      cursor = page.next;
    }
    const { root, ranges, comparedBytes } = disk.sums();
    return { root, ranges, bytes: comparedBytes, readBackBytes: comparedBytes, disk };
  }

  #mapUnreadable(): GodwitError {
    const { worker, subject } = this.#options;
    return new GodwitError(
      'MIGRATION_PROOF_DIFFERS',
      `the export of ${subject.volume.name} on ${worker.name} has another free map than the one that was handed over`,
      {
        values: { volumeId: subject.volume.volumeId },
        nextAction:
          'It is tried again by itself. If it stays, look at free.map of the volume and at its disk.',
      },
    );
  }

  /** Those that differ as a whole. */
  async #compare(disk: Comparison, ranges: readonly Digested[]): Promise<BlockRange[]> {
    const { peer, moveId, signal } = this.#options;
    if (ranges.length === 0) return [];
    const request = {
      from: disk.added,
      freeMapDigest: disk.freeMapDigest,
      ranges: ranges.map(({ digests, ...range }) => ({ ...range, digests: digests.toString('base64') })),
    };
    const { found } = await peer.compare(moveId, request, { signal });
    return ranges.filter(
      ({ digests, ...range }, index) => !disk.add(range, digests, Buffer.from(found[index] ?? '', 'base64')),
    );
  }

  async #blockDigests({ first, blocks }: BlockRange): Promise<Buffer> {
    const { source, moveId } = this.#options;
    const digests: string[] = [];
    for (let done = 0; done < blocks; done += PROOF_RANGES_MAX) {
      const count = Math.min(PROOF_RANGES_MAX, blocks - done);
      const asked = Array.from({ length: count }, (_, index) => ({ first: first + done + index, blocks: 1 }));
      digests.push(...(await source.digests(moveId, asked)));
    }
    return Buffer.from(digests.join(''), 'hex');
  }

  async #mend(ranges: readonly ToMend[]): Promise<void> {
    if (ranges.length === 0) return;
    const { peer, moveId, signal, onMended } = this.#options;
    const again = ranges.find(({ first }) => this.#mendedRanges.has(first));
    if (again)
      throw this.#wrongTwice(again, `${peer.name} fetched it again, and what it stored is wrong once more`);
    this.#mends++;
    const { results } = await peer.mend(moveId, { ranges: [...ranges] }, { signal });
    const failed: ToMend[] = [];
    for (const [index, range] of ranges.entries()) {
      const result = results[index];
      if (!result?.mended) {
        failed.push(range);
        continue;
      }
      this.#mendedRanges.add(range.first);
      this.mended = {
        ranges: this.mended.ranges + 1,
        bytes: this.mended.bytes + rangeBytes(range, this.#lengthBytes),
        leftBytes: this.mended.leftBytes + result.leftBytes,
      };
    }
    onMended(this.mended);
    if (failed[0])
      throw this.#wrongTwice(failed[0], `what ${peer.name} was sent is not what the digest says, twice`);
  }

  #wrongTwice(range: ToMend, what: string): GodwitError {
    const { peer, worker, subject } = this.#options;
    const offsetBytes = range.first * 4096;
    const mebibyte = Math.floor(offsetBytes / REGION_BYTES);
    return new GodwitError(
      'MIGRATION_CONTENT_DIFFERS',
      `MiB ${mebibyte} of ${subject.volume.name} is not the same on ${worker.name} and ${peer.name}: ${what}`,
      {
        values: {
          source: worker.name,
          target: peer.name,
          offsetBytes,
          lengthBytes: rangeBytes(range, this.#lengthBytes),
        },
        nextAction:
          `Nothing is released. Look at the disks of ${worker.name} and ${peer.name} (kernel log, smartctl) and the memory of both hosts; it is tried ` +
          'again by itself. If the content is lost, godwit runs force ends the run.',
      },
    );
  }
}

/** Asks for as long as the target says that it is still adding up; each question brings it on. */
async function goingOn<T>(
  { clock, signal }: Pick<ProveOptions, 'clock' | 'signal'>,
  ask: () => Promise<T>,
): Promise<T> {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!isGodwitError(error, 'CLONE_PROOF_GOES_ON')) throw error;
    }
    await clock.sleep(ASK_AGAIN_MS, signal);
  }
}

/** Its rejection is for whoever waits for it, if anybody still does. */
function quietly<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

async function makeBody(
  options: ProveOptions,
  compared: Compared,
  mended: Mended,
  freeMapDigest: string | null,
): Promise<ReceiptBody> {
  const { moveId, subject, worker, key, peer, times, clock, signal } = options;
  const { volume } = subject;
  const figures = await goingOn(options, () => peer.figures(moveId, { freeMapDigest }, { signal }));
  const { root } = compared;
  if (
    figures.root !== root ||
    figures.ranges !== compared.ranges ||
    figures.comparedBytes !== compared.bytes ||
    !agree(compared.disk, figures.disk)
  ) {
    throw new GodwitError(
      'MIGRATION_PROOF_DIFFERS',
      `${worker.name} and ${peer.name} do not get the same sums`,
      {
        values: { root, targetRoot: figures.root, ranges: compared.ranges, targetRanges: figures.ranges },
        nextAction:
          'It is tried again by itself. If it stays, both workers must be of the same godwit version.',
      },
    );
  }
  const disk = figures.disk && diskOf(figures.disk);
  if (disk && unexplainedBytes(disk) > 0) throw unexplained(options, disk, compared.disk?.longest ?? null);
  const notFetched = volume.lengthBytes - figures.fetchedBytes;
  return {
    format: 'godwit-receipt',
    version: disk ? 2 : 1,
    moveId,
    machine: { id: subject.machineId, name: subject.machineName },
    volume: {
      id: volume.volumeId,
      name: volume.name,
      lengthBytes: volume.lengthBytes,
      encrypted: volume.encryption !== undefined,
    },
    generations: { sealed: volume.generation, opened: volume.generation + 1 },
    source: { worker: worker.name, publicKey: key.publicKey, keyFingerprint: key.fingerprint },
    target: figures.worker,
    bytes: {
      total: volume.lengthBytes,
      fetched: figures.fetchedBytes,
      notFetched,
      // Where the target could not use the map, it fetched what need not have come.
      avoided: Math.min(options.bytesAvoided, notFetched),
      compared: compared.bytes,
      readBack: compared.readBackBytes,
      writtenSince: compared.bytes - compared.readBackBytes,
      mended: mended.bytes,
      mendedLeft: mended.leftBytes,
      ...(figures.refetchedBytes && { refetched: figures.refetchedBytes }),
    },
    ...(disk && { disk }),
    ranges: compared.ranges,
    rangesMended: mended.ranges,
    freeMapDigest,
    root,
    timesMs: {
      stopped: times.stopped === null ? null : Math.round(times.stopped),
      handedOver: Math.round(times.handedOver),
      proven: Math.round(clock.wallMs()),
    },
  };
}

/** What the receipt says of a disk that was compared. */
export function diskOf(figures: NonNullable<ProofFigures['disk']>): ReceiptDisk {
  const { emptyBytes, changedBytes, clearedBytes, unusedBytes, guest } = figures;
  return { empty: emptyBytes, changed: changedBytes, cleared: clearedBytes, unused: unusedBytes, guest };
}

/** Both sides have put all that differs down as the same. */
function agree(ours: Comparison | null, theirs: ProofFigures['disk']): boolean {
  // Nothing may be in use: nothing was asked for.
  if (ours === null || ours.added === 0) return theirs === undefined;
  const { emptyBytes, changedBytes, clearedBytes, unusedBytes } = ours.sums();
  return (
    theirs?.emptyBytes === emptyBytes &&
    theirs.changedBytes === changedBytes &&
    theirs.clearedBytes === clearedBytes &&
    theirs.unusedBytes === unusedBytes
  );
}

function unexplained(
  { worker, peer, subject }: ProveOptions,
  disk: ReceiptDisk,
  longest: BlockRange | null,
): GodwitError {
  const unexplainedAtLeast = unexplainedBytes(disk);
  const { changed, cleared, guest } = disk;
  const { first, blocks } = longest ?? { first: 0, blocks: 0 };
  const offsetBytes = first * 4096;
  return new GodwitError(
    'MIGRATION_CONTENT_UNEXPLAINED',
    `${changed + cleared} bytes of ${subject.volume.name} on ${peer.name} are not what ${worker.name} sealed, most of them in a row in MiB ` +
      `${Math.floor(offsetBytes / REGION_BYTES)}, and ${unexplainedAtLeast} of them are nothing that the guest wrote or discarded`,
    {
      values: {
        source: worker.name,
        target: peer.name,
        offsetBytes,
        lengthBytes: rangeBytes({ first, blocks }, subject.volume.lengthBytes),
        unexplainedBytes: unexplainedAtLeast,
        changedBytes: changed,
        clearedBytes: cleared,
        guestWriteBytes: guest?.writeBytes ?? null,
        guestDiscardBytes: guest?.discardBytes ?? null,
      },
      retry: 'never',
      nextAction:
        `Nothing is released, and it is not tried again: what the guest writes later would hide it. Look at the disks of ${worker.name} and ` +
        `${peer.name} (kernel log, smartctl), the network and the memory of both hosts. The sealed volume on ${worker.name} is what it was: compare ` +
        `the files with it, or stop the machine on ${peer.name} and go back (godwit runs force RUN undo).`,
    },
  );
}

/** A receipt of this move that this worker signed. */
function ownReceipt(options: ProveOptions, receipt: Receipt): Receipt {
  const body = verifyReceipt(receipt);
  if (body.moveId === options.moveId && body.source.keyFingerprint === options.key.fingerprint)
    return receipt;
  throw new GodwitError(
    'MIGRATION_PROOF_DIFFERS',
    `${options.peer.name} has a receipt of this move that ${options.worker.name} did not sign`,
    {
      values: { moveId: body.moveId, fingerprint: body.source.keyFingerprint },
      nextAction:
        'The key of this worker was replaced since: put worker.key back. Else look who else answers at the address of the target.',
    },
  );
}
