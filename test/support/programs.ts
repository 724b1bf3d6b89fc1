import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ProgramFile } from '../../src/base/entry-point.ts';

/**
 * What a test starts: the program that `scripts/test` made of the sources (GODWIT_PROGRAMS), as in the
 * package; the source where a test is started by hand.
 */
export function programPath(file: ProgramFile): string {
  const made = process.env.GODWIT_PROGRAMS;
  if (made) return join(made, file.replace(/\.ts$/, '.js'));
  return fileURLToPath(new URL(`../../src/${file}`, import.meta.url));
}
