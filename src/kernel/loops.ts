import { readFile, realpath } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { systemErrorCode } from '../base/errors.ts';
import { kernelNameOf } from '../host/block-statistics.ts';
import { detachLoop, findLoops } from '../host/losetup.ts';

/**
 * Detaches the loop devices on a file that are read-only, or those that are not: an export and a machine have
 * a data file of their own each, for a moment in the middle of a move.
 */
export async function detachLoops(path: string, options: { readonly: boolean; clock: Clock }): Promise<void> {
  let file: string;
  try {
    // The kernel has the path without symbolic links.
    file = await realpath(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return;
    throw error;
  }
  for (const device of findLoops(file)) {
    const flag = await readFile(`/sys/block/${kernelNameOf(device)}/ro`, 'utf8').catch(() => '');
    if (flag.trim() === (options.readonly ? '1' : '0')) await detachLoop(device, { clock: options.clock });
  }
}
