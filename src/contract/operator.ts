import { Type } from 'typebox';
import { PATIENCE } from '../base/patience.ts';
import { RunReply, type RunView } from '../journal/run.ts';
import { Receipt } from '../receipt/envelope.ts';
import type { Answers, Conversation } from './endpoint.ts';
import { redact } from './redact.ts';
import {
  AcceptLossRequest,
  CreateMachineRequest,
  CreateVolumeRequest,
  DrainRequest,
  DrainStatus,
  ExecReply,
  ExecRequest,
  ForceRunRequest,
  ImportVolumeRequest,
  MachineView,
  MoveRequest,
  Plan,
  PlanQuery,
  RecoverVolumeRequest,
  Ref,
  RunsQuery,
  ServeReply,
  ServeVolumeRequest,
  VolumeView,
  Why,
  WorkerView,
} from './schemas.ts';

/** A run as it may be shown: without the secrets in its input and output. */
function publicRun(run: RunView): RunView {
  return { ...run, input: redact(run.input), output: redact(run.output) as Record<string, unknown> };
}

const parameter = Ref;
const OPERATION = { deadlineMs: PATIENCE.personOperation.ms, caller: 'operator' } as const;
const MACHINE = { tag: 'machines', parameter, reply: MachineView } as const;
const VOLUME = { tag: 'volumes', parameter, reply: VolumeView } as const;
const DRAIN = { tag: 'drain', caller: 'operator', reply: DrainStatus } as const;
const RUN = { tag: 'runs', parameter, caller: 'operator', reply: RunReply, shown: publicRun } as const;

/** Asked of the server itself: no worker need be behind it. */
export const HEALTH = {
  healthz: {
    summary: 'Answers as soon as the worker serves',
    tag: 'worker',
    method: 'GET',
    path: '/healthz',
    reply: Type.Object({ ok: Type.Boolean() }),
    caller: 'anybody',
  },
} as const satisfies Conversation;

/**
 * What a person asks of a worker: `ref` is a name or an id. Every answer rejects with a GodwitError, whose
 * code gives the HTTP status (api/status.ts); anything else is a 500. Streams (events, followed logs, a
 * terminal) are in api/routes.
 */
export const OPERATOR = {
  worker: {
    summary: 'Name, capacity and peers of this worker',
    tag: 'worker',
    method: 'GET',
    path: '/v1/worker',
    reply: WorkerView,
    caller: 'operator',
  },
  why: {
    summary: 'What a machine, a volume, a run or this worker waits for, and who can clear it',
    tag: 'worker',
    method: 'GET',
    path: '/v1/why/:ref',
    parameter,
    reply: Why,
    shown: (why: Why) => ({ ...why, runs: why.runs.map(publicRun) }),
    deadlineMs: PATIENCE.personWhy.ms,
    caller: 'operator',
  },

  listMachines: {
    summary: 'Machines of this worker',
    tag: 'machines',
    method: 'GET',
    path: '/v1/machines',
    reply: Type.Array(MachineView),
    field: 'machines',
    caller: 'operator',
  },
  /**
   * Answers once the machine is put down and (with `start`) its start has begun; its health is watched with
   * showMachine.
   */
  createMachine: {
    ...MACHINE,
    ...OPERATION,
    summary: 'Makes a machine and starts it',
    method: 'POST',
    path: '/v1/machines',
    body: CreateMachineRequest,
    status: 201,
  },
  showMachine: {
    ...MACHINE,
    summary: 'One machine',
    method: 'GET',
    path: '/v1/machines/:ref',
    caller: 'operator',
  },
  destroyMachine: {
    ...OPERATION,
    summary: 'Destroys a stopped machine (a running one with force); its volume stays',
    tag: 'machines',
    method: 'DELETE',
    path: '/v1/machines/:ref',
    parameter,
    query: Type.Object({ force: Type.Boolean({ default: false }) }),
  },
  startMachine: {
    ...MACHINE,
    ...OPERATION,
    summary: 'Starts a machine',
    method: 'POST',
    path: '/v1/machines/:ref/start',
  },
  /**
   * Answers when no process of the machine is left: whoever asks waits for longer than the machine's own stop
   * timeout.
   */
  stopMachine: {
    ...MACHINE,
    ...OPERATION,
    summary: 'Stops a machine: signal, timeout, kill',
    method: 'POST',
    path: '/v1/machines/:ref/stop',
  },
  restartMachine: {
    ...MACHINE,
    ...OPERATION,
    summary: 'Stops and starts a machine',
    method: 'POST',
    path: '/v1/machines/:ref/restart',
  },
  execInMachine: {
    summary: 'Runs a command inside a machine and answers with its output',
    tag: 'machines',
    method: 'POST',
    path: '/v1/machines/:ref/exec',
    parameter,
    body: ExecRequest,
    reply: ExecReply,
    deadlineMs: ({ timeoutMs }: ExecRequest) => timeoutMs + PATIENCE.execAnswer.ms,
    caller: 'operator',
  },
  /** It looks at the machine first, whose processes may hang. */
  moveMachine: {
    ...RUN,
    deadlineMs: PATIENCE.personOperation.ms,
    summary: 'Starts the move of a machine to another worker; the answer is the run to watch',
    tag: 'machines',
    method: 'POST',
    path: '/v1/machines/:ref/move',
    body: MoveRequest,
    given: { target: null },
    status: 202,
  },

  listVolumes: {
    summary: 'Volumes of this worker',
    tag: 'volumes',
    method: 'GET',
    path: '/v1/volumes',
    reply: Type.Array(VolumeView),
    field: 'volumes',
    caller: 'operator',
  },
  createVolume: {
    ...VOLUME,
    summary: 'Makes a sparse volume with a filesystem',
    method: 'POST',
    path: '/v1/volumes',
    body: CreateVolumeRequest,
    status: 201,
    deadlineMs: PATIENCE.personVolume.ms,
    caller: 'operator',
  },
  /** Usable when this answers, whole later. */
  importVolume: {
    ...VOLUME,
    ...OPERATION,
    summary: 'Makes a volume of a disk of another system: it can be used at once, and its blocks follow',
    method: 'POST',
    path: '/v1/volumes/import',
    body: ImportVolumeRequest,
    status: 201,
  },
  /** The new one is ready at generation 1. */
  recoverVolume: {
    ...VOLUME,
    ...OPERATION,
    summary: 'Makes the sealed volume that a move left here a volume of its own, under another id',
    method: 'POST',
    path: '/v1/volumes/:ref/recover',
    body: RecoverVolumeRequest,
    status: 201,
  },
  acceptLoss: {
    ...VOLUME,
    deadlineMs: PATIENCE.personOperation.ms,
    summary: 'Goes on with what the disk has of a volume that lost data, and that no machine runs on',
    method: 'POST',
    path: '/v1/volumes/:ref/accept-loss',
    body: AcceptLossRequest,
    caller: 'operator',
  },
  showVolume: {
    ...VOLUME,
    summary: 'One volume',
    method: 'GET',
    path: '/v1/volumes/:ref',
    caller: 'operator',
  },
  destroyVolume: {
    ...OPERATION,
    summary:
      'Destroys a volume that no machine has, and all that is on it (the kept copy of a move only with force)',
    tag: 'volumes',
    method: 'DELETE',
    path: '/v1/volumes/:ref',
    parameter,
    query: Type.Object({
      force: Type.Boolean({ default: false }),
      /** The sealed copies that moves left of it here, too. */
      copies: Type.Boolean({ default: false }),
    }),
    since: { copies: 'copies' },
  },
  /** Refused while a running machine has it. */
  serveVolume: {
    ...OPERATION,
    summary: 'Serves a volume that no running machine has to any NBD or iSCSI client, until it is ended',
    tag: 'volumes',
    method: 'POST',
    path: '/v1/volumes/:ref/serve',
    parameter,
    body: ServeVolumeRequest,
    reply: ServeReply,
  },
  stopServing: {
    ...OPERATION,
    summary: 'Ends it: clients are dropped, and what they wrote is durable',
    tag: 'volumes',
    method: 'DELETE',
    path: '/v1/volumes/:ref/serve',
    parameter,
  },

  drainStatus: {
    ...DRAIN,
    summary: 'Where the drain of this worker is',
    method: 'GET',
    path: '/v1/drain',
  },
  drain: {
    ...DRAIN,
    summary: 'Every machine shall leave this worker, and none shall come; asking again changes nothing',
    method: 'PUT',
    path: '/v1/drain',
    body: DrainRequest,
    given: { desired: true, target: null },
  },
  undrain: {
    ...DRAIN,
    summary: 'Ends the drain: stops before the next machine, and the worker takes machines again',
    method: 'DELETE',
    path: '/v1/drain',
  },
  /** It asks all other workers, and waits for one that hangs. */
  plan: {
    ...OPERATION,
    summary: 'What a drain would do now: order, targets, interruption, bytes, finish',
    tag: 'drain',
    method: 'GET',
    path: '/v1/plan',
    query: PlanQuery,
    reply: Plan,
  },

  listRuns: {
    ...RUN,
    summary: 'Runs of the journal, newest first',
    method: 'GET',
    path: '/v1/runs',
    query: RunsQuery,
    reply: Type.Array(RunReply),
    field: 'runs',
    shown: (runs: RunView[]) => runs.map(publicRun),
  },
  showRun: { ...RUN, summary: 'One run', method: 'GET', path: '/v1/runs/:id' },
  cancelRun: {
    ...RUN,
    summary: 'Undoes a run, where that is still possible',
    method: 'POST',
    path: '/v1/runs/:id/cancel',
  },
  nudgeRun: {
    ...RUN,
    summary: 'Tries a step that waits for its next attempt now',
    method: 'POST',
    path: '/v1/runs/:id/nudge',
  },
  /** The last resort: docs/api.md. */
  forceRun: {
    ...RUN,
    // It asks the other worker, and waits for what the run leaves to be given back.
    deadlineMs: PATIENCE.personOperation.ms,
    summary: 'Overrides a run that nobody can help any more: undo it, let it try again, or forget it',
    method: 'POST',
    path: '/v1/runs/:id/force',
    body: ForceRunRequest,
    since: { targetIsDestroyed: 'target-is-destroyed' },
  },
  showReceipt: {
    summary: 'The receipt of a move (by its run) or of the latest move of a machine, signed by both workers',
    tag: 'runs',
    method: 'GET',
    path: '/v1/receipts/:ref',
    parameter,
    reply: Receipt,
    caller: 'operator',
  },
} as const satisfies Conversation;

/** What a worker answers. */
export type OperatorAnswers = Answers<typeof OPERATOR>;
