import { type ErrorValues, GodwitError } from '../base/errors.ts';

/** Why there is no map. A move goes on without one: then only the holes of the file stay behind. */
export type FreeMapCode =
  /** No filesystem that this room knows. */
  | 'FREEMAP_UNKNOWN_FILESYSTEM'
  /** A feature or geometry that it does not understand. */
  | 'FREEMAP_NOT_SUPPORTED'
  /** Needs recovery, was not unmounted, or has errors. */
  | 'FREEMAP_NOT_CLEAN'
  /** A checksum does not fit. */
  | 'FREEMAP_BAD_CHECKSUM'
  /** Structures that contradict each other or the size of the volume. */
  | 'FREEMAP_CORRUPT';

const NEXT_ACTIONS: Record<FreeMapCode, string> = {
  FREEMAP_UNKNOWN_FILESYSTEM: 'Nothing to do: all bytes of the volume travel, its holes excepted.',
  FREEMAP_NOT_SUPPORTED:
    'Nothing to do: all bytes of the volume travel; an fstrim before the move saves them.',
  FREEMAP_NOT_CLEAN:
    'Nothing to do: all bytes of the volume travel. Mounting it once, or its fsck, makes it clean.',
  FREEMAP_BAD_CHECKSUM: 'All bytes of the volume travel. Run its fsck when the machine is stopped.',
  FREEMAP_CORRUPT: 'All bytes of the volume travel. Run its fsck when the machine is stopped.',
};

export function noMap(code: FreeMapCode, message: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError(code, message, { values, nextAction: NEXT_ACTIONS[code] });
}
