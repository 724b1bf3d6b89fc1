import type { Plane } from '../host/capabilities.ts';
import type { AnswersOf } from './perform.ts';
import type { Role } from './role.ts';
import type { VolumeServerStatus } from './status.ts';

/**
 * A volume that is open, in the process that has it: the volume server, or in the kernel plane the shim. Each
 * class answers all that its role is asked in its plane; the table of perform.ts says what that is.
 */
export interface OpenVolume<R extends Role, P extends Plane> {
  readonly answers: AnswersOf<R, P>;
  /** As far as it is known now. */
  status(): VolumeServerStatus;
  /** Makes everything durable, and lets all of it go. */
  close(): Promise<void>;
}
