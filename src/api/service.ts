import type { HeatHint } from '../attach/server-spec.ts';
import type { RunView } from '../journal/run.ts';
import type { ExecSession, SessionOutput } from '../machine/exec-session.ts';
import type {
  HandoffRequest,
  Offer,
  OfferRequest,
  PrepareRequest,
  ProofAnswers,
  TargetStatus,
} from '../migration/peer.ts';
import type { Receipt } from '../receipt/envelope.ts';
import type {
  AcceptLossRequest,
  ApiEvent,
  CreateMachineRequest,
  CreateVolumeRequest,
  DrainRequest,
  DrainStatus,
  ExecReply,
  ExecRequest,
  ExecStart,
  ForceRunRequest,
  ImportVolumeRequest,
  LogsQuery,
  MachineView,
  MoveRequest,
  Plan,
  PlanQuery,
  RecoverVolumeRequest,
  RunStateReply,
  RunsQuery,
  ServeReply,
  ServeVolumeRequest,
  VolumeView,
  Why,
  WorkerView,
} from './schemas.ts';

/**
 * What a worker does for its HTTP API; src/worker implements it. `ref` is a name or an id, already known to be a short string.
 * Every method rejects with a GodwitError, whose code gives the HTTP status (status.ts); anything else is a 500.
 */
export interface WorkerService {
  worker(): Promise<WorkerView>;

  listMachines(): Promise<MachineView[]>;
  /** Answers once the machine is put down and (with `start`) its start has begun; its health is watched with showMachine. */
  createMachine(request: CreateMachineRequest): Promise<MachineView>;
  showMachine(ref: string): Promise<MachineView>;
  /** The machine must be stopped unless `force`. Its volume stays. */
  destroyMachine(ref: string, options: { force: boolean }): Promise<void>;
  startMachine(ref: string): Promise<MachineView>;
  /** Answers when no process of the machine is left. */
  stopMachine(ref: string): Promise<MachineView>;
  restartMachine(ref: string): Promise<MachineView>;
  execInMachine(ref: string, request: ExecRequest): Promise<ExecReply>;
  /** A command whose input and output the caller has in hand. */
  execStream(ref: string, request: ExecStart, onOutput: SessionOutput): Promise<ExecSession>;
  /** The iteration ends at the end of the log, or with `follow` when the signal aborts. */
  machineLogs(ref: string, query: LogsQuery, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>>;
  /** Starts a move and answers with its run. */
  moveMachine(ref: string, request: MoveRequest): Promise<RunView>;

  listVolumes(): Promise<VolumeView[]>;
  createVolume(request: CreateVolumeRequest): Promise<VolumeView>;
  /** A volume that is a clone of a disk of another system: usable when this answers, whole later. */
  importVolume(request: ImportVolumeRequest): Promise<VolumeView>;
  showVolume(ref: string): Promise<VolumeView>;
  /** A copy of the sealed volume that a move left here, as a volume of its own that is ready at generation 1. */
  recoverVolume(ref: string, request: RecoverVolumeRequest): Promise<VolumeView>;
  acceptLoss(ref: string, request: AcceptLossRequest): Promise<VolumeView>;
  /** To clients of other systems, until `stopServing`. Refused while a running machine has it. */
  serveVolume(ref: string, request: ServeVolumeRequest): Promise<ServeReply>;
  /** Idempotent. */
  stopServing(ref: string): Promise<void>;
  /** Refused while a machine has it, and without `force` while it is the way back of a move. `copies`: those that moves left of it, too. */
  destroyVolume(ref: string, options: { force: boolean; copies?: boolean }): Promise<void>;

  drainStatus(): Promise<DrainStatus>;
  /** Idempotent: asking again changes nothing (but a new `target`). */
  drain(request: DrainRequest): Promise<DrainStatus>;
  /** Stops before the next machine; a move under way is finished. Idempotent. */
  undrain(): Promise<DrainStatus>;
  plan(query: PlanQuery): Promise<Plan>;

  listRuns(query: RunsQuery): Promise<RunView[]>;
  showRun(id: string): Promise<RunView>;
  /** Undoes it, where that is still possible. */
  cancelRun(id: string): Promise<RunView>;
  /** Tries a step that waits for its next attempt now. */
  nudgeRun(id: string): Promise<RunView>;
  /** Overrides a run that nobody can help any more. The last resort: see docs/api.md. */
  forceRun(id: string, request: ForceRunRequest): Promise<RunView>;

  /** Of a move by its id, or of the latest move of a machine. */
  showReceipt(ref: string): Promise<Receipt>;

  /** `ref` may be a machine, a volume, a run, or this worker's own name. */
  why(ref: string): Promise<Why>;
  /** What happens from now on, until the signal aborts. */
  events(signal: AbortSignal): AsyncIterable<ApiEvent>;

  /** The calls of another worker (migration/peer.ts). */
  offer(request: OfferRequest): Promise<Offer>;
  prepareMove(request: PrepareRequest): Promise<TargetStatus>;
  moveStatus(runId: string): Promise<TargetStatus>;
  warmMove(runId: string, heat: HeatHint): Promise<void>;
  handoffMove(runId: string, request: HandoffRequest): Promise<TargetStatus>;
  cancelMove(runId: string): Promise<TargetStatus>;
  readonly proofs: ProofAnswers;
  /** LUKS2 header and key slots of an encrypted volume, base64. */
  volumeHeader(volumeId: string): Promise<string>;
  runState(runId: string): Promise<RunStateReply['run']>;
}
