import { dirname } from 'node:path';
import type { GodwitError } from '../base/errors.ts';
import type { MachineView } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import { DAEMON_HINT, killedText } from '../machine/ailment.ts';
import type { Beginning } from '../machine/manager.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { Condition } from './condition.ts';

type NoRoom = NonNullable<VolumeServerStatus['noRoom']>;

const RUNS = new Set<MachineView['state']>(['running', 'starting', 'restarting']);

/** Its shim hangs: whatever else is said of the machine is what was last heard. */
export function silentConditions(machine: MachineView, runtimeDir: string): Condition[] {
  if (machine.silentSinceMs === undefined) return [];
  return [
    {
      code: 'shim-silent',
      holdsUp: `machine ${machine.name}`,
      message:
        'the process that holds it (its shim) does not answer; the machine itself may run on, and its state is what was last heard',
      sinceMs: machine.silentSinceMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction: `Look at ${runtimeDir}/shim.log, and whether that process is stopped or waits for a disk. \`godwit machine restart ${machine.name}\` ends both, and starts the machine again.`,
    },
  ];
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
        code: 'map-full',
        holdsUp: machine,
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
      code: 'disk-full',
      holdsUp: machine,
      message: `the data disk of ${worker} is full (${free} MiB free, ${kept} MiB are kept back): ${
        noRoom.waiting === 0
          ? `what ${machine} writes anew waits for room, or fails (--when-full error)`
          : `what ${machine} writes anew waits for room (${noRoom.waiting} writes now), nothing of it is lost`
      }`,
      sinceMs: noRoom.sinceMs,
      whoCanClearIt: 'an operator; it goes on by itself when there is room',
      nextAction: `Free space there (godwit volume list --all shows retained copies), or move it away: godwit move ${machine}, or godwit drain ${worker}.`,
    },
  ];
}

/** What it writes fails, and nothing of godwit is the reason. */
export function readOnlyConditions(
  { id, name }: Pick<MachineView, 'id' | 'name'>,
  error: GodwitError | null,
): Condition[] {
  if (error === null) return [];
  return [
    {
      code: 'filesystem-read-only',
      holdsUp: `machine ${name}`,
      message: error.message,
      sinceMs: null,
      whoCanClearIt: 'its owner',
      nextAction: error.nextAction.replaceAll(id, name),
    },
  ];
}

/**
 * When it was killed at the end of its stop, whoever asked for that; wall clock. Null: it was not, or nobody
 * knows.
 */
export function killedAtMs(
  { config }: Pick<MachineView, 'config'>,
  endingSinceMs: number | null,
  runs: readonly RunView[],
): number | null {
  const moving = runs.find(
    (run) => run.endedAtMs === null && run.kind === MIGRATE_OUT && run.step === 'stop',
  );
  const sinceMs = endingSinceMs ?? (moving?.output as MigrateOutOutput | undefined)?.stopStartedAtMs;
  return sinceMs === undefined ? null : sinceMs + config.stop.timeoutMs;
}

/** `stuck`: what its processes, which were killed, wait for. */
export function stuckConditions(name: string, killedMs: number, stuck: GodwitError): Condition[] {
  const isFrozen = stuck.code === 'MACHINE_FS_FROZEN';
  return [
    {
      code: 'machine-stopping',
      holdsUp: `machine ${name}`,
      message: `it was killed, and does not end: ${stuck.message}`,
      sinceMs: killedMs,
      whoCanClearIt: isFrozen ? 'whoever froze it' : 'an operator of the worker',
      nextAction: stuck.nextAction,
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
      code: 'machine-stopping',
      holdsUp: `machine ${machine.name}`,
      message: `it was asked to stop (${signal}) and is killed ${timeoutMs / 1000} s after that${
        endingSinceMs !== null && desired === 'running' ? ', and started again' : ''
      }`,
      sinceMs: endingSinceMs,
      whoCanClearIt: 'time; its owner',
      nextAction: `godwit machine destroy ${machine.name} --force kills it now, and gives the machine up; its volume stays`,
    },
  ];
}

/** It is on its way up, which may take long: a mount waits for a source that is away. */
export function beginningConditions(beginning: Beginning | null, name: string): Condition[] {
  if (beginning === null) return [];
  return [
    {
      code: 'machine-starting',
      holdsUp: `machine ${name}`,
      message: `it is being started: it ${beginning.doing}`,
      sinceMs: beginning.sinceMs,
      whoCanClearIt: 'time, or whom what else is said here waits for',
      nextAction: 'Nothing to do while that is new; it says why when it fails, and is tried again by itself.',
    },
  ];
}

/** Why it is not simply running. */
export function stateConditions(machine: MachineView): Condition[] {
  const holdsUp = `machine ${machine.name}`;
  if (machine.state === 'failed') {
    return [
      {
        code: 'machine-failed',
        holdsUp,
        message: `its workload ended and is not started again: ${machine.health.message || 'see its log'}${killedText(machine.outOfMemoryKills)}`,
        sinceMs: machine.health.sinceMs,
        whoCanClearIt: 'its owner',
        nextAction: `godwit machine logs ${machine.name}; then godwit machine start ${machine.name}`,
      },
    ];
  }
  if (machine.ailment?.kind === 'restarting') {
    const { message, endsWell } = machine.ailment;
    const daemon = endsWell ? `${DAEMON_HINT} ` : '';
    return [
      {
        code: 'machine-restarting',
        holdsUp,
        message: `it ${message}`,
        sinceMs: null,
        whoCanClearIt: 'its owner',
        nextAction: `${daemon}godwit machine logs ${machine.name}`,
      },
    ];
  }
  if (machine.health.state === 'unhealthy') {
    return [
      {
        code: 'machine-unhealthy',
        holdsUp,
        message: `it runs but is not healthy: ${machine.health.message}`,
        sinceMs: machine.health.sinceMs,
        whoCanClearIt: 'its owner',
        nextAction: `godwit machine logs ${machine.name}`,
      },
    ];
  }
  return [];
}
