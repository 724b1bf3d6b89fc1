import type { MachineView } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import type { DrainView } from '../migration/drain.ts';
import type { Condition } from './condition.ts';

/** What is left on a worker that is to be empty. */
export function drainConditions(drain: DrainView): Condition[] {
  // What kept a machine from leaving keeps nobody from anything when it may stay.
  if (!drain.desired) return [];
  const holdsUp = `the drain of ${drain.worker}`;
  const machines = drain.machines.flatMap((machine): Condition[] => {
    const { name, state, reason, nextAction } = machine;
    if (reason === null) return [];
    return [
      {
        code: 'drain-machine-left',
        holdsUp,
        message: `${name} is ${state}: ${reason}`,
        sinceMs: drain.sinceMs,
        whoCanClearIt: state === 'waiting' ? 'an operator; it is tried again by itself' : 'godwit itself',
        nextAction: nextAction ?? `godwit why ${name}`,
      },
    ];
  });
  const volumes = drain.volumes.map(
    ({ name, reason, nextAction }): Condition => ({
      code: 'drain-volume-left',
      holdsUp,
      message: `the volume ${name} is here: ${reason}`,
      sinceMs: drain.sinceMs,
      whoCanClearIt: 'an operator',
      nextAction,
    }),
  );
  return [...machines, ...volumes];
}

/** Of one machine that the drain cannot move. */
export function drainOfMachine(
  machine: Pick<MachineView, 'id' | 'name'>,
  runs: readonly RunView[],
  drain: DrainView,
): Condition[] {
  const row = drain.machines.find(({ machineId }) => machineId === machine.id);
  // Of a move that is under way its run has said it.
  const isTold = runs.some(({ id, endedAtMs }) => id === row?.runId && endedAtMs === null);
  if (!drain.desired || row?.state !== 'waiting' || row.reason === null || isTold) return [];
  return [
    {
      code: 'drain-stuck',
      holdsUp: `machine ${machine.name}`,
      message: `the drain of ${drain.worker} cannot move it: ${row.reason}`,
      sinceMs: drain.sinceMs,
      whoCanClearIt: 'an operator; the drain tries again by itself',
      nextAction: row.nextAction ?? `godwit drain ${drain.worker} --dry-run`,
    },
  ];
}
