import { createHash } from 'node:crypto';
import { rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { DATA_FOLDER_MARK, namedFolder, ownFolder } from '../sys/named-path.ts';

/** Where a worker keeps what. */
export type WorkerPaths = {
  dataDir: string;
  journal: string;
  /** Drain and verdicts: small state that is not a run. */
  state: string;
  /** The key that this worker signs receipts with. */
  key: string;
  lock: string;
  /** Room that is kept back for journal and records. */
  ballast: string;
  /** Written and removed to see whether the data disk can be written. */
  writeProbe: string;
  /** Runtime folders of shims: sockets, logs, mount points. */
  runtimeRoot: string;
  /**
   * Live validity bits of clones; on tmpfs where there is one, because they are worth nothing after a reboot.
   */
  validityDir: string;
  /**
   * Empty filesystems that are mounted to see whether they can be; nothing in it outlives its worker process.
   */
  mountProofs: string;
};

/** `f_type` of tmpfs, include/uapi/linux/magic.h. */
const TMPFS_MAGIC = 0x01021994;
const SHARED_MEMORY = '/dev/shm';

export function workerPaths(dataDir: string): WorkerPaths {
  const runtimeRoot = join(dataDir, 'run');
  return {
    dataDir,
    journal: join(dataDir, 'journal.sqlite'),
    state: join(dataDir, 'state.sqlite'),
    key: join(dataDir, 'worker.key'),
    lock: join(dataDir, DATA_FOLDER_MARK),
    ballast: join(dataDir, 'kept-back'),
    writeProbe: join(dataDir, '.write-probe'),
    runtimeRoot,
    validityDir: isTmpfs(SHARED_MEMORY)
      ? join(SHARED_MEMORY, `godwit-${createHash('sha256').update(dataDir).digest('hex').slice(0, 16)}`)
      : join(runtimeRoot, 'validity'),
    mountProofs: join(dataDir, 'mount-proofs'),
  };
}

/**
 * Throws `SYS_PATH_REFUSED` for a data folder that others could change, or that lies in the one of another
 * worker, and for one of the folders that is somebody else's.
 */
export function makeFolders(paths: WorkerPaths): void {
  namedFolder(paths.dataDir, 0o700, { isData: true });
  rmSync(paths.mountProofs, { recursive: true, force: true });
  for (const folder of [paths.runtimeRoot, paths.validityDir, paths.mountProofs]) ownFolder(folder);
}

function isTmpfs(path: string): boolean {
  try {
    return statfsSync(path).type === TMPFS_MAGIC;
  } catch {
    return false;
  }
}
