import { type Static, Type } from 'typebox';
import { OWN_NAME_PATTERN } from '../base/own-name.ts';
import { Nullable, OneOf } from '../base/schema.ts';
import { WireErrorSchema } from '../base/wire-error-schema.ts';
import { RunReply } from '../journal/run.ts';
import { GuestStatistics, HydrationStatus } from '../opening/status.ts';
import { VolumeRecord } from '../volume/record.ts';
import { TERM_PATTERN } from './exec-frames.ts';
import { MachineConfig } from './machine-config.ts';

/**
 * Requests and replies of the worker's HTTP API. One schema is the type, the validator and the page in
 * /openapi.json. Times are milliseconds since the Unix epoch (`…AtMs`, `sinceMs`) or durations (`…Ms`); sizes
 * are bytes.
 */

/**
 * What machines, volumes and workers are called: also a legal host name, and never like an id (ids have an
 * underscore).
 */
export const NAME_PATTERN = '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$';
export const Name = Type.String({ pattern: NAME_PATTERN });

/** A name or an id: one plain name. */
export const Ref = Type.String({ minLength: 1, maxLength: 128, pattern: OWN_NAME_PATTERN });

export const ErrorReply = Type.Object({ error: WireErrorSchema });

export const Empty = Type.Object({});

const Capacity = Type.Object({
  memoryBytes: Type.Integer(),
  cpus: Type.Number(),
  diskBytes: Type.Integer(),
});

export const WorkerView = Type.Object({
  name: Type.String(),
  url: Type.String(),
  version: Type.String(),
  pid: Type.Integer(),
  startedAtMs: Type.Number(),
  /** SHA-256 of the public key that this worker signs receipts with. */
  keyFingerprint: Type.String(),
  /** A draining (or drained) worker takes no machines. */
  draining: Type.Boolean(),
  capacity: Capacity,
  /** What offers may still promise. */
  free: Capacity,
  machines: Type.Integer(),
  volumes: Type.Integer(),
  peers: Type.Array(Type.Object({ name: Type.String(), url: Type.String() })),
});
export type WorkerView = Static<typeof WorkerView>;

export const MachineState = Type.Union([
  Type.Literal('starting'),
  Type.Literal('running'),
  Type.Literal('restarting'),
  Type.Literal('stopping'),
  Type.Literal('stopped'),
  Type.Literal('failed'),
  /** This worker is the source of a move that is under way. */
  Type.Literal('moving'),
  /** This worker is the target of a move and does not own the machine yet. */
  Type.Literal('incoming'),
  /** It runs elsewhere; this worker still serves the blocks that have not followed. */
  Type.Literal('moved'),
  /** Its shim is there and does not answer: what is known of it is what was last heard. */
  Type.Literal('silent'),
]);
export type MachineState = Static<typeof MachineState>;

export const MachineView = Type.Object({
  id: Type.String(),
  name: Type.String(),
  worker: Type.String(),
  state: MachineState,
  health: Type.Object({
    state: OneOf('none', 'starting', 'healthy', 'unhealthy'),
    sinceMs: Type.Number(),
    message: Type.String(),
  }),
  config: MachineConfig,
  volumeId: Nullable(Type.String()),
  createdAtMs: Type.Number(),
  startedAtMs: Nullable(Type.Number()),
  pid: Nullable(Type.Integer()),
  restarts: Type.Integer(),
  /** How many of its processes were killed for want of memory, since its shim began. Left out: none. */
  outOfMemoryKills: Type.Optional(Type.Integer()),
  move: Nullable(
    Type.Object({
      runId: Type.String(),
      phase: Type.String(),
      target: Nullable(Type.String()),
      /** Why the machine goes back to its source. Left out: the move goes on. */
      undoneBecause: Type.Optional(Type.String()),
    }),
  ),
  hydration: Nullable(HydrationStatus),
  /**
   * Its owner wants it up, and it is down because of godwit: since when (wall clock), and what it does then.
   * Left out: it is not.
   */
  down: Type.Optional(Type.Object({ sinceMs: Type.Number(), why: Type.String() })),
  /**
   * The data disk of its worker is full but for what is kept back: since when (wall clock), and how many of
   * its writes wait for room. 0: they fail (`--when-full error`). Left out: there is room.
   */
  ioPaused: Type.Optional(Type.Object({ sinceMs: Type.Number(), waiting: Type.Integer() })),
  /**
   * What is wrong with it, which is wanted to run: the end of a sentence that begins with "it". Left out:
   * nothing that is known.
   */
  ailment: Type.Optional(
    Type.Object({
      kind: OneOf('ended', 'restarting', 'unhealthy'),
      message: Type.String(),
      endsWell: Type.Optional(Type.Literal(true)),
    }),
  ),
  /** Since when its shim has not answered (wall clock). Left out: it answers. */
  silentSinceMs: Type.Optional(Type.Number()),
});
export type MachineView = Static<typeof MachineView>;

export const CreateMachineRequest = Type.Object({
  name: Name,
  config: MachineConfig,
  /** False: only put down, to be started later. */
  start: Type.Boolean({ default: true }),
});
export type CreateMachineRequest = Static<typeof CreateMachineRequest>;

export const ExecRequest = Type.Object({
  command: Type.Array(Type.String(), { minItems: 1, maxItems: 1024 }),
  timeoutMs: Type.Integer({ minimum: 1, maximum: 3_600_000, default: 60_000 }),
});
export type ExecRequest = Static<typeof ExecRequest>;

/** What a client of `godwit-exec/1` says first. */
export const ExecStart = Type.Object({
  command: Type.Array(Type.String({ pattern: '^[^\\0]*$' }), { minItems: 1, maxItems: 1024 }),
  /** Null: pipes instead of a terminal. */
  terminal: Nullable(
    Type.Object({
      columns: Type.Integer({ minimum: 1, maximum: 65_535 }),
      rows: Type.Integer({ minimum: 1, maximum: 65_535 }),
      /** TERM, where the machine's configuration does not say otherwise. */
      term: Type.String({ pattern: TERM_PATTERN }),
    }),
  ),
});
export type ExecStart = Static<typeof ExecStart>;

/** Output is cut at 1 MiB each. */
export const ExecReply = Type.Object({
  exitCode: Nullable(Type.Integer()),
  stdout: Type.String(),
  stderr: Type.String(),
  timedOut: Type.Boolean(),
});
export type ExecReply = Static<typeof ExecReply>;

export const LogsQuery = Type.Object({
  /** Lines from the end. */
  lines: Type.Integer({ minimum: 0, maximum: 1_000_000, default: 100 }),
  follow: Type.Boolean({ default: false }),
});
export type LogsQuery = Static<typeof LogsQuery>;

export const MoveRequest = Type.Object({
  /** Null: the best offer wins. */
  target: Type.Union([Name, Type.Null()], { default: null }),
  /**
   * The volume gets another key at the target; refused (`WORKER_NOT_ENCRYPTED`) for one that is not
   * encrypted.
   */
  rekey: Type.Optional(Type.Boolean()),
});
export type MoveRequest = Static<typeof MoveRequest>;

/** How a volume is served to clients of other systems. */
export const ServedView = Type.Object({
  /** URI without a secret; null in the moments before its server has told. */
  location: Nullable(Type.String()),
  writable: Type.Boolean(),
  connections: Type.Integer(),
});
export type ServedView = Static<typeof ServedView>;

export const VolumeView = Type.Object({
  id: Type.String(),
  name: Type.String(),
  worker: Type.String(),
  lengthBytes: Type.Integer(),
  /** Allocated bytes of the sparse file. */
  usedBytes: Type.Integer(),
  filesystem: VolumeRecord.properties.filesystem,
  encrypted: Type.Boolean(),
  generation: Type.Integer(),
  state: VolumeRecord.properties.state,
  createdAtMs: Type.Number(),
  machineId: Nullable(Type.String()),
  hydration: Nullable(HydrationStatus),
  /** Null while no volume server serves it. */
  guest: Nullable(GuestStatistics),
  /** To other systems, or to its machine as a socket; null otherwise. */
  served: Nullable(ServedView),
  destroyAfterMs: Nullable(Type.Number()),
  /**
   * The disk lost what was written to it, and everything is refused until an operator decides. Left out: not
   * that anybody knows.
   */
  dataLoss: Type.Optional(Type.Object({ atMs: Type.Number(), reason: Type.String(), file: Type.String() })),
});
export type VolumeView = Static<typeof VolumeView>;

export const CreateVolumeRequest = Type.Object({
  name: Name,
  /** Rounded up to whole blocks of 4 KiB. At least 16 MiB: no filesystem fits in less. */
  lengthBytes: Type.Integer({ minimum: 16 * 1024 * 1024, maximum: 2 ** 46 }),
  filesystem: Type.Union([Type.Literal('ext4'), Type.Literal('xfs'), Type.Literal('none')], {
    default: 'ext4',
  }),
  /** Left out: encrypted. A worker without keys refuses all but false (`VOLUME_NO_KEYS`). */
  encrypted: Type.Optional(Type.Boolean()),
  /** dm-crypt may open the encrypted volume too: takes more space, and all of it when it is trimmed. */
  dmCrypt: Type.Optional(Type.Boolean()),
});
export type CreateVolumeRequest = Static<typeof CreateVolumeRequest>;

export const ImportVolumeRequest = Type.Object({
  name: Name,
  /**
   * A disk of another system: `nbd://…`, `nbds://…`, `nbd+unix://…`,
   * `iscsi://[user%secret@]host[:port]/iqn/lun`, `iscsis://…?tls-certificates=FOLDER`, or the absolute path
   * of a raw image on the worker. May hold a secret: it is in no answer.
   */
  source: Type.String({ minLength: 1, maxLength: 8192 }),
  /** Left out: what the source is formatted with, as far as that is known here. */
  filesystem: Type.Optional(VolumeRecord.properties.filesystem),
  /** An imported volume is not encrypted. A worker with keys wants to hear that this is known. */
  encrypted: Type.Optional(Type.Literal(false)),
});
export type ImportVolumeRequest = Static<typeof ImportVolumeRequest>;

/** A secret for iSCSI clients: 12 characters at least (RFC 7143 section 9.2.1 asks for 96 bits). */
const Chap = Type.Object({
  user: Type.String({ pattern: '^[!-~]{1,64}$' }),
  secret: Type.String({ pattern: '^[!-~]{12,128}$' }),
});

export const ServeVolumeRequest = Type.Object({
  protocol: OneOf('nbd', 'iscsi'),
  /** `ADDRESS:PORT` of the worker, port 0 for any; for NBD also `unix:PATH`. */
  listen: Type.String({ minLength: 1, maxLength: 256 }),
  writable: Type.Boolean({ default: false }),
  /**
   * NBD on loopback without TLS: every process of the host may read it (and write, with `writable`), machines
   * with the network of the host too.
   */
  openToHost: Type.Optional(Type.Boolean()),
  /**
   * Of iSCSI: over TLS, for clients with a certificate of the worker's authority. NBD at an address is over
   * TLS anyway.
   */
  tls: Type.Optional(Type.Boolean()),
  /** Of iSCSI; left out: made up. */
  chap: Type.Optional(Chap),
});
export type ServeVolumeRequest = Static<typeof ServeVolumeRequest>;

export const RecoverVolumeRequest = Type.Object({
  /** Of the new volume. */
  name: Name,
});
export type RecoverVolumeRequest = Static<typeof RecoverVolumeRequest>;

export const AcceptLossRequest = Type.Object({
  /** The loss that is meant (`dataLoss.atMs`): one that came since is not accepted with it. */
  atMs: Type.Integer({ minimum: 0 }),
});
export type AcceptLossRequest = Static<typeof AcceptLossRequest>;

export const ServeReply = Type.Object({
  location: Type.String(),
  writable: Type.Boolean(),
  /** What iSCSI clients log in with. It is told here and nowhere else; null for NBD. */
  chap: Nullable(Chap),
});
export type ServeReply = Static<typeof ServeReply>;

/** From the stop signal to the first healthy answer, by phase; null where a phase is not over yet. */
export const Interruption = Type.Object({
  stop: Nullable(Type.Number()),
  seal: Nullable(Type.Number()),
  handoff: Nullable(Type.Number()),
  attach: Nullable(Type.Number()),
  boot: Nullable(Type.Number()),
  total: Nullable(Type.Number()),
});
export type Interruption = Static<typeof Interruption>;

export const DrainMachine = Type.Object({
  machineId: Type.String(),
  name: Type.String(),
  /** hydrating: runs on the target, bytes still follow. moved: whole there, the source is released. */
  state: OneOf('queued', 'moving', 'hydrating', 'moved', 'waiting', 'failed'),
  runId: Nullable(Type.String()),
  target: Nullable(Type.String()),
  /** Step of the run, null when none runs. */
  phase: Nullable(Type.String()),
  /** 0 to 1; null before the clone exists, and for a machine without a volume. */
  hydratedFraction: Nullable(Type.Number({ minimum: 0, maximum: 1 })),
  bytesPerSecond: Nullable(Type.Number()),
  etaMs: Nullable(Type.Number()),
  interruptionMs: Nullable(Interruption),
  wireBytes: Type.Integer(),
  volumeBytes: Type.Integer(),
  usedBytes: Type.Integer(),
  hydrationMs: Nullable(Type.Number()),
  /** null: not known, or not counted (kernel plane). */
  blocksFetchedTwice: Nullable(Type.Integer()),
  /** Data that did not have to travel, because the filesystem no longer used it; null until it is known. */
  bytesAvoided: Nullable(Type.Integer()),
  /** Root of the receipt, once both workers have signed it. */
  root: Nullable(Type.String()),
  /** When an operator did without the receipt, and there is none; the target's clock. */
  waivedAtMs: Nullable(Type.Number()),
  /** Why it waits or failed. */
  reason: Nullable(Type.String()),
  nextAction: Nullable(Type.String()),
});
export type DrainMachine = Static<typeof DrainMachine>;

/** A volume that no machine has: no drain takes it along. */
export const LeftVolume = Type.Object({
  volumeId: Type.String(),
  name: Type.String(),
  usedBytes: Type.Integer(),
  reason: Type.String(),
  nextAction: Type.String(),
});
export type LeftVolume = Static<typeof LeftVolume>;

export const DrainStatus = Type.Object({
  worker: Type.String(),
  desired: Type.Boolean(),
  /** When the drain was asked for; null: it was not. */
  sinceMs: Nullable(Type.Number()),
  /** When the last machine was gone; null: not yet. */
  endedAtMs: Nullable(Type.Number()),
  /** waiting: nothing moves, and what is left cannot go for the reasons that its machines give. */
  state: OneOf('idle', 'draining', 'drained', 'waiting'),
  /** All machines of this drain, the finished ones too, in the order of the plan. */
  machines: Type.Array(DrainMachine),
  /** While there are any, the worker is not drained. Left out by earlier versions. */
  volumes: Type.Optional(Type.Array(LeftVolume)),
});
export type DrainStatus = Static<typeof DrainStatus>;

export const DrainRequest = Type.Object({
  desired: Type.Literal(true),
  /** Only to this worker; null: wherever the best offer is. */
  target: Type.Union([Name, Type.Null()], { default: null }),
  /**
   * Encrypted volumes get another key at their target. Left out: as the drain that is on has it, else not.
   */
  rekey: Type.Optional(Type.Boolean()),
});
export type DrainRequest = Static<typeof DrainRequest>;

export const PlanQuery = Type.Object({ target: Type.Optional(Name) });
export type PlanQuery = Static<typeof PlanQuery>;

export const Plan = Type.Object({
  worker: Type.String(),
  steps: Type.Array(
    Type.Object({
      order: Type.Integer({ minimum: 1 }),
      machineId: Type.String(),
      name: Type.String(),
      /** Null: nobody takes it, for the reason given. */
      target: Nullable(Type.String()),
      reason: Type.String(),
      predictedInterruptionMs: Nullable(Type.Number()),
      /** Bytes that have to cross the wire. */
      bytes: Type.Integer(),
      predictedHydrationMs: Nullable(Type.Number()),
    }),
  ),
  totalBytes: Type.Integer(),
  /**
   * From the start of the drain to the release of the last source; null when some machine has nowhere to go.
   */
  predictedFinishMs: Nullable(Type.Number()),
  /** What an operator should know before it begins. Sentences. */
  warnings: Type.Array(Type.String()),
  /** What stays, because no machine has it. Left out by earlier versions. */
  volumes: Type.Optional(Type.Array(LeftVolume)),
});
export type Plan = Static<typeof Plan>;

export const RunsQuery = Type.Object({
  /** all: finished ones too, newest first. */
  state: Type.Union([Type.Literal('unfinished'), Type.Literal('all')], { default: 'unfinished' }),
  /** Only runs of this resource, e.g. `machine:m_…`. */
  resource: Type.Optional(Type.String({ maxLength: 200 })),
  limit: Type.Integer({ minimum: 1, maximum: 1000, default: 100 }),
});
export type RunsQuery = Static<typeof RunsQuery>;

export const ForceRunRequest = Type.Object({
  /**
   * undo: undo it now, also past its point of no return. forward: its step's deadline begins anew, and a run
   * that failed past its point of no return goes on. forget: it ends as it stands, and what it left behind is
   * for a person to clear. unproven: the target's run of a move that has all its blocks no longer waits for
   * the receipt, which a source that is lost can never sign.
   */
  how: OneOf('undo', 'forward', 'forget', 'unproven'),
  /**
   * For undo and forget of a move that was handed over, when its target cannot be asked: its host is lost for
   * good, and with it what the machine wrote there.
   */
  targetIsDestroyed: Type.Optional(Type.Boolean()),
});
export type ForceRunRequest = Static<typeof ForceRunRequest>;

export const Why = Type.Object({
  subject: Type.String(),
  state: Type.String(),
  /** Only what is left of it is here: whoever has it now knows more. Left out: it is here. */
  gone: Type.Optional(Type.Literal(true)),
  /** Empty: it waits for nothing. */
  conditions: Type.Array(
    Type.Object({
      /** One of docs/conditions.md. Left out, like `holdsUp`, by workers of earlier versions. */
      code: Type.Optional(Type.String()),
      /** What cannot go on, or not as it should: `machine db`. */
      holdsUp: Type.Optional(Type.String()),
      message: Type.String(),
      sinceMs: Nullable(Type.Number()),
      whoCanClearIt: Type.String(),
      /** A command. */
      nextAction: Type.String(),
    }),
  ),
  runs: Type.Array(RunReply),
});
export type Why = Static<typeof Why>;

/** Data of one server-sent event; its `event:` field is `kind`. */
export const ApiEvent = Type.Object({
  atMs: Type.Number(),
  worker: Type.String(),
  kind: OneOf('machine', 'volume', 'run', 'drain', 'worker'),
  /** docs/events.md. Left out by versions that had none. */
  code: Type.Optional(Type.String()),
  /** Id of what it is about. */
  subject: Type.String(),
  message: Type.String(),
  data: Type.Record(Type.String(), Type.Unknown()),
});
export type ApiEvent = Static<typeof ApiEvent>;
