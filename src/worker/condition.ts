import type { MachineView, VolumeView, Why } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineShow } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import type { DrainView } from '../migration/drain.ts';
import type { VolumeRecord } from '../volume/index.ts';

/** Something that a worker, a machine, a volume or a run waits for, or suffers from. */
export type Condition = Why['conditions'][number] & { code: ConditionCode; holdsUp: string };

/** Every code, and what is the matter then. */
export const CONDITIONS = {
  'machine-down': 'a machine that its owner wants up is down because of godwit',
  'disk-unwritable': 'the data disk of the worker cannot be written',
  'disk-silent': 'the data disk of the worker does not answer',
  'runtime-full': 'there is no room for the files of the processes that hold machines',
  'volume-data-lost': 'the disk lost what was written to a volume',
  'filesystem-read-only':
    'the kernel has made the filesystem of a machine read-only, because of an error in it',
  'shim-silent': 'the process that holds a machine, a served volume or an export does not answer',
  'volume-server-silent': 'a volume server does not answer',
  'volume-server-ended': 'a volume server has ended, and does not come back',
  'disk-full': 'the data disk is full but for its reserve',
  'map-full': 'there is no memory for the map of a clone',
  'machine-stopping': 'a machine was asked to stop, and still runs',
  'machine-starting': 'a machine is being started',
  'machine-not-started': 'a machine that should run could not be started',
  'machine-not-stopped': 'a machine that should be stopped could not be stopped',
  'run-failed': 'a run ended where it cannot be undone',
  'run-waits': 'a run says why it waits',
  'run-unanswered': 'somebody whom a run asked has not answered',
  'run-goes-on': 'a run is under way',
  'drain-stuck': 'the drain cannot move a machine',
  'drain-machine-left': 'a machine is still on a worker that is to be empty',
  'drain-volume-left': 'a volume that no machine has is on a worker that is to be empty',
  'machine-failed': 'the workload of a machine ended, and is not started again',
  'machine-restarting': 'the workload of a machine ends again and again',
  'machine-unhealthy': 'a machine runs and is not healthy',
  'volume-retained': 'a volume is the sealed copy that a move left',
  'source-lost': 'the source of a volume that is not whole does not answer, or cannot read what is asked for',
  'hydration-paused': 'the blocks of a volume do not come',
  hydrating: 'the blocks of a volume come',
} as const;
export type ConditionCode = keyof typeof CONDITIONS;

/** In this order they are told: first what is true whatever else is said. */
export const CONDITION_ORDER = [
  ...(['down', 'disk', 'loss', 'silent', 'server', 'room', 'export', 'stopping'] as const),
  ...(['beginning', 'recovery', 'runs', 'drain', 'state', 'hydration'] as const),
];
type ConditionKind = (typeof CONDITION_ORDER)[number];

/** What somebody asks about. `runs`: of it, the open ones or the last. */
export type About =
  | { kind: 'worker'; drain: DrainView }
  | { kind: 'run'; runs: readonly RunView[] }
  | {
      kind: 'machine';
      record: MachineRecord;
      show: MachineShow;
      view: MachineView;
      runs: readonly RunView[];
      drain: DrainView;
    }
  | { kind: 'volume'; record: VolumeRecord; view: VolumeView; runs: readonly RunView[] };

type Tell<Parts, Made> = (
  made: Made,
  about: About,
  parts: Parts,
) => readonly Condition[] | Promise<readonly Condition[]>;

/** What a part knows to be the matter. Each takes a bounded time. */
export type TellsConditions<Parts, Made> = { readonly [Kind in ConditionKind]?: Tell<Parts, Made> };

/** Of all parts, in the order of CONDITION_ORDER, and of one kind in the order of the parts. */
export async function collectConditions(
  tellers: readonly { conditions: TellsConditions<never, never>; made: unknown }[],
  about: About,
  parts: object,
): Promise<Condition[]> {
  const told = CONDITION_ORDER.flatMap((kind) =>
    tellers.map(({ conditions, made }) => conditions[kind]?.(made as never, about, parts as never) ?? []),
  );
  return (await Promise.all(told)).flat();
}
