import { GodwitError } from '../base/errors.ts';
import type { Plane } from '../host/capabilities.ts';
import { OPERATIONS, type OperationRead, type OperationResult, type VolumeOperation } from './operations.ts';
import type { Role } from './role.ts';

type Table = typeof OPERATIONS;

type Outcome<Op extends VolumeOperation> = keyof OperationResult<Op> extends never
  ? OperationResult<Op>
  : OperationResult<Op> extends Record<string, never>
    ? unknown
    : OperationResult<Op>;

type Answer<Op extends VolumeOperation> = (args: OperationRead<Op>) => Outcome<Op> | Promise<Outcome<Op>>;

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
      // One that knows it is of no earlier version (base/later-question.ts).
      values: { op, ...(Object.hasOwn(OPERATIONS, op) && { isKnown: true }) },
      nextAction: 'The worker and the volume server must be of the same godwit version.',
    });
  }
  const read = OPERATIONS[op as VolumeOperation].read(args);
  return (await (answer as (read: unknown) => unknown)(read)) ?? {};
}
