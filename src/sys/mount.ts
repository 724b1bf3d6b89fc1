import { callAsync, libc } from './libc.ts';

const mountCall = libc.func('mount', 'int', ['str', 'str', 'str', 'ulong', 'str']);

/** include/uapi/linux/mount.h */
export const MOUNT_FLAG = {
  readOnly: 1 << 0,
  noSuid: 1 << 1,
  noDev: 1 << 2,
  noExec: 1 << 3,
  /**
   * Alone: mounts below the place appear in its copies of other mount namespaces too (mount_namespaces(7)).
   */
  shared: 1 << 20,
} as const;

/**
 * mount(2) in the thread pool, some milliseconds quicker than a process of mount(8). `type` is null for a
 * change of propagation. Rejects `SYS_CALL_FAILED`. It cannot be given up: a device that does not answer
 * keeps a thread of the pool.
 */
export function mount(options: {
  source: string;
  place: string;
  type: string | null;
  flags: number;
  data?: string;
}): Promise<void> {
  const { source, place, type, flags, data = null } = options;
  return callAsync('mount', mountCall, [source, place, type, flags, data], { source, place });
}
