import { realpathSync } from 'node:fs';
import { dirname } from 'node:path';
import type { KeySource } from '../opening/spec.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';

/**
 * What `godwit worker` is started with; made by cli/commands/worker.ts out of flags, environment and
 * configuration file.
 */
export type WorkerOptions = {
  /** Unique in the fleet, and for ever: the records on disk carry it. */
  name: string;
  /** Everything that must survive a reboot: journal, records, volumes. Absolute. */
  dataDir: string;
  listenHost: string;
  /** 0: the system picks one. */
  listenPort: number;
  /** Where other workers reach this one; null: `http://<listenHost>:<port>`. */
  advertiseUrl: string | null;
  peers: { name: string; url: string }[];
  /** Shared by the fleet; at least 16 characters. */
  token: string;
  /** Address on which exports listen and at which targets reach them. */
  iscsiHost: string;
  /**
   * Certificate of this host and the CA of the fleet: the API is served over TLS, and so are the blocks of a
   * move to a worker that has them too. null: none.
   */
  tls: TlsFiles | null;
  /**
   * What serves volumes on this host: processes of ours, or the kernel's own device-mapper, iSCSI target and
   * initiator, where it has them (docs/kernel-plane.md).
   */
  plane: 'userspace' | 'kernel';
  /**
   * With `tls`: other workers may ask and be asked without certificates and in the clear, while the fleet
   * gets them.
   */
  tlsOptional: boolean;
  /** What offers may promise; null: what the host has. */
  capacity: { memoryBytes: number | null; cpus: number | null; diskBytes: number | null };
  /**
   * What becomes of writes of machines when the data disk is full but for its reserve: they wait for room, or
   * fail.
   */
  whenFull: 'pause' | 'error';
  /**
   * Upper bound of the background copy of each volume that arrives here, bytes per second; 0: none. What a
   * guest waits for is not held back.
   */
  hydrationRateBytesPerSecondMax: number;
  /** How long a source volume is kept after its move. */
  retainMs: number;
  /** Where the keys of encrypted volumes come from; null: this worker makes and takes none. */
  keys: KeySource | null;
  /** Of the LUKS2 headers that are made here, key slots included. */
  headerFileBytes: number;
  logLevel: 'debug' | 'info' | 'warn' | 'error';
};

/** What `startWorker(options)` of worker/main.ts resolves to, once the API listens. */
export type RunningWorker = {
  url: string;
  /** Ends the control process in good order. Machines go on running. */
  close(): Promise<void>;
};

/**
 * What no machine may see, though it has a view of the host's root: the data, the keys of volumes, and the
 * key of this host's certificate, links followed.
 */
export function hiddenFolders({
  dataDir,
  keys,
  tls,
}: Pick<WorkerOptions, 'dataDir' | 'keys' | 'tls'>): string[] {
  const folders = [dataDir];
  if (keys?.kind === 'file') folders.push(keyFolder(keys.path));
  if (tls !== null) {
    folders.push(dirname(tls.keyFile));
    // A link into /etc itself does not take /etc away from machines.
    const behindLinks = dirname(realpathSync(tls.keyFile));
    if (behindLinks.split('/').filter(Boolean).length > 1) folders.push(behindLinks);
  }
  return [...new Set(folders)];
}

/** The folder of the key files, which no machine may see: a machine has a view of the host's root. */
export function keyFolder(path: string): string {
  return dirname(`${path.split('{volume}')[0]}_`);
}
