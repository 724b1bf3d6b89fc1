import type { FreeMapFilesystem } from '../freemap/free-map-reader.ts';
import type { BlockRange, CompareRequest, MendRequest } from '../receipt/proof.ts';
import { REGION_BYTES } from '../receipt/range.ts';
import { HEAT_REGIONS_MAX } from './guest.ts';
import { badSpec, digestText, flag, integer, list, object, oneOf, text } from './read-fields.ts';
import { parseAccess } from './read-spec.ts';
import type { Access, Leaving } from './spec.ts';

/** What is asked of an open volume, checked as its spec is: everything here throws `VOLUME_BAD_SPEC`. */

const BLOCK_MAX = 2 ** 48;

export function parseInitiator(value: unknown): string {
  return text(object(value, 'revoke').initiatorIqn, 'initiatorIqn');
}

/** A hint: what is no region is left out. */
export function parseHeat(value: unknown): number[] {
  const { regions } = object(value, 'warm');
  if (!Array.isArray(regions)) throw badSpec('warm.regions does not fit');
  return regions.slice(0, HEAT_REGIONS_MAX).filter((region) => Number.isSafeInteger(region) && region >= 0);
}

/**
 * Workers of earlier versions do not say whether the machine has stopped: then all of it is open from the
 * beginning.
 */
export function parseLeaving(value: unknown): Leaving {
  const { leaving, stopped } = object(value, 'room');
  if (!flag(leaving, 'room.leaving')) return 'no';
  return stopped === undefined || flag(stopped, 'room.stopped') ? 'stopped' : 'running';
}

export function parseActivate(value: unknown): Access {
  return parseAccess(object(value, 'activate').access);
}

export function parseFilesystem(value: unknown): FreeMapFilesystem {
  return oneOf(object(value, 'free map').filesystem, ['ext4', 'xfs'], 'filesystem');
}

export function parseCursor(value: unknown): number {
  return integer(object(value, 'proof').cursor, 0, 'cursor');
}

function parseRange(value: unknown): BlockRange {
  const range = object(value, 'range');
  return {
    first: integer(range.first, 0, 'range.first', BLOCK_MAX),
    blocks: integer(range.blocks, 1, 'range.blocks', BLOCK_MAX),
  };
}

export function parseRanges(value: unknown): BlockRange[] {
  return list(object(value, 'digests').ranges, 'digests.ranges').map(parseRange);
}

export function parseOwed(value: unknown): { range: BlockRange; cursor: number } {
  return { range: parseRange(value), cursor: parseCursor(value) };
}

export function parseCompare(value: unknown): CompareRequest {
  const request = object(value, 'compare');
  return {
    from: integer(request.from, 0, 'compare.from'),
    freeMapDigest: parseFreeMapDigest(value),
    ranges: list(request.ranges, 'compare.ranges').map((item) => {
      const { blocks, digests } = object(item, 'compare.ranges');
      return {
        ...parseRange(item),
        blocks: integer(blocks, 1, 'range.blocks', REGION_BYTES / 4096),
        digests: text(digests, 'range.digests'),
      };
    }),
  };
}

export function parseMend(value: unknown): MendRequest {
  return {
    ranges: list(object(value, 'mend').ranges, 'mend.ranges').map((item) => {
      const { digest, position, blocks } = object(item, 'mend.ranges');
      return {
        ...parseRange(item),
        blocks: integer(blocks, 1, 'range.blocks', REGION_BYTES / 4096),
        digest: digestText(digest),
        position: position === null ? null : integer(position, 0, 'position'),
      };
    }),
  };
}

export function parseFreeMapDigest(value: unknown): string | null {
  const { freeMapDigest } = object(value, 'figures');
  return freeMapDigest === null ? null : digestText(freeMapDigest);
}
