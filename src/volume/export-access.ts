import { GodwitError } from '../base/errors.ts';
import type { Access } from '../opening/spec.ts';

/** An export, of either plane, is only ever opened for reading. */
export function exportAccessError(access: Access, requested: Access): GodwitError {
  return new GodwitError('VOLUME_BAD_ACCESS', `an export that is ${access} does not go to ${requested}`, {
    values: { access, requested },
    nextAction: 'An export goes from standby to readonly; close it to end it.',
  });
}
