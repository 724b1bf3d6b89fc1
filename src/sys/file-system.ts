import { statfs } from 'node:fs/promises';

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
