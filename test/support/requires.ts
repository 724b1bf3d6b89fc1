import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';

/** Where a program is on PATH (with the sbin folders that a plain shell leaves out), or null. */
export function findProgram(name: string): string | null {
  const folders = [
    ...(process.env.PATH ?? '').split(delimiter),
    '/usr/sbin',
    '/sbin',
    '/usr/lib/postgresql/15/bin',
  ];
  for (const folder of folders) {
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // not here
    }
  }
  return null;
}

/**
 * Value for node:test's `skip` option: false when all is there, else the reason. `program` names are looked
 * up on PATH; a name with a slash is a file that must exist; `root` asks for uid 0. With GODWIT_NO_SKIP=1
 * (CI) nothing is ever missing: the test runs, and fails where something is. What may be missing there too is
 * in skips.ts.
 */
export function requires(...needs: string[]): string | false {
  if (process.env.GODWIT_NO_SKIP === '1') return false;
  const missing = needs.filter((need) => {
    if (need === 'root') return process.getuid?.() !== 0;
    if (need.includes('/')) return !existsSync(need);
    return findProgram(need) === null;
  });
  return missing.length === 0
    ? false
    : `missing: ${missing.join(', ')} (scripts/setup installs what tests need)`;
}
