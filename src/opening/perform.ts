import { GodwitError } from '../base/errors.ts';
import type { Plane } from '../host/capabilities.ts';
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
import type { Role } from './role.ts';

const nothing = (): undefined => undefined;

type Row = {
  /** Openings that are asked it. */
  roles: readonly Role[];
  /** Of the backend that has it alone. Left out: both. */
  plane?: Plane;
  /** How its arguments are read. */
  read: (args: unknown) => unknown;
};

/** Who is asked what: the table that backends are checked against, by the compiler. */
const TABLE = {
  status: { roles: ['attach', 'export', 'serve'], read: nothing },
  activate: { roles: ['attach', 'export'], read: parseActivate },
  flush: { roles: ['attach', 'serve'], read: nothing },
  seal: { roles: ['attach'], read: nothing },
  'prime-free-map': { roles: ['attach'], read: parseFilesystem },
  'free-map': { roles: ['attach'], read: parseFilesystem },
  superblock: { roles: ['attach'], plane: 'userspace', read: nothing },
  hydration: { roles: ['attach'], read: parseHydration },
  finish: { roles: ['attach'], read: nothing },
  'give-up-source': { roles: ['attach'], read: nothing },
  room: { roles: ['attach'], plane: 'userspace', read: parseLeaving },
  heat: { roles: ['attach'], read: nothing },
  warm: { roles: ['attach'], read: parseHeat },
  fetched: { roles: ['attach'], read: parseCursor },
  unfetched: { roles: ['attach'], read: parseCursor },
  mend: { roles: ['attach'], plane: 'userspace', read: parseMend },
  figures: { roles: ['attach'], read: parseFreeMapDigest },
  compare: { roles: ['attach'], plane: 'kernel', read: parseCompare },
  digests: { roles: ['export'], read: parseRanges },
  owed: { roles: ['export'], read: parseOwed },
  stated: { roles: ['export'], read: parseCursor },
  grant: { roles: ['export'], plane: 'userspace', read: parseGrant },
  revoke: { roles: ['export'], plane: 'userspace', read: parseInitiator },
} as const satisfies { [Op in VolumeOperation]: Row };
type Table = typeof TABLE;

type Outcome<Op extends VolumeOperation> = keyof OperationResult<Op> extends never
  ? OperationResult<Op>
  : OperationResult<Op> extends Record<string, never>
    ? unknown
    : OperationResult<Op>;

type Answer<Op extends VolumeOperation> = (
  args: ReturnType<Table[Op]['read']>,
) => Outcome<Op> | Promise<Outcome<Op>>;

type IsAsked<
  Op extends VolumeOperation,
  R extends Role,
  P extends Plane,
> = R extends Table[Op]['roles'][number]
  ? Table[Op] extends { plane: infer Only }
    ? P extends Only
      ? Op
      : never
    : Op
  : never;

/** What a volume answers that is open in that role, in that plane: all of this, and no more. */
export type AnswersOf<R extends Role, P extends Plane> = {
  [Op in VolumeOperation as IsAsked<Op, R, P>]: Answer<Op>;
};

/** Of any role and backend. */
export type VolumeAnswers = { [Op in VolumeOperation]?: Answer<Op> };

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
  const read = TABLE[op as VolumeOperation].read(args);
  return (await (answer as (read: unknown) => unknown)(read)) ?? {};
}
