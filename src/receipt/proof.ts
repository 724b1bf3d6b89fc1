import { type Static, Type } from 'typebox';
import { PROOF_RANGES_MAX } from './range.ts';

/**
 * What is said between the two workers, and between a worker and its volume servers, when a move is proved. Ranges are of blocks of 4 KiB and lie inside
 * one region of 1 MiB, unless said otherwise; digests are SHA-256 in hex.
 */
const Block = Type.Integer({ minimum: 0, maximum: 2 ** 48 });
const Digest = Type.String({ pattern: '^[0-9a-f]{64}$' });
const Cursor = Type.Union([Type.Integer({ minimum: 0 }), Type.Null()]);

export const BlockRange = Type.Object({ first: Block, blocks: Type.Integer({ minimum: 1 }) });
export type BlockRange = Static<typeof BlockRange>;

export const FetchedRange = Type.Object({
  /** Names the record in the target's fetch log. */
  position: Type.Integer({ minimum: 0 }),
  first: Block,
  blocks: Type.Integer({ minimum: 1, maximum: 256 }),
  /** Of the content as it arrived. */
  digest: Digest,
  /** What the target's disk has there now. `written`: not looked at, because the guest wrote there, or may have. */
  stored: Type.Union([Type.Literal('same'), Type.Literal('differs'), Type.Literal('written')]),
});
export type FetchedRange = Static<typeof FetchedRange>;

export const FetchedPage = Type.Object({
  ranges: Type.Array(FetchedRange),
  /** Cursor of what follows, also of what is appended after the end. */
  next: Type.Integer({ minimum: 0 }),
  ended: Type.Boolean(),
});
export type FetchedPage = Static<typeof FetchedPage>;

/** Ranges of any length that are local at the target though they were neither fetched nor written there. */
export const UnfetchedPage = Type.Object({ ranges: Type.Array(BlockRange), next: Cursor });
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
      position: Type.Union([Type.Integer({ minimum: 0 }), Type.Null()]),
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

export const FiguresQuery = Type.Object({ freeMapDigest: Type.Union([Digest, Type.Null()]) });
export type FiguresQuery = Static<typeof FiguresQuery>;

/** The target's own sums, over all of its fetch log (root.ts). */
export const ProofFigures = Type.Object({
  root: Digest,
  ranges: Type.Integer({ minimum: 0 }),
  comparedBytes: Type.Integer({ minimum: 0 }),
  /** The same with each block counted once. */
  fetchedBytes: Type.Integer({ minimum: 0 }),
});
export type ProofFigures = Static<typeof ProofFigures>;
