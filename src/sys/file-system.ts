import { closeSync, constants, ftruncateSync, openSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { errnoOf } from './libc.ts';

/** Magic numbers of include/uapi/linux/magic.h, and of filesystems that keep theirs in their own headers. */
const names = new Map<number, string>([
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
  [0x01021994, 'tmpfs'],
  [0x858458f6, 'ramfs'],
  [0x794c7630, 'overlay'],
  [0xf2f52010, 'f2fs'],
  [0x2fc12fc1, 'zfs'],
  [0x6969, 'nfs'],
  [0x65735546, 'fuse'],
]);

export type FileSystem = {
  /** `ext4` stands for ext2 and ext3 too (one magic number). Unknown ones come as their number in hex. */
  type: string;
  totalBytes: number;
  /** What an unprivileged process can still write. */
  availableBytes: number;
};

/** The filesystem that a path is on. Rejects with Node's error (ENOENT…). */
export async function fileSystemOf(path: string): Promise<FileSystem> {
  const stats = await statfs(path);
  const magic = stats.type >>> 0;
  return {
    type: names.get(magic) ?? `0x${magic.toString(16)}`,
    totalBytes: stats.blocks * stats.bsize,
    availableBytes: stats.bavail * stats.bsize,
  };
}

/**
 * Why nothing more goes into a folder, as the end of a sentence; null: `lengthBytes` do, or it cannot be
 * told. Rejects with Node's error (ENOENT…).
 */
export async function fullness(path: string, lengthBytes: number): Promise<string | null> {
  const { blocks, bavail, bsize, files, ffree } = await statfs(path);
  const freeBytes = bavail * bsize;
  if (blocks > 0 && freeBytes < lengthBytes)
    return `its filesystem is full (${Math.floor(freeBytes / 1024)} KiB free of ${Math.ceil((blocks * bsize) / 1024)})`;
  // A filesystem that makes them as they are needed counts none.
  return files > 0 && ffree === 0 ? `its filesystem has no inode left (of ${files})` : null;
}

/** __O_TMPFILE of include/uapi/asm-generic/fcntl.h: a file without a name. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;

/**
 * Whether the filesystem of a folder can hold a file of this length, full of holes. True where it cannot be
 * tried: whoever makes the file meets the answer then.
 */
export function holdsFileOf(directory: string, lengthBytes: number): boolean {
  let fd: number;
  try {
    fd = openSync(directory, O_TMPFILE | constants.O_RDWR, 0o600);
  } catch {
    return true;
  }
  try {
    ftruncateSync(fd, lengthBytes);
    return true;
  } catch (error) {
    return errnoOf(error) !== 'EFBIG' && errnoOf(error) !== 'EINVAL';
  } finally {
    closeSync(fd);
  }
}
