import { callAsync, libc } from './libc.ts';

const syncfsCall = libc.func('syncfs', 'int', ['int']);

/** Writes all dirty data of the filesystem that the open file is on, in the thread pool. */
export function syncfs(fd: number): Promise<void> {
  return callAsync('syncfs', syncfsCall, [fd]);
}
