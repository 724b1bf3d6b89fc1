import { createHash } from 'node:crypto';

/**
 * One path component, the same for every shim of that runtime folder: the machine's id is not enough, since
 * source and target of a move may be workers of one host.
 */
export function cgroupName(runtimeDir: string): string {
  return `machine-${createHash('sha256').update(runtimeDir).digest('hex').slice(0, 16)}`;
}
