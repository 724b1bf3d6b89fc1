import { type Static, Type } from 'typebox';
import { Nullable, OneOf } from '../base/schema.ts';
import { PROOF_RANGES_MAX } from './range.ts';

/**
 * What is said between the two workers, and between a worker and its volume servers, when a move is proved.
 * Ranges are of blocks of 4 KiB and lie inside one region of 1 MiB, unless said otherwise; digests are
 * SHA-256 in hex.
 */
const Block = Type.Integer({ minimum: 0, maximum: 2 ** 48 });
const Digest = Type.String({ pattern: '^[0-9a-f]{64}$' });
const Count = Type.Integer({ minimum: 0 });
const Cursor = Nullable(Type.Integer({ minimum: 0 }));

export const BlockRange = Type.Object({ first: Block, blocks: Type.Integer({ minimum: 1 }) });
export type BlockRange = Static<typeof BlockRange>;

export const FetchedRange = Type.Object({
  /** Names the record in the target's fetch log. */
  position: Type.Integer({ minimum: 0 }),
  first: Block,
  blocks: Type.Integer({ minimum: 1, maximum: 256 }),
  /** Of the content as it arrived. */
  digest: Digest,
  /**
   * What the target's disk has there now. `written`: not looked at, because the guest wrote there, or may
   * have.
   */
  stored: OneOf('same', 'differs', 'written'),
});
export type FetchedRange = Static<typeof FetchedRange>;

export const FetchedPage = Type.Object({
  ranges: Type.Array(FetchedRange),
  /** Cursor of what follows, also of what is appended after the end. */
  next: Type.Integer({ minimum: 0 }),
  ended: Type.Boolean(),
  /**
   * Nobody can tell what came (the kernel fetched it): all of the disk is to be held against the source
   * (`compare`).
   */
  untold: Type.Optional(Type.Boolean()),
});
export type FetchedPage = Static<typeof FetchedPage>;

/** Ranges of any length that are local at the target though they were neither fetched nor written there. */
export const UnfetchedPage = Type.Object({
  ranges: Type.Array(BlockRange),
  next: Cursor,
  /**
   * Parts of `ranges` that should read as zeros and do not, each inside one region. Left out by a target that
   * does not look.
   */
  garbage: Type.Optional(Type.Array(BlockRange)),
});
export type UnfetchedPage = Static<typeof UnfetchedPage>;

export const ProofQuery = Type.Object({ cursor: Type.Integer({ minimum: 0 }) });
export type ProofQuery = Static<typeof ProofQuery>;

export const StatedRange = Type.Object({
  first: Block,
  blocks: Type.Integer({ minimum: 1, maximum: 256 }),
  /** What the source says that it has there. */
  digest: Digest,
});
export type StatedRange = Static<typeof StatedRange>;

export const MendRequest = Type.Object({
  ranges: Type.Array(
    Type.Object({
      ...StatedRange.properties,
      /** The record that this replaces; null: there is none. */
      position: Nullable(Type.Integer({ minimum: 0 })),
    }),
    { minItems: 1, maxItems: 2 * PROOF_RANGES_MAX },
  ),
});
export type MendRequest = Static<typeof MendRequest>;

export const MendReply = Type.Object({
  results: Type.Array(
    Type.Object({
      /** False: what came was not what the source says that it has. Nothing was stored. */
      mended: Type.Boolean(),
      storedBytes: Type.Integer({ minimum: 0 }),
      /** Not stored, because the guest wrote there. */
      leftBytes: Type.Integer({ minimum: 0 }),
    }),
  ),
});
export type MendReply = Static<typeof MendReply>;

/** All that may be in use at the source, holes too, ascending. From the block `cursor` on. */
export const StatedPage = Type.Object({
  ranges: Type.Array(StatedRange),
  next: Cursor,
  /** A free map has been left out. */
  mapped: Type.Boolean(),
});
export type StatedPage = Static<typeof StatedPage>;

/** Base64 of one digest, or of one a block. */
const Digests = Type.String({ pattern: '^[0-9A-Za-z+/]+=*$', maxLength: 4 * Math.ceil((256 * 32) / 3) });

/** The next ranges to compare (comparison.ts). The same question again has the same answer. */
export const CompareRequest = Type.Object({
  /** Ranges that were asked for before; 0: begins anew. */
  from: Type.Integer({ minimum: 0 }),
  freeMapDigest: Nullable(Digest),
  ranges: Type.Array(
    Type.Object({
      first: Block,
      blocks: Type.Integer({ minimum: 1, maximum: 256 }),
      /** What the source states; the answer has as many of each range. */
      digests: Digests,
    }),
    { minItems: 1, maxItems: PROOF_RANGES_MAX },
  ),
});
export type CompareRequest = Static<typeof CompareRequest>;

export const CompareReply = Type.Object({ found: Type.Array(Digests) });
export type CompareReply = Static<typeof CompareReply>;

/** What a comparison adds up to; bytes (comparison.ts). */
export const ComparedFigures = Type.Object({
  root: Digest,
  ranges: Count,
  comparedBytes: Count,
  emptyBytes: Count,
  changedBytes: Count,
  clearedBytes: Count,
  /** Not looked at: the source's free map has it. */
  unusedBytes: Count,
});
export type ComparedFigures = Static<typeof ComparedFigures>;

/** Requests that a guest's device has carried out since its volume was opened. */
export const GuestWrites = Type.Object(
  {
    writes: Count,
    writeBytes: Count,
    discards: Count,
    discardBytes: Count,
    /** Requests begin and end at multiples of this. */
    sectorBytes: Type.Union([Type.Literal(512), Type.Literal(4096)]),
  },
  { additionalProperties: false },
);
export type GuestWrites = Static<typeof GuestWrites>;

export const FiguresQuery = Type.Object({ freeMapDigest: Nullable(Digest) });
export type FiguresQuery = Static<typeof FiguresQuery>;

/** The target's own sums, over all of its fetch log (root.ts), or over what was compared. */
export const ProofFigures = Type.Object({
  root: Digest,
  ranges: Type.Integer({ minimum: 0 }),
  comparedBytes: Type.Integer({ minimum: 0 }),
  /** The same with each block counted once. */
  fetchedBytes: Type.Integer({ minimum: 0 }),
  /**
   * Came, was not in place yet when a volume server was killed, and came again. Left out: none, or not known.
   */
  refetchedBytes: Type.Optional(Count),
  /** There when the disk was compared. `guest`: until the comparison had ended; null: not known. */
  disk: Type.Optional(
    Type.Object({
      emptyBytes: Count,
      changedBytes: Count,
      clearedBytes: Count,
      unusedBytes: Count,
      guest: Nullable(GuestWrites),
    }),
  ),
});
export type ProofFigures = Static<typeof ProofFigures>;
