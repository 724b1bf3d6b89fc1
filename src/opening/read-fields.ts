import { GodwitError } from '../base/errors.ts';
import { misfitOf, type Shape } from '../base/shape.ts';

export function badSpec(reason: string, cause?: unknown): GodwitError {
  return new GodwitError('VOLUME_BAD_SPEC', `a volume server cannot take this: ${reason}`, {
    nextAction: 'The shim and the volume server must be of the same godwit version.',
    cause,
  });
}

/**
 * `value`, where it has that shape; throws `VOLUME_BAD_SPEC`, which names the place and never what is there:
 * that may be a secret.
 */
export function fitting<Value>(shape: Shape<Value>, value: unknown, what: string): Value {
  const misfit = misfitOf(shape, value, what);
  if (misfit) throw badSpec(misfit.message);
  return value as Value;
}
