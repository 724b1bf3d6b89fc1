import type { ApiEvent } from '../contract/schemas.ts';

/** What a worker tells of as it happens, by code: docs/events.md is made from this table. */
export const EVENTS = {
  'machine-created': row('machine', 'a machine was made', []),
  'machine-not-made': row('machine', 'a machine could not be started the first time, and was destroyed', []),
  'machine-restarted': row('machine', 'an operator restarted a machine', ['interruptionMs']),
  'machine-destroyed': row('machine', 'a machine was destroyed', []),
  'machine-workload': row('machine', 'the workload of a machine began, ended, or changed its health', [
    'state',
    'health',
    'exitCode',
    'exitSignal',
  ]),
  'machine-volume': row('machine', 'the volume server of a machine tells something', ['event']),
  'machine-shim-closed': row('machine', 'a shim has ended, or does not answer any more', []),
  'machine-down': row('machine', 'a machine that its owner wants up goes down because of godwit', [
    'down',
    'sinceMs',
    'runId',
  ]),
  'machine-up': row('machine', 'and it is up again', ['down', 'forMs', 'runId']),
  'volume-created': row('volume', 'a volume was made', []),
  'volume-importing': row('volume', 'a volume begins to be imported', []),
  'volume-imported': row('volume', 'and it is whole', []),
  'volume-recovered': row('volume', 'a copy that a move had left is a volume again', []),
  'volume-loss-accepted': row('volume', 'an operator goes on with what the disk has after a loss', []),
  'volume-served': row('volume', 'a volume is served to other systems', []),
  'volume-not-served': row('volume', 'and it is not any more', []),
  'volume-destroyed': row('volume', 'a volume was destroyed', []),
  'volume-copies-destroyed': row('volume', 'what moves had left of a volume was destroyed', ['copies']),
  'run-changed': row('run', 'a run began, went on, waits, or ended', [
    'resource',
    'state',
    'step',
    'moveId',
    'traceId',
  ]),
  'drain-requested': row('drain', 'a worker is to be empty', []),
  'drain-ended': row('drain', 'and it is', []),
  'drain-withdrawn': row('drain', 'a worker takes machines again', []),
  'worker-exhausted': row('worker', 'the API has no room for more connections', [
    'evicted',
    'refused',
    'connections',
    'connectionsMax',
    'busiestAddress',
  ]),
} as const;
export type EventCode = keyof typeof EVENTS;
/** What an event may say beside its sentence. */
export type EventData<Code extends EventCode> = {
  [Field in (typeof EVENTS)[Code]['data'][number]]?: unknown;
};

function row<Kind extends ApiEvent['kind'], const Data extends readonly string[]>(
  kind: Kind,
  what: string,
  data: Data,
) {
  return { kind, what, data };
}
