import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Ending, leaveFolder } from './failure.ts';

/** A folder of the test's own, removed afterwards; kept when the test fails, which tells where it is. */
export function scratchDir(t: Ending): string {
  const dir = mkdtempSync(join(tmpdir(), 'gw-'));
  t.after(() => leaveFolder(t, dir));
  return dir;
}
