import { GodwitError, isGodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { systemTools, type Tools } from './tools.ts';

const EXT4_JOURNAL_BYTES_MAX = 64 * 2 ** 20;
const DEADLINE_MS = PATIENCE.makeFilesystem.ms;
const PACKAGES = { ext4: 'e2fsprogs', xfs: 'xfsprogs' } as const;

export type MkfsOptions = {
  filesystem: 'ext4' | 'xfs';
  /** A sparse file of zeros, or a device that reads as zeros. */
  path: string;
  lengthBytes: number;
  /** Of the device that it will be mounted on. XFS keeps to the ones that it was made for. Default 512. */
  sectorBytes?: number;
};

/**
 * How a file becomes a filesystem. For ext4:
 * - blocks of 4 KiB, the unit of validity of a clone, whatever the size;
 * - the sparse file reads as zeros, so nothing is zeroed and the inode tables count as done (no background
 *   zeroing by the kernel on the first mount, which would turn into writes on a clone): 100 GiB take 5 MiB
 *   and some 10 ms;
 * - no blocks kept back for root: the volume is one machine's, which may be root or not, and gets what it
 *   paid for;
 * - a journal of at most 64 MiB instead of up to 1 GiB: the journal is written round and round, so all of it
 *   ends up allocated and has to travel with every move.
 * mkfs.xfs reserves the blocks of its log (64 MiB) without writing them: they are taken on the host and read
 * as a hole, so they do not travel.
 */
export function mkfsCommand(options: MkfsOptions): [program: string, ...args: string[]] {
  const { filesystem, path, lengthBytes, sectorBytes = 512 } = options;
  if (filesystem === 'xfs') {
    const sectors = sectorBytes === 512 ? [] : ['-s', `size=${sectorBytes}`];
    return ['mkfs.xfs', '-q', '-f', '-K', ...sectors, path];
  }
  // mke2fs gives more than 64 MiB from 16 GiB on (e2fsprogs, ext2fs_default_journal_size).
  const journal = lengthBytes >= 16 * 2 ** 30 ? ['-J', `size=${EXT4_JOURNAL_BYTES_MAX / 2 ** 20}`] : [];
  const choices = ['-b', '4096', '-m', '0', '-E', 'assume_storage_prezeroed=1,nodiscard', ...journal];
  return ['mkfs.ext4', '-q', '-F', ...choices, path];
}

/** Rejects `HOST_MKFS_MISSING`, `HOST_MKFS_FAILED` with what the program said, and `HOST_TOOL_STUCK`. */
export async function mkfs(options: MkfsOptions, tools: Tools = systemTools()): Promise<void> {
  const argv = mkfsCommand(options);
  const { exitCode, stdout, stderr } = await tools
    .run(argv, { deadlineMs: DEADLINE_MS })
    .catch((error: unknown) => {
      if (!isGodwitError(error, 'HOST_TOOL_MISSING')) throw error;
      throw new GodwitError('HOST_MKFS_MISSING', `${argv[0]} is not on this host`, {
        values: { program: argv[0] },
        nextAction: `Install it (Debian: ${PACKAGES[options.filesystem]}) or choose another filesystem.`,
        cause: error,
      });
    });
  if (exitCode === 0) return;
  throw new GodwitError('HOST_MKFS_FAILED', `${argv[0]} failed: ${stderr.trim() || stdout.trim()}`, {
    values: { program: argv[0], lengthBytes: options.lengthBytes, exitCode },
    nextAction: 'The message is the program’s own; a volume too small for the filesystem is the usual cause.',
  });
}
