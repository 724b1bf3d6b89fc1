import { type ErrorValues, GodwitError } from '../base/errors.ts';

/** The header is not to be understood or trusted. `where` names the field. */
export function corruptError(where: string, problem: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError('CRYPT_HEADER_CORRUPT', `LUKS2 header: ${where}: ${problem}`, {
    values: { where, problem, ...values },
    retry: 'never',
    nextAction:
      'Do not write to the volume; restore its header from a backup (`cryptsetup luksHeaderBackup` and ours have the same form).',
  });
}

/** The header is sound and asks for something that is not done here. */
export function unsupportedError(what: string, found: string): GodwitError {
  return new GodwitError('CRYPT_UNSUPPORTED', `LUKS2: ${what} ${found} is not supported`, {
    values: { what, found },
    retry: 'never',
    nextAction:
      'Use cryptsetup for this volume, or convert it to aes-xts-plain64 without requirements there.',
  });
}

/** Length or place of something that cannot be. */
export function geometryError(problem: string, values: ErrorValues): GodwitError {
  return new GodwitError('CRYPT_BAD_GEOMETRY', problem, {
    values,
    retry: 'never',
    nextAction:
      'Compare the lengths with those of the volume record; the file may be cut short or the wrong one.',
  });
}
