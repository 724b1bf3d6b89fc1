import { DatabaseSync } from 'node:sqlite';
import { httpTransport, type PeerTransport } from '../api/peer-client.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { Plane } from '../host/capabilities.ts';
import { jailRuntime } from '../jail/runtime.ts';
import type { JournalOptions } from '../journal/journal.ts';
import { localMachineHost, type MachineHost } from '../machine/machine-host.ts';
import { allocate } from '../sys/fallocate.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import { lackingOnThisHost, limitsMissingOnThisHost } from './load.ts';

/**
 * Where a worker touches its host and the network, beside its clock and the files of its data folder. A
 * simulation has doubles here and runs all else as it is (test/sim).
 */
export type Edges = {
  /** Processes, mounts and sockets of machines. */
  machineHost(options: { clock: Clock; logger: Logger }): MachineHost;
  database(path: string): DatabaseSync;
  /** The path, for the journal to open and lock; or an open database. */
  journal(path: string): JournalOptions['database'];
  /** The way to another worker. */
  transport(peer: { name: string; url: string; token: string; tls: TlsIdentity | null }): PeerTransport;
  /** What this host lacks for a plane now; null: nothing. */
  lacking(plane: Plane): string | null;
  /** Limits of machines for which it has no control group. */
  limitsMissing(): ('memory' | 'cpu')[];
  /** Takes the room of a part of a file on its filesystem (sys/fallocate.ts). */
  allocate: typeof allocate;
};

export const systemEdges: Edges = {
  machineHost: (options) => localMachineHost({ ...options, runtimes: { process: jailRuntime } }),
  database: (path) => new DatabaseSync(path),
  journal: (path) => path,
  transport: ({ tls, ...peer }) => httpTransport({ ...peer, tls: tls ?? undefined }),
  lacking: lackingOnThisHost,
  limitsMissing: limitsMissingOnThisHost,
  allocate,
};
