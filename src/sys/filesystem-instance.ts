import { readlinkSync, statSync } from 'node:fs';
import { basename } from 'node:path';

/** Filesystems that make a folder for each of their mounts in sysfs, named by the disk. */
const FILESYSTEMS = ['ext4', 'xfs', 'f2fs'] as const;

/**
 * Which mounted instance of its filesystem a path is on: the same for every process and in every mount
 * namespace, another one when the filesystem was taken down and mounted again, in the same boot too. What is
 * only in the page cache is valid as long as it stays the same. It is the inode number of the folder that the
 * filesystem has in sysfs, which the kernel gives to none of this boot again (fs/kernfs, `kernfs_node.id`).
 * Null where that cannot be told: no such folder, no sysfs.
 */
export function filesystemInstance(path: string): string | null {
  try {
    const { dev } = statSync(path, { bigint: true });
    // include/linux/kdev_t.h as glibc's makedev has it.
    const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
    const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
    const disk = basename(readlinkSync(`/sys/dev/block/${major}:${minor}`));
    for (const filesystem of FILESYSTEMS) {
      const folder = statSync(`/sys/fs/${filesystem}/${disk}`, { bigint: true, throwIfNoEntry: false });
      if (folder) return `${filesystem}:${folder.ino}`;
    }
    return null;
  } catch {
    return null;
  }
}
