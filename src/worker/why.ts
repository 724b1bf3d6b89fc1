import { dirname } from 'node:path';
import type { WireError } from '../base/errors.ts';
import { progressText, type Question, questionText, unanswered } from '../base/progress.ts';
import type { MachineView, VolumeView, Why } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import { DAEMON_HINT } from '../machine/ailment.ts';
import type { Beginning } from '../machine/manager.ts';
import type { DrainView } from '../migration/drain.ts';
import { MIGRATE_IN } from '../migration/migrate-in.ts';
import { MIGRATE_OUT } from '../migration/migrate-out.ts';
import { isBefore, mayHavePassed, stepOf } from '../migration/move-watch.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { DiskTrouble } from './disk-look.ts';
import type { Trouble } from './recovery.ts';
import type { ServerTrouble } from './volume-server-looks.ts';

const TRANSPORTS = { tls: 'over TLS', tcp: 'in the clear', foreign: 'from a disk of another system' };

type NoRoom = NonNullable<VolumeServerStatus['noRoom']>;
type Condition = Why['conditions'][number];

const RUNS = new Set<MachineView['state']>(['running', 'starting', 'restarting']);

/**
 * Why a run is not over: its own reason, whom it has asked in vain so far, or that it works, and how fast.
 */
export function runConditions(run: RunView, nowMs: number): Condition[] {
  if (run.endedAtMs !== null && run.state !== 'failed') return [];
  if (run.state === 'failed') {
    return [
      {
        message: run.error?.message ?? 'the run failed',
        sinceMs: run.endedAtMs,
        whoCanClearIt: 'an operator',
        nextAction: run.error?.nextAction ?? `godwit runs show ${run.id}`,
      },
    ];
  }
  const pace = run.progress ? progressText(run.progress, nowMs) : null;
  const silent = unanswered(run.asks, nowMs);
  if (!run.reason) {
    if (silent) return [silentCondition(run, silent, pace)];
    const { startedAtMs = null } = run.steps.find(({ name }) => name === run.step) ?? {};
    return [
      {
        message: `${run.kind} is in step ${run.step ?? '?'} (${pace ?? 'nothing has advanced in it yet'})`,
        sinceMs: startedAtMs ?? run.createdAtMs,
        whoCanClearIt: waitsForHandoff(run) ?? 'time: it goes on',
        nextAction:
          pace === null
            ? 'Nothing to do yet; it says why when it gives up.'
            : 'Nothing to do while that advances.',
      },
    ];
  }
  return [
    {
      message: `${run.kind} is in step ${run.step ?? '?'}: ${run.reason.message}${pace === null ? '' : ` (${pace})`}`,
      sinceMs: run.reason.sinceMs,
      whoCanClearIt: whoClears(run),
      nextAction: run.reason.nextAction,
    },
    ...(silent ? [silentCondition(run, silent, pace)] : []),
  ];
}

/** All is ready here, and the machine still runs there. Null: it is in another step. */
function waitsForHandoff(run: RunView): string | null {
  const { sourceWorker } = run.input as { sourceWorker?: string };
  return run.kind === MIGRATE_IN && stepOf(run)?.reaches === 'handed-over' && sourceWorker
    ? `${sourceWorker}, which hands the machine over when it has stopped there`
    : null;
}

/** Somebody has not answered, and the run has no word for that yet. */
function silentCondition(run: RunView, question: Question, pace: string | null): Condition {
  const { who, sinceMs, livesAtMs } = question;
  const meanwhile =
    run.kind === MIGRATE_OUT && isBefore(run, 'interruption')
      ? 'The machine runs on here meanwhile; if that lasts, the move is undone by itself.'
      : 'All goes on by itself when it answers.';
  const look =
    livesAtMs === undefined
      ? `Look whether ${who} runs, or hangs (its process may be stopped, or its disk hang).`
      : 'Nothing to do yet: it says why when it gives that up.';
  return {
    message: `${run.kind} is in step ${run.step ?? '?'}: it ${questionText(question)}${pace === null ? '' : ` (${pace})`}`,
    sinceMs,
    whoCanClearIt: who,
    nextAction: `${look} ${meanwhile}`,
  };
}

function whoClears(run: RunView): string {
  if (run.state === 'undoing') return 'this worker, which tries again by itself';
  // Two workers have looked twice: it is the hardware's turn.
  const disputed = run.output.disputed as WireError | null | undefined;
  if (disputed)
    return disputed.code === 'MIGRATION_CONTENT_UNEXPLAINED'
      ? 'an operator'
      : 'an operator; it is tried again by itself';
  const isOut = run.kind === MIGRATE_OUT;
  const peer = isOut ? run.output.target : (run.input as { sourceWorker?: string }).sourceWorker;
  const other = typeof peer === 'string' ? peer : isOut ? 'the target' : 'the source';
  // From the first handoff on only the target knows, or acts.
  if (isOut && mayHavePassed(run)) return other;
  switch (stepOf(run)?.waitsFor) {
    case 'peer':
      return other;
    case 'owner':
      return isOut ? 'its owner; time: it is killed then' : 'its owner';
    case 'this-worker':
      return 'this worker, which tries again by itself; an operator of it';
    default:
      return 'godwit itself';
  }
}

/** Why a machine is not simply running and whole. */
export function machineConditions(
  machine: MachineView,
  runs: readonly RunView[],
  drain: DrainView,
  nowMs: number,
): Condition[] {
  const conditions = runs.flatMap((run) => runConditions(run, nowMs));
  const row = drain.machines.find(({ machineId }) => machineId === machine.id);
  // Of a move that is under way its run has said it.
  const isTold = runs.some(({ id, endedAtMs }) => id === row?.runId && endedAtMs === null);
  if (drain.desired && row?.state === 'waiting' && row.reason !== null && !isTold) {
    conditions.push({
      message: `the drain of ${drain.worker} cannot move it: ${row.reason}`,
      sinceMs: drain.sinceMs,
      whoCanClearIt: 'an operator; the drain tries again by itself',
      nextAction: row.nextAction ?? `godwit drain ${drain.worker} --dry-run`,
    });
  }
  if (machine.state === 'failed') {
    conditions.push({
      message: `its workload ended and is not started again: ${machine.health.message || 'see its log'}`,
      sinceMs: machine.health.sinceMs,
      whoCanClearIt: 'its owner',
      nextAction: `godwit machine logs ${machine.name}; then godwit machine start ${machine.name}`,
    });
  } else if (machine.ailment?.kind === 'restarting') {
    const { message, endsWell } = machine.ailment;
    const daemon = endsWell ? `${DAEMON_HINT} ` : '';
    conditions.push({
      message: `it ${message}`,
      sinceMs: null,
      whoCanClearIt: 'its owner',
      nextAction: `${daemon}godwit machine logs ${machine.name}`,
    });
  } else if (machine.health.state === 'unhealthy') {
    conditions.push({
      message: `it runs but is not healthy: ${machine.health.message}`,
      sinceMs: machine.health.sinceMs,
      whoCanClearIt: 'its owner',
      nextAction: `godwit machine logs ${machine.name}`,
    });
  }
  return [...conditions, ...hydrationConditions(machine.hydration, nowMs)];
}

/** What is left on a worker that is to be empty. */
export function drainConditions(drain: DrainView): Condition[] {
  const machines = drain.machines.flatMap((machine): Condition[] => {
    const { name, state, reason, nextAction } = machine;
    if (reason === null) return [];
    return [
      {
        message: `${name} is ${state}: ${reason}`,
        sinceMs: drain.sinceMs,
        whoCanClearIt: state === 'waiting' ? 'an operator; it is tried again by itself' : 'godwit itself',
        nextAction: nextAction ?? `godwit why ${name}`,
      },
    ];
  });
  const volumes = drain.volumes.map(
    ({ name, reason, nextAction }): Condition => ({
      message: `the volume ${name} is here: ${reason}`,
      sinceMs: drain.sinceMs,
      whoCanClearIt: 'an operator',
      nextAction,
    }),
  );
  return [...machines, ...volumes];
}

/**
 * Its disk is full: what it writes waits, or fails, and that is nobody's fault who looks at the machine
 * alone.
 */
export function noRoomConditions(machine: string, noRoom: NoRoom | undefined, worker: string): Condition[] {
  if (!noRoom) return [];
  if (noRoom.map !== undefined) {
    return [
      {
        message: `there is no memory left on ${worker} for the map of ${machine}'s clone (${noRoom.map}): what it writes to blocks that are not here yet waits (${noRoom.waiting} writes now), nothing of it is lost`,
        sinceMs: noRoom.sinceMs,
        whoCanClearIt: 'an operator; it goes on by itself when there is room',
        nextAction: `See who fills it: df ${dirname(noRoom.map)}; remove what nobody needs there (what is named godwit-… is needed), or make it larger (mount -o remount,size=…).`,
      },
    ];
  }
  const [free, kept] = [noRoom.freeBytes, noRoom.reserveBytes].map((bytes) => Math.ceil(bytes / 2 ** 20));
  return [
    {
      message: `the data disk of ${worker} is full (${free} MiB free, ${kept} MiB are kept back): ${
        noRoom.waiting === 0
          ? `what ${machine} writes anew fails`
          : `what ${machine} writes anew waits for room (${noRoom.waiting} writes now), nothing of it is lost`
      }`,
      sinceMs: noRoom.sinceMs,
      whoCanClearIt: 'an operator; it goes on by itself when there is room',
      nextAction: `Free space there (godwit volume list --all shows retained copies), or move it away: godwit move ${machine}, or godwit drain ${worker}.`,
    },
  ];
}

/** Whatever else is the matter of what is on it: nothing of it can be changed. */
export function diskConditions(trouble: DiskTrouble | null, worker: string): Condition[] {
  if (trouble === null) return [];
  return [
    {
      message: `the data disk of ${worker} cannot be written: ${trouble.message}`,
      sinceMs: trouble.sinceMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction:
        'Look at it (dmesg: a filesystem that has met an error is often read-only from then on), mend and remount it, and restart the worker; then start what has ended meanwhile.',
    },
  ];
}

/** It is on its way up, which may take long: a mount waits for a source that is away. */
export function beginningConditions(beginning: Beginning | null): Condition[] {
  if (beginning === null) return [];
  return [
    {
      message: `it is being started: it ${beginning.doing}`,
      sinceMs: beginning.sinceMs,
      whoCanClearIt: 'time, or whom what else is said here waits for',
      nextAction: 'Nothing to do while that is new; it says why when it fails, and is tried again by itself.',
    },
  ];
}

/** It should run, and could not be started. */
export function recoveryConditions(
  trouble: Trouble | null,
  desired: 'running' | 'stopped' = 'running',
): Condition[] {
  // A shim that hangs is told of by itself (`silentConditions`): its machine may well run.
  if (trouble === null || trouble.error.code === 'RPC_TIMEOUT') return [];
  const { error, sinceMs, attempts } = trouble;
  return [
    {
      message: `it could not be ${desired === 'running' ? 'started' : 'stopped'} (${attempts} ${attempts === 1 ? 'try' : 'tries'}; it is tried again by itself): ${error.message}`,
      sinceMs,
      whoCanClearIt: 'an operator; it is tried again by itself',
      nextAction: error.nextAction,
    },
  ];
}

/** What its owner has to know before everything else. */
export function downConditions({ down, name, move }: MachineView): Condition[] {
  if (down === undefined) return [];
  return [
    {
      message: `it is down because of godwit: it ${down.why}`,
      sinceMs: down.sinceMs,
      whoCanClearIt:
        move === null ? 'an operator; it is tried again by itself' : 'what its move waits for, below',
      nextAction: move === null ? `godwit machine show ${name}` : `godwit runs show ${move.runId}`,
    },
  ];
}

/** Its shim hangs: whatever else is said of the machine is what was last heard. */
export function silentConditions(machine: MachineView, runtimeDir: string): Condition[] {
  if (machine.silentSinceMs === undefined) return [];
  return [
    {
      message:
        'the process that holds it (its shim) does not answer; the machine itself may run on, and its state is what was last heard',
      sinceMs: machine.silentSinceMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction: `Look at ${runtimeDir}/shim.log, and whether that process is stopped or waits for a disk. \`godwit machine restart ${machine.name}\` ends both, and starts the machine again.`,
    },
  ];
}

/**
 * Nobody answers what it reads and writes: it waits, without an error. `runtimeDir`: of the shim. `who`:
 * the machine, or the served volume.
 */
export function serverConditions(
  trouble: ServerTrouble | null,
  runtimeDir: string,
  who: string,
): Condition[] {
  if (trouble === null) return [];
  const { error, sinceMs, serverPid } = trouble;
  const base = { sinceMs, whoCanClearIt: 'an operator of the worker' };
  if (error.code === 'RPC_TIMEOUT') {
    const process = serverPid === null ? 'its process' : `its process (pid ${serverPid})`;
    return [
      {
        ...base,
        message: `the volume server of ${who} does not answer: what is read and written waits, and nothing of it is lost`,
        nextAction: `Look whether ${process} is stopped, or waits for a disk, and at ${runtimeDir}/volume-server.log. It may be killed (SIGKILL): another one is started, and goes on with what waits.`,
      },
    ];
  }
  const { lastError } = error.values;
  return [
    {
      ...base,
      message: `the volume server of ${who} has ended, and does not come back${lastError ? `: ${lastError}` : ''}; what is read and written waits`,
      nextAction: `It is tried again by itself; ${runtimeDir}/volume-server.log says why it ended.`,
    },
  ];
}

/** A volume that is served, whose shim hangs. `silentForMs`: null, it answers. */
export function servingConditions(
  silentForMs: number | null,
  runtimeDir: string,
  name: string,
  nowMs: number,
): Condition[] {
  if (silentForMs === null) return [];
  return [
    {
      message: `the process that serves ${name} (its shim) does not answer; its clients may go on`,
      sinceMs: nowMs - silentForMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction: `Look at ${runtimeDir}/shim.log, and whether that process is stopped or waits for a disk.`,
    },
  ];
}

/** Its owner wants it stopped, and it still runs. */
export function stoppingConditions(
  machine: MachineView,
  desired: 'running' | 'stopped',
  endingSinceMs: number | null,
): Condition[] {
  const asked = desired === 'stopped' && machine.move === null && RUNS.has(machine.state);
  if (endingSinceMs === null && !asked) return [];
  const { signal, timeoutMs } = machine.config.stop;
  return [
    {
      message: `it was asked to stop (${signal}) and is killed ${timeoutMs / 1000} s after that${
        endingSinceMs !== null && desired === 'running' ? ', and started again' : ''
      }`,
      sinceMs: endingSinceMs,
      whoCanClearIt: 'time; its owner',
      nextAction: `godwit machine destroy ${machine.name} --force kills it now, and gives the machine up; its volume stays`,
    },
  ];
}

/** Why a volume is not whole. */
export function volumeConditions(volume: VolumeView, runs: readonly RunView[], nowMs: number): Condition[] {
  const conditions = runs.flatMap((run) => runConditions(run, nowMs));
  if (volume.state === 'retained') {
    conditions.push({
      message: 'it has moved; this sealed copy is kept as a way back',
      sinceMs: null,
      whoCanClearIt: 'time: it is destroyed when its retention is over',
      nextAction: `godwit volume recover ${volume.id} --as NAME to have it back; godwit volume destroy ${volume.id} --force to give it up now`,
    });
  }
  return [...dataLossConditions(volume), ...conditions, ...hydrationConditions(volume.hydration, nowMs)];
}

/** Whatever else is the matter: nothing of the volume can be read or written. */
export function dataLossConditions({ id, dataLoss }: Pick<VolumeView, 'id' | 'dataLoss'>): Condition[] {
  if (!dataLoss) return [];
  return [
    {
      message: `the disk of this host lost what was written to the volume (${dataLoss.reason}); all its reads and writes fail, and it cannot move`,
      sinceMs: dataLoss.atMs,
      whoCanClearIt: 'an operator',
      nextAction: `Restore it from a backup or its retained source; or, to go on with what the disk has: stop the machine, godwit volume accept-loss ${id} --yes, start it`,
    },
  ];
}

/** What an operator sees as more bytes over the wire than the volume has. */
function missesOf({ missesKept }: { missesKept: boolean }): string {
  return missesKept
    ? ''
    : '; what is read of them meanwhile is not kept (kernel plane), so it comes again, and misses are not counted';
}

function hydrationConditions(hydration: VolumeView['hydration'], nowMs: number): Condition[] {
  if (!hydration || hydration.exposedBytes === 0) return [];
  const mebibytes = Math.ceil(hydration.exposedBytes / 2 ** 20);
  if (hydration.state === 'source-lost') {
    return [
      {
        message: `the source of its volume does not answer${hydration.lastError ? ` (${hydration.lastError})` : ''}; ${mebibytes} MiB are only there, and reads of them wait`,
        sinceMs: hydration.sourceLostForMs === null ? null : nowMs - hydration.sourceLostForMs,
        whoCanClearIt: hydration.transport === 'foreign' ? 'whoever serves the source' : 'the source worker',
        nextAction: `Bring ${hydration.transport === 'foreign' ? 'it' : 'the source worker'} and its network back: everything goes on by itself.`,
      },
    ];
  }
  return [
    {
      message:
        hydration.state === 'paused'
          ? `hydration is paused${hydration.lastError ? `: ${hydration.lastError}` : ''}; ${mebibytes} MiB are only at the source`
          : `${mebibytes} MiB of its volume are still only at the source, and come ${TRANSPORTS[hydration.transport]}${missesOf(hydration)}${hydration.lastError ? `; the last that went wrong: ${hydration.lastError}` : ''}`,
      sinceMs: null,
      whoCanClearIt: whoBrings(hydration),
      nextAction: hydration.state === 'paused' ? afterPause(hydration.lastError) : 'godwit top',
    },
  ];
}

function whoBrings({ state, lastError }: NonNullable<VolumeView['hydration']>): string {
  if (state !== 'paused') return 'time: hydration brings them';
  return lastError === null ? 'its move, which lets it begin' : 'an operator';
}

/**
 * A copy that is paused without an error waits for a move to let it go on, and then for its worker's disk.
 */
function afterPause(lastError: string | null): string {
  if (lastError === null)
    return 'Nothing to do while its move goes on; make room on this worker if its disk is full.';
  return 'Look at the error: it goes on by itself when that is over.';
}
