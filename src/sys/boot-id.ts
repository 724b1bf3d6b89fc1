import { readFileSync } from 'node:fs';

/**
 * A UUID that is new at every boot of the kernel (proc(5)): what is only in memory is valid as long as it
 * stays the same.
 */
export function bootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}
