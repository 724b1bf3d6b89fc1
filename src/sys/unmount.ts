import { callAsync, libc } from './libc.ts';

const umount2 = libc.func('umount2', 'int', ['str', 'int']);

/** include/linux/fs.h */
const MNT_DETACH = 2;
const UMOUNT_NOFOLLOW = 8;

/**
 * umount2(2) in the thread pool, as patient as the device under the filesystem. Rejects `SYS_CALL_FAILED`.
 */
export function mustUnmount(path: string): Promise<void> {
  return callAsync('umount2', umount2, [path, UMOUNT_NOFOLLOW], { path });
}

/**
 * umount2(2) in the thread pool. `lazy`: out of the tree now, gone when the last user leaves. Unlike
 * umount(8) it never looks into the mount, which would wait for ever where a FUSE server is dead. False when
 * the kernel refused (busy, not mounted, no right).
 */
export function unmount(path: string, options: { lazy: boolean }): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const flags = UMOUNT_NOFOLLOW | (options.lazy ? MNT_DETACH : 0);
    umount2.async(path, flags, (error: Error | null, result: number) => {
      if (error) reject(error);
      else resolve(result === 0);
    });
  });
}
