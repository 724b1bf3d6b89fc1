import { readFileSync } from 'node:fs';

const USUAL = 1024;

/** Descriptors that this process may have open (getrlimit(2), RLIMIT_NOFILE). */
export function descriptorsMax(): number {
  try {
    const [, soft] = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
    return soft === undefined ? USUAL : Number(soft);
  } catch {
    return USUAL;
  }
}
