import {
  anything,
  flag,
  integer,
  list,
  matching,
  nullable,
  object,
  oneOf,
  type Shape,
  text,
} from '../base/shape.ts';
import type { CompareRequest, MendRequest } from '../receipt/proof.ts';
import { PROOF_RANGES_MAX, REGION_BYTES } from '../receipt/range.ts';
import { HEAT_REGIONS_MAX } from './guest.ts';
import { fitting } from './read-fields.ts';
import { ACCESS, GRANT, HYDRATION } from './read-spec.ts';
import type { Grant, Leaving } from './spec.ts';

/** What is asked of an open volume, checked as its spec is: everything here throws `VOLUME_BAD_SPEC`. */
function reading<Value, Read>(shape: Shape<Value>, read: (value: Value) => Read): (value: unknown) => Read {
  return (value) => read(fitting(shape, value, 'what it is asked'));
}

const BLOCK_MAX = 2 ** 48;
const first = integer(0, BLOCK_MAX);
const RANGE = object({ first, blocks: integer(1, BLOCK_MAX) });
/** Of one region. */
const PART = { first, blocks: integer(1, REGION_BYTES / 4096) };
const ranges = <Range>(range: Shape<Range>) => list(range, 2 * PROOF_RANGES_MAX);
const digest = matching('a digest', /^[0-9a-f]{64}$/);
const cursor = integer(0);

export const parseInitiator = reading(object({ initiatorIqn: text }), (asked) => asked.initiatorIqn);

/** A hint: what is no region is left out. */
export const parseHeat = reading(
  object({ regions: list(anything as Shape<number>, Number.MAX_SAFE_INTEGER) }),
  ({ regions }) =>
    regions.slice(0, HEAT_REGIONS_MAX).filter((region) => Number.isSafeInteger(region) && region >= 0),
);

/**
 * Workers of earlier versions do not say whether the machine has stopped: then all of it is open from the
 * beginning.
 */
export const parseLeaving = reading(
  object({ leaving: flag }, { stopped: flag }),
  ({ leaving, stopped }): Leaving => (!leaving ? 'no' : stopped === false ? 'running' : 'stopped'),
);

export const parseActivate = reading(object({ access: ACCESS }), ({ access }) => access);

export const parseFilesystem = reading(
  object({ filesystem: oneOf('ext4', 'xfs') }),
  ({ filesystem }) => filesystem,
);

export const parseCursor = reading(object({ cursor }), (asked) => asked.cursor);

export const parseRanges = reading(object({ ranges: ranges(RANGE) }), (asked) => asked.ranges);

export const parseOwed = reading(
  object({ first, blocks: integer(1, BLOCK_MAX), cursor }),
  ({ cursor, ...range }) => ({ range, cursor }),
);

export const parseCompare: (value: unknown) => CompareRequest = reading(
  object({
    from: integer(0),
    freeMapDigest: nullable(digest),
    ranges: ranges(object({ ...PART, digests: text })),
  }),
  (asked) => asked,
);

export const parseMend: (value: unknown) => MendRequest = reading(
  object({ ranges: ranges(object({ ...PART, digest, position: nullable(integer(0)) })) }),
  (asked) => asked,
);

export const parseFreeMapDigest = reading(
  object({ freeMapDigest: nullable(digest) }),
  (asked) => asked.freeMapDigest,
);

export const parseGrant = reading(
  GRANT,
  ({ initiatorIqn, chapUser, chapSecret, generation }): Grant => ({
    initiatorIqn,
    chapUser,
    chapSecret,
    generation,
  }),
);

export const parseHydration = reading(HYDRATION, ({ paused, rateBytesPerSecondMax }) => ({
  paused,
  rateBytesPerSecondMax,
}));
