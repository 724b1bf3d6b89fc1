import type { DatabaseSync } from 'node:sqlite';
import type { PeerClient } from '../api/peer-client.ts';
import type { WorkerService } from '../api/service.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import type { Rounds } from '../base/rounds.ts';
import type { TargetStatus } from '../contract/peer.ts';
import type { Journal } from '../journal/journal.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { DrainController } from '../migration/drain.ts';
import type { FailedTargets } from '../migration/failed-targets.ts';
import type { MoveInbox } from '../migration/inbox.ts';
import type { OfferDesk } from '../migration/offers.ts';
import type { HostLoad } from '../migration/placement.ts';
import type { ReceiptBook } from '../migration/receipt-book.ts';
import type { Reservations } from '../migration/reservations.ts';
import type { RunTimes } from '../migration/run-times.ts';
import type { TargetAnswers } from '../migration/target-answers.ts';
import type { WorkerKey } from '../receipt/envelope.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import type { VolumeStore } from '../volume/index.ts';
import type { Ballast } from './ballast.ts';
import type { DataFolder } from './data-folder.ts';
import type { DirtyBound } from './dirty-bound.ts';
import type { DiskLook } from './disk-look.ts';
import type { DownEvents } from './down.ts';
import type { Edges } from './edges.ts';
import type { EventBus } from './event-bus.ts';
import type { HostCheck } from './host-check.ts';
import type { Imports } from './imports.ts';
import type { LocalSourceSide } from './local-source-side.ts';
import type { LocalTargetSide } from './local-target-side.ts';
import type { MachineFigures } from './machine-figures.ts';
import type { Meters } from './meters.ts';
import type { Openings } from './openings.ts';
import type { WorkerOptions } from './options.ts';
import type { Told } from './part.ts';
import type { MachineRecovery } from './recovery.ts';
import type { Serving } from './serving.ts';
import type { VolumeAccess } from './volume-access.ts';
import type { VolumeServerLooks } from './volume-server-looks.ts';

/** What a worker is made out of. */
export type Given = {
  options: WorkerOptions;
  clock: Clock;
  random: Random;
  logger: Logger;
  version: string;
  environment: Readonly<Record<string, string | undefined>>;
  edges: Edges;
};

/** What is on this host and in its data folder. */
export type HostParts = {
  folder: DataFolder;
  disk: DiskLook;
  looks: VolumeServerLooks;
  ballast: Ballast;
  state: DatabaseSync;
  /** The certificate of this host; null: it has none. */
  identity: TlsIdentity | null;
  key: WorkerKey & { fingerprint: string };
  volumes: VolumeStore;
  access: VolumeAccess;
  machines: MachineManager;
  openings: Openings;
  serving: Serving;
  imports: Imports;
  /** What this host promises and holds; `forRun`: without what is reserved for that move. */
  load: (forRun?: string) => Promise<HostLoad>;
  check: HostCheck;
  dirtyBound: DirtyBound;
  /** What was last heard of machines and the disk, for metrics. */
  figures: MachineFigures;
  /** What is counted as it happens, for metrics. */
  meters: Meters;
  /** Destroys the retained copies whose time is over. */
  sweep: Rounds;
};

/** Moves and drains, from here and to here. */
export type MoveParts = {
  peers: readonly PeerClient[];
  desk: OfferDesk;
  inbox: MoveInbox;
  receipts: ReceiptBook;
  reservations: Reservations;
  /** Of moves that come here. */
  times: RunTimes;
  failedTargets: FailedTargets;
  /** What targets of moves that are on have said last, by run. */
  progress: Map<string, TargetStatus>;
  source: LocalSourceSide;
  target: LocalTargetSide;
  journal: Journal;
  targetAnswers: TargetAnswers;
  drain: DrainController;
  recovery: MachineRecovery;
};

/** What others see of it. */
export type SurfaceParts = {
  events: EventBus;
  downs: DownEvents;
  service: WorkerService;
  /** Serves when it has started. */
  api: { url: string };
  /**
   * Runs go on, and what was left of machines is looked after: when whoever can ask finds everything in
   * place.
   */
  resumption: object;
};

export type WorkerParts = Given & HostParts & MoveParts & SurfaceParts & Told;
