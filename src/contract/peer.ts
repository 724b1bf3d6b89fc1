import { type Static, Type } from 'typebox';
import { OWN_NAME_PATTERN } from '../base/own-name.ts';
import { PATIENCE } from '../base/patience.ts';
import { Nullable, OneOf } from '../base/schema.ts';
import { RetrySchema } from '../base/wire-error-schema.ts';
import { SEALED_MAP_BYTES_MAX } from '../freemap/sealed-map.ts';
import { MountNeeds } from '../host/mount-needs.ts';
import { HeatHint, SourceSpec } from '../opening/spec.ts';
import { Receipt } from '../receipt/envelope.ts';
import {
  CompareReply,
  CompareRequest,
  FetchedPage,
  FiguresQuery,
  MendReply,
  MendRequest,
  ProofFigures,
  ProofQuery,
  UnfetchedPage,
} from '../receipt/proof.ts';
import { ReceiptWorker } from '../receipt/receipt.ts';
import type { Answers, Asks, Conversation } from './endpoint.ts';
import { MachineConfig } from './machine-config.ts';
import { Ref } from './schemas.ts';

/**
 * What one worker asks of another during a move. Only the source asks (and a target that wonders whether its
 * source still means it, through `run`); every call is idempotent and carries the id of the source's run,
 * which names the move on both sides.
 */

const KeySlot = Type.Union([
  Type.Object({
    slot: Type.Integer({ minimum: 0 }),
    kdf: Type.Literal('pbkdf2'),
    hash: Type.String(),
    iterations: Type.Number(),
  }),
  Type.Object({
    slot: Type.Integer({ minimum: 0 }),
    kdf: OneOf('argon2id', 'argon2i'),
    memoryKib: Type.Number(),
    passes: Type.Number(),
    lanes: Type.Number(),
  }),
]);

/**
 * What a worker must know of an encrypted volume to tell whether it could open it; the fields are those of
 * crypt/geometry.ts. None is secret.
 */
export const EncryptionNeeds = Type.Object({
  /** By the volume's record; that of the header is in `geometry`. */
  uuid: Type.String(),
  geometry: Type.Object({
    uuid: Type.String(),
    headerBytes: Type.Integer(),
    headerAreaBytes: Type.Integer(),
    dataOffsetBytes: Type.Integer(),
    dataLengthBytes: Nullable(Type.Integer()),
    sectorBytes: Type.Integer(),
    cipher: Type.String(),
    keyBytes: Type.Integer(),
    slots: Type.Array(KeySlot),
  }),
});
export type EncryptionNeeds = Static<typeof EncryptionNeeds>;

/** Names something in the folders of the worker that is asked: one plain name. */
const Id = Type.String({ pattern: OWN_NAME_PATTERN, maxLength: 100 });

/** What a machine needs; all that placement looks at. */
export const PlacementRequest = Type.Object({
  machineId: Id,
  machineName: Id,
  group: Nullable(Type.String()),
  memoryBytes: Type.Integer({ minimum: 0 }),
  cpus: Type.Number({ minimum: 0 }),
  volumeLengthBytes: Type.Integer({ minimum: 0 }),
  /** Allocated bytes of the sparse source file: what will have to be stored at least. */
  volumeUsedBytes: Type.Integer({ minimum: 0 }),
  /** Of an encrypted volume. */
  encryption: Type.Optional(EncryptionNeeds),
  /**
   * What only the userspace plane can do for its volume, as the end of a sentence that begins with "it". Left
   * out: either plane can have it.
   */
  userspaceOnly: Type.Optional(Type.String()),
});
export type PlacementRequest = Static<typeof PlacementRequest>;

/** What else its host must have. */
export const OfferNeeds = Type.Object({
  config: MachineConfig,
  /** Of a filesystem that is to be mounted; left out: none is, or it could not be read. */
  mount: Type.Optional(MountNeeds),
});
export type OfferNeeds = Static<typeof OfferNeeds>;

export const OfferRequest = Type.Object({
  sourceWorker: Id,
  machine: PlacementRequest,
  /**
   * Machines that a plan has already put on this worker: counted as if they were there. Empty for a real
   * move.
   */
  planned: Type.Array(PlacementRequest),
  needs: Type.Optional(OfferNeeds),
});
export type OfferRequest = Static<typeof OfferRequest>;

export const Offer = Type.Object({
  worker: Type.String(),
  accepted: Type.Boolean(),
  /** Why not, or what the score stands on. A sentence. */
  reason: Type.String(),
  /** Higher is better; comparable between workers. 0 when refused. */
  score: Type.Number(),
  freeMemoryBytes: Type.Integer(),
  freeCpus: Type.Number(),
  freeDiskBytes: Type.Integer(),
  /** It can fetch the blocks over TLS. Absent: it cannot. */
  tls: Type.Optional(Type.Boolean()),
  /** The words of what came later (`Endpoint.since`) and it knows. Absent: none. */
  knows: Type.Optional(Type.Array(Type.String())),
  /** Machines of the same group that are already here. */
  groupMembers: Type.Integer(),
});
export type Offer = Static<typeof Offer>;

/** Many machines at once, each as an offer is asked for, without planned ones. */
export const FitRequest = Type.Object({
  sourceWorker: Id,
  machines: Type.Array(Type.Object({ machine: PlacementRequest, needs: Type.Optional(OfferNeeds) })),
});
export type FitRequest = Static<typeof FitRequest>;

const DiskReservation = Type.Object({ machineId: Nullable(Type.String()), bytes: Type.Number() });

/** The figures of a worker that offers stand on, for who counts machines that it may get. */
export const HostRoom = Type.Object({
  worker: Type.String(),
  draining: Type.Boolean(),
  tls: Type.Boolean(),
  plane: OneOf('userspace', 'kernel'),
  limitsMissing: Type.Optional(Type.Array(OneOf('memory', 'cpu'))),
  memoryBytes: Type.Number(),
  cpus: Type.Number(),
  freeDiskBytes: Type.Number(),
  reserved: Type.Array(DiskReservation),
  maps: Type.Optional(
    Type.Object({ dir: Type.String(), freeBytes: Type.Number(), reserved: Type.Array(DiskReservation) }),
  ),
  totalDiskBytes: Type.Number(),
  placed: Type.Array(PlacementRequest),
});
export type HostRoom = Static<typeof HostRoom>;

export const FitReply = Type.Object({
  room: HostRoom,
  /** In the order of the machines: why it would not take this one if it were the only one; null: it would. */
  refusals: Type.Array(Nullable(Type.String())),
});
export type FitReply = Static<typeof FitReply>;

export const PrepareRequest = Type.Object({
  runId: Id,
  sourceWorker: Id,
  sourceUrl: Type.String(),
  machineId: Id,
  machineName: Id,
  config: MachineConfig,
  placement: PlacementRequest,
  /** Null: the machine has no volume and only its configuration moves. */
  volume: Nullable(
    Type.Object({
      volumeId: Id,
      name: Id,
      lengthBytes: Type.Integer({ minimum: 4096 }),
      filesystem: OneOf('ext4', 'xfs', 'none'),
      /** Generation that the source seals; the target opens the next one. */
      sealedGeneration: Type.Integer({ minimum: 1 }),
      source: SourceSpec,
      /**
       * The target asks the source for the header (`volumeHeader`): key material, though encrypted, is in no
       * journal.
       */
      encryption: Type.Optional(
        Type.Object({
          uuid: Type.String(),
          /** Which key of the volume; left out: 1. */
          keyGeneration: Type.Optional(Type.Integer({ minimum: 1 })),
          /** The volume that the key was made for; left out: this one. */
          keyVolumeId: Type.Optional(Id),
          /** dm-crypt may open the volume too (volume/record.ts). */
          holes: Type.Optional(Type.Literal('none')),
          /** The target makes another key and header, and hydrates through decrypt and encrypt. */
          rekey: Type.Optional(Type.Boolean()),
        }),
      ),
    }),
  ),
  /** False: the machine was stopped before the move and stays so. */
  startMachine: Type.Boolean(),
  /**
   * What is wrong with the machine before the move, as the end of a sentence that begins with "it": it is
   * started at the target as well, and nobody waits for it to get healthy. Left out: nothing.
   */
  ailing: Type.Optional(Type.String()),
});
export type PrepareRequest = Static<typeof PrepareRequest>;

/** What comes with "it is yours". */
export const HandoffRequest = Type.Object({
  /**
   * Base64 of the blocks that the sealed filesystem does not use (freemap/sealed-map.ts). Null: everything
   * may be in use.
   */
  freeMap: Nullable(Type.String({ maxLength: 4 * Math.ceil(SEALED_MAP_BYTES_MAX / 3) })),
});
export type HandoffRequest = Static<typeof HandoffRequest>;

/**
 * Where the target is with a move. Only ever goes down this list (or to `forgotten` from the first three).
 */
export const TargetPhase = Type.Union([
  Type.Literal('preparing'),
  /** All that can be done before the stop is done. */
  Type.Literal('prepared'),
  /** The handoff has arrived, nothing is open for writing yet. */
  Type.Literal('handed-over'),
  /** The point of no return is passed. */
  Type.Literal('activated'),
  Type.Literal('booted'),
  Type.Literal('healthy'),
  /** All blocks are there; what came can be held against the source. */
  Type.Literal('hydrated'),
  /** Both workers have signed the receipt, or an operator did without it (`waivedAtMs`). */
  Type.Literal('proven'),
  /** Whole, and logged out of the source: the source may be released. */
  Type.Literal('released'),
  /** Never activated and never will be: the source may take the machine back. */
  Type.Literal('forgotten'),
]);
export type TargetPhase = Static<typeof TargetPhase>;

export const TargetStatus = Type.Object({
  runId: Type.String(),
  phase: TargetPhase,
  /** Why it waits or failed, null when it goes on. */
  reason: Nullable(Type.String()),
  nextAction: Nullable(Type.String()),
  /**
   * Of the error that the run ended with, or is being undone for. Left out: none, or a target of an earlier
   * version.
   */
  retry: Type.Optional(RetrySchema),
  /** Wall clock of the target, for the report only. */
  timesMs: Type.Object({
    /** When this status was made. */
    answered: Type.Number(),
    handedOver: Nullable(Type.Number()),
    /** Open for writing. */
    activated: Nullable(Type.Number()),
    /** Mounted. */
    attached: Nullable(Type.Number()),
    booted: Nullable(Type.Number()),
    healthy: Nullable(Type.Number()),
    hydrated: Nullable(Type.Number()),
  }),
  hydration: Nullable(
    Type.Object({
      state: Type.String(),
      totalBytes: Type.Integer(),
      presentBytes: Type.Integer(),
      exposedBytes: Type.Integer(),
      wireBytes: Type.Integer(),
      /** null: not counted. */
      blocksFetchedTwice: Nullable(Type.Integer()),
      bytesPerSecond: Type.Number(),
      etaMs: Nullable(Type.Number()),
    }),
  ),
  /** When an operator said that the target need not wait for the receipt, and it did not. */
  waivedAtMs: Nullable(Type.Number()),
  /**
   * The volume was opened there, and is not there any more: an operator destroyed it. The source may have the
   * machine back.
   */
  gone: Type.Optional(Type.Boolean()),
  /**
   * An operator had the target's run forgotten with the volume open there: it goes on when somebody says so
   * (`nextAction`). Left out: it was not, or a target of an earlier version.
   */
  standsStill: Type.Optional(Type.Boolean()),
  /**
   * Why the machine, which is on, is not healthy; as of the end of its start, and of the move. Left out: it
   * is, or it is not known.
   */
  unhealthy: Type.Optional(Type.String()),
});
export type TargetStatus = Static<typeof TargetStatus>;

/** The target's sums, and who signs for them. */
export const TargetFigures = Type.Object({ ...ProofFigures.properties, worker: ReceiptWorker });
export type TargetFigures = Static<typeof TargetFigures>;

/** What the machine has done with its volume since it was opened there, as long as blocks still arrive. */
export const GuestUse = Type.Object({
  /** At most: blocks of which it is not known who wrote them count. null: nobody keeps that. */
  writtenBytes: Nullable(Type.Integer()),
  /** Reads and writes that waited for a block of the source, and for how long the last of them did. */
  waits: Nullable(Type.Integer()),
  waitP99Ms: Nullable(Type.Number()),
});
export type GuestUse = Static<typeof GuestUse>;

/** State of a run of this worker's journal, as far as the other side of a move may know it. */
const RunState = Nullable(Type.Object({ state: Type.String(), step: Nullable(Type.String()) }));

const tag = 'worker to worker';
const parameter = Ref;
/** Questions of a proof read disks on the other side. */
const deadlineMs = PATIENCE.personProof.ms;

/**
 * What one worker asks of another during a move. Every question is idempotent; `runId` is that of the
 * source's run.
 */
export const PEER = {
  offer: {
    summary: 'Can you take this machine?',
    tag,
    method: 'POST',
    path: '/v1/rpc/offers',
    body: OfferRequest,
    since: { needs: 'needs' },
    reply: Offer,
    idempotent: true,
    caller: 'worker',
  },
  /** For plans: offers of all its machines, one after the other, are reckoned from the answer. */
  fit: {
    summary: 'Which of these machines can you take, and what room is there?',
    tag,
    method: 'POST',
    path: '/v1/rpc/fit',
    since: '0.2.0',
    body: FitRequest,
    reply: FitReply,
    idempotent: true,
    caller: 'worker',
  },
  /**
   * Starts the target's run, or answers for the one that is there. Rejects `MIGRATION_REFUSED` when the offer
   * no longer holds.
   */
  prepare: {
    summary: 'Do everything that can be done before the stop',
    tag,
    method: 'PUT',
    path: '/v1/rpc/moves/:runId',
    parameter,
    inBody: 'runId',
    body: PrepareRequest,
    since: { ailing: 'ailing' },
    reply: TargetStatus,
    caller: 'worker',
  },
  status: {
    summary: 'Where the target is',
    tag,
    method: 'GET',
    path: '/v1/rpc/moves/:runId',
    parameter,
    reply: TargetStatus,
    caller: 'worker',
  },
  /** Before the handoff; may be lost. */
  warm: {
    summary: 'What the machine will read first; a hint',
    tag,
    method: 'PUT',
    path: '/v1/rpc/moves/:runId/heat',
    parameter,
    body: HeatHint,
    caller: 'worker',
  },
  handoff: {
    summary: 'The volume is sealed; it is yours',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/handoff',
    parameter,
    body: HandoffRequest,
    reply: TargetStatus,
    idempotent: true,
    caller: 'worker',
  },
  /**
   * Answers `forgotten`, or a later phase when it is too late. A run that was never heard of is forgotten,
   * durably.
   */
  cancel: {
    summary: 'Forget it, unless it is too late; the answer says which',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/cancel',
    parameter,
    reply: TargetStatus,
    idempotent: true,
    caller: 'worker',
  },
  /** For a person; nothing of a move depends on it. */
  guest: {
    summary: 'What the machine has written there, and how long it waits for blocks of the source',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/guest',
    since: '0.2.0',
    ofVolume: 'arriving',
    parameter,
    body: Type.Object({}),
    reply: GuestUse,
    idempotent: true,
    caller: 'worker',
  },
  /** The questions of a proof (receipt/proof.ts), when the target is `hydrated`. */
  fetched: {
    summary: 'What came over the wire in this move, and whether the disk still has it',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/fetched',
    ofVolume: 'whole',
    parameter,
    body: ProofQuery,
    reply: FetchedPage,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  unfetched: {
    summary: 'What is here though it neither came nor was written',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/unfetched',
    ofVolume: 'whole',
    parameter,
    body: ProofQuery,
    reply: UnfetchedPage,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  mend: {
    summary: 'Fetch again what was wrong',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/mend',
    ofVolume: 'whole',
    parameter,
    body: MendRequest,
    reply: MendReply,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  compare: {
    summary: 'What the disk has in these ranges, where nobody can tell what came',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/compare',
    ofVolume: 'whole',
    parameter,
    body: CompareRequest,
    reply: CompareReply,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  figures: {
    summary: 'The sums of this side, for the receipt',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/figures',
    ofVolume: 'whole',
    parameter,
    body: FiguresQuery,
    reply: TargetFigures,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  /** The receipt with both signatures, which the target keeps; of the same move always the same. */
  countersign: {
    summary: 'Sign the receipt, if this side finds the same',
    tag,
    method: 'POST',
    path: '/v1/rpc/moves/:runId/countersign',
    parameter,
    body: Receipt,
    reply: Receipt,
    idempotent: true,
    deadlineMs,
    caller: 'worker',
  },
  receipt: {
    summary: 'The receipt of this move; null while there is none',
    tag,
    method: 'GET',
    path: '/v1/rpc/moves/:runId/receipt',
    parameter,
    reply: Nullable(Receipt),
    field: 'receipt',
    caller: 'worker',
  },
  volumeHeader: {
    summary:
      'LUKS2 header and key slots of an encrypted volume, base64; they open it with its passphrase only',
    tag,
    method: 'GET',
    path: '/v1/rpc/volumes/:volumeId/header',
    parameter,
    reply: Type.String(),
    field: 'header',
    caller: 'worker',
  },
  run: {
    summary: 'State of a run of this worker; null where it has none of that id',
    tag,
    method: 'GET',
    path: '/v1/rpc/runs/:runId',
    parameter,
    reply: RunState,
    field: 'run',
    caller: 'worker',
  },
} as const satisfies Conversation;

/** Names of the questions that go on to the volume of a move. */
export const VOLUME_QUESTIONS: readonly string[] = Object.entries(PEER as Conversation)
  .filter(([, endpoint]) => endpoint.ofVolume !== undefined)
  .map(([name]) => name);

/** Another worker, seen from here: `PeerClient` (api/peer-client.ts), or a model. */
export type Peer = Asks<typeof PEER> & { readonly name: string; readonly url: string };

/** What a worker answers its peers. */
export type PeerAnswers = Answers<typeof PEER>;
/** What it answers as the target of a move (migration/target-answers.ts). */
export type MoveAnswers = Omit<PeerAnswers, 'offer' | 'fit' | 'volumeHeader' | 'run'>;
/** What a proof asks. */
export type ProofAsks = Pick<Peer, ProofQuestion>;
type ProofQuestion = 'fetched' | 'unfetched' | 'mend' | 'compare' | 'figures' | 'countersign' | 'receipt';
