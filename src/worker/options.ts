import { dirname } from 'node:path';
import type { KeySource } from '../attach/server-spec.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';

/** What `godwit worker` is started with; made by cli/commands/worker.ts out of flags, environment and configuration file. */
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
  /** Certificate of this host and the CA of the fleet. Moves between two workers that have them go over TLS. null: none. */
  tls: TlsFiles | null;
  /** What offers may promise; null: what the host has. */
  capacity: { memoryBytes: number | null; cpus: number | null; diskBytes: number | null };
  /** Upper bound of the background copy of each volume that arrives here, bytes per second; 0: none. What a guest waits for is not held back. */
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

/** The folder of the key files, which no machine may see: a machine has a view of the host's root. */
export function keyFolder(path: string): string {
  return dirname(`${path.split('{volume}')[0]}_`);
}
