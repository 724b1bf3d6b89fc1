import { GodwitError } from '../base/errors.ts';
import { errnoOf } from '../sys/libc.ts';

/**
 * `VOLUME_NO_SPACE` and `VOLUME_BAD_LENGTH` for what a filesystem says when it is full, or cannot hold a file
 * so long; everything else as it is.
 */
export function storageError(error: unknown, path: string): unknown {
  const code = errnoOf(error);
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new GodwitError('VOLUME_NO_SPACE', `no room left below ${path}`, {
      values: { path },
      retry: 'never',
      nextAction: 'Free space on this host or choose another worker.',
      cause: error,
    });
  }
  if (code === 'EFBIG' || code === 'EINVAL') {
    return new GodwitError(
      'VOLUME_BAD_LENGTH',
      `the filesystem below ${path} cannot hold a file of this length`,
      {
        values: { path },
        nextAction: 'Choose a smaller volume, or another filesystem for the data folder.',
        cause: error,
      },
    );
  }
  return error;
}
