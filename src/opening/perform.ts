import { GodwitError } from '../base/errors.ts';
import type { OperationResult, VolumeOperation } from './operations.ts';
import {
  parseActivate,
  parseCompare,
  parseCursor,
  parseFilesystem,
  parseFreeMapDigest,
  parseHeat,
  parseInitiator,
  parseLeaving,
  parseMend,
  parseOwed,
  parseRanges,
} from './read-arguments.ts';
import { parseGrant, parseHydration } from './read-spec.ts';

const nothing = (): undefined => undefined;

/** How the arguments of each operation are read. */
const READERS = {
  status: nothing,
  activate: parseActivate,
  flush: nothing,
  seal: nothing,
  'prime-free-map': parseFilesystem,
  'free-map': parseFilesystem,
  superblock: nothing,
  hydration: parseHydration,
  finish: nothing,
  'give-up-source': nothing,
  room: parseLeaving,
  heat: nothing,
  warm: parseHeat,
  fetched: parseCursor,
  unfetched: parseCursor,
  mend: parseMend,
  figures: parseFreeMapDigest,
  compare: parseCompare,
  digests: parseRanges,
  owed: parseOwed,
  stated: parseCursor,
  grant: parseGrant,
  revoke: parseInitiator,
} satisfies { [Op in VolumeOperation]: (args: unknown) => unknown };

type Outcome<Op extends VolumeOperation> = keyof OperationResult<Op> extends never
  ? OperationResult<Op>
  : OperationResult<Op> extends Record<string, never>
    ? unknown
    : OperationResult<Op>;

/** What an open volume answers; the operations of its role, and no others. */
export type VolumeAnswers = {
  [Op in VolumeOperation]?: (args: ReturnType<(typeof READERS)[Op]>) => Outcome<Op> | Promise<Outcome<Op>>;
};

/**
 * Answers one operation. Rejects `VOLUME_UNKNOWN_OP` for one that is not among `answers`, `VOLUME_BAD_SPEC`
 * for arguments that do not fit.
 */
export async function performOperation(answers: VolumeAnswers, op: string, args: unknown): Promise<unknown> {
  const answer = Object.hasOwn(answers, op) ? answers[op as VolumeOperation] : undefined;
  if (answer === undefined) {
    throw new GodwitError('VOLUME_UNKNOWN_OP', `a volume that is open in this role has no operation ${op}`, {
      values: { op },
      nextAction: 'The worker and the volume server must be of the same godwit version.',
    });
  }
  const read = READERS[op as VolumeOperation](args);
  return (await (answer as (read: unknown) => unknown)(read)) ?? {};
}
