import assert from 'node:assert/strict';
import { test } from 'node:test';
import { machineView, runView } from '../../test/support/fake-service.ts';
import type { VolumeView } from '../contract/schemas.ts';
import type { DrainView } from '../migration/drain.ts';
import {
  downConditions,
  drainConditions,
  machineConditions,
  noRoomConditions,
  runConditions,
  silentConditions,
  stoppingConditions,
} from './why.ts';

const HYDRATION: NonNullable<VolumeView['hydration']> = {
  state: 'running',
  blocksTotal: 1024,
  blocksPresent: 512,
  exposedBytes: 2 ** 21,
  wireBytes: 2 ** 21,
  blocksFetchedTwice: 0,
  missesKept: true,
  bytesPerSecond: 2 ** 20,
  etaMs: 2000,
  sourceLostForMs: null,
  lastError: null,
  transport: 'tcp',
};
const NO_DRAIN = { machines: [], desired: false } as unknown as DrainView;

function messages(hydration: NonNullable<VolumeView['hydration']>): string[] {
  return machineConditions(machineView({ hydration }), [], NO_DRAIN, 0).map(({ message }) => message);
}

test('a volume that is arriving says how much is missing, and how it comes', () => {
  assert.deepEqual(messages(HYDRATION), [
    '2 MiB of its volume are still only at the source, and come in the clear',
  ]);
  assert.deepEqual(messages({ ...HYDRATION, state: 'complete', exposedBytes: 0 }), []);
});

test('what waits for room says which is full: the data disk, or the memory for the map of a clone', () => {
  const full = { sinceMs: 7, waiting: 2, freeBytes: 3 * 2 ** 20, reserveBytes: 256 * 2 ** 20 };
  const [disk] = noRoomConditions('db', full, 'worker-1');
  assert.match(disk!.message, /data disk of worker-1 is full \(3 MiB free/);
  const [map] = noRoomConditions('db', { ...full, map: '/dev/shm/godwit-1/v_1.validity' }, 'worker-1');
  assert.match(
    map!.message,
    /no memory left on worker-1 .*v_1\.validity.*\(2 writes now\), nothing of it is lost/,
  );
  assert.match(map!.nextAction, /df \/dev\/shm\/godwit-1;/);
  assert.deepEqual(noRoomConditions('db', undefined, 'worker-1'), []);
});

test('in the kernel plane it also says that read misses are neither kept nor counted', () => {
  const [message] = messages({ ...HYDRATION, missesKept: false, blocksFetchedTwice: null });
  assert.match(message!, /not kept \(kernel plane\).*not counted/);
});

test('a step without a reason says how fast it is, or that nothing has advanced in it, and never that it waits for nothing', () => {
  const step = { attempts: 1, startedAtMs: 1_000, endedAtMs: null };
  const running = runView({
    state: 'running',
    step: 'sync',
    reason: null,
    endedAtMs: null,
    steps: [{ name: 'sync', state: 'running', ...step }],
  });
  const said = (nowMs: number, more: object = {}) =>
    runConditions({ ...running, ...more }, nowMs).map(({ message }) => message);
  assert.match(said(1_100)[0]!, /in step sync \(nothing has advanced in it yet\)$/);
  const progress = {
    what: 'dirty pages',
    unit: 'bytes' as const,
    count: 2 ** 21,
    sinceMs: 2_000,
    lastAtMs: 9_500,
  };
  assert.match(
    said(10_000, { progress })[0]!,
    /in step sync \(dirty pages: 2\.0 MiB in 8\.0 s, 0\.3 MiB a second, the last 0\.5 s ago\)$/,
  );
  const reason = { message: 'w2 is preparing', nextAction: 'wait', sinceMs: 1 };
  assert.match(said(10_000, { progress, reason })[0]!, /w2 is preparing \(dirty pages: /);
});

test('who was asked and does not answer is named, since he was asked, beside a reason too', () => {
  const step = { attempts: 1, startedAtMs: 1_000, endedAtMs: null };
  const running = runView({
    state: 'running',
    step: 'prepare',
    reason: null,
    endedAtMs: null,
    steps: [
      { name: 'prepare', state: 'running', ...step },
      { name: 'stop', state: 'pending', attempts: 0, startedAtMs: null, endedAtMs: null },
    ],
    asks: { who: 'w2', sinceMs: 2_000 },
  });
  const [young] = runConditions(running, 2_900);
  assert.match(young?.message ?? '', /nothing has advanced/);
  const [told, ...rest] = runConditions(running, 3_100);
  assert.deepEqual([told?.sinceMs, told?.whoCanClearIt, rest], [2_000, 'w2', []]);
  assert.match(told?.message ?? '', /in step prepare: it waits for an answer of w2$/);
  assert.match(told?.nextAction ?? '', /machine runs on here meanwhile/);
  const reason = { message: 'w2 is preparing', nextAction: 'wait', sinceMs: 1 };
  const both = runConditions({ ...running, reason }, 3_100).map(({ message }) => message);
  assert.match(both.join(), /w2 is preparing,.*an answer of w2/);
  // Who says that he lives does not hang.
  const asks = { who: 'w2', sinceMs: 2_000, livesAtMs: 9_000 };
  const [lives] = runConditions({ ...running, asks }, 9_100);
  assert.match(lives?.message ?? '', /it waits for w2, which lives and works on it$/);
  assert.doesNotMatch(lives?.nextAction ?? '', /hang/);
});

test('who can clear it is the one who can', () => {
  const who = (kind: string, step: string) =>
    runConditions(
      runView({
        kind,
        step,
        state: 'waiting',
        endedAtMs: null,
        steps: [],
        input: { sourceWorker: 'w1' },
        output: { target: 'w2' },
        reason: { message: 'waits', nextAction: 'look', sinceMs: 1 },
      }),
      2,
    )[0]?.whoCanClearIt;
  assert.match(who('migrate-out', 'stop') ?? '', /its owner/);
  assert.equal(who('migrate-out', 'prepare'), 'w2');
  assert.equal(who('migrate-in', 'healthy'), 'its owner');
  assert.match(who('migrate-in', 'boot') ?? '', /this worker/);
  assert.equal(who('migrate-in', 'hydrate'), 'w1');
});

test('a machine that is down, or whose shim hangs, says that first and by itself; a drain says what is left', () => {
  assert.deepEqual(downConditions(machineView({})), []);
  const [down] = downConditions(machineView({ down: { sinceMs: 5, why: 'moves to w2 (step stop)' } }));
  assert.deepEqual(
    [down?.sinceMs, down?.message],
    [5, 'it is down because of godwit: it moves to w2 (step stop)'],
  );
  assert.deepEqual(silentConditions(machineView({}), '/run/x'), []);
  assert.match(
    silentConditions(machineView({ silentSinceMs: 3 }), '/run/x')[0]?.nextAction ?? '',
    /\/run\/x\/shim.log/,
  );
  const drain = {
    sinceMs: 1,
    machines: [{ name: 'db', state: 'waiting', reason: 'no room', nextAction: null }],
    volumes: [{ name: 'spare', reason: 'no machine has it', nextAction: 'godwit volume move spare' }],
  } as unknown as DrainView;
  assert.deepEqual(
    drainConditions(drain).map(({ message, nextAction }) => [message, nextAction]),
    [
      ['db is waiting: no room', 'godwit why db'],
      ['the volume spare is here: no machine has it', 'godwit volume move spare'],
    ],
  );
});

test('a stop that is under way is told with its beginning, also where a move waits behind it; one that is to be started again says that', () => {
  const machine = machineView({ move: { runId: 'r', phase: 'choose', target: null }, state: 'moving' });
  assert.deepEqual(stoppingConditions(machine, 'running', null), []);
  const [stopping] = stoppingConditions(machine, 'stopped', 7);
  assert.deepEqual([stopping?.sinceMs, stopping?.whoCanClearIt], [7, 'time; its owner']);
  assert.doesNotMatch(stopping?.message ?? '', /started again/);
  assert.match(stoppingConditions(machine, 'running', 7)[0]?.message ?? '', /, and started again$/);
});

test('a machine that ends whenever it is started says so; one that ends well, what that usually is', () => {
  const said = (endsWell: boolean) =>
    machineConditions(
      machineView({
        state: 'restarting',
        ailment: {
          kind: 'restarting',
          message: 'ends whenever it is started',
          ...(endsWell && { endsWell }),
        },
      }),
      [],
      NO_DRAIN,
      0,
    )[0];
  assert.match(said(false)?.message ?? '', /^it ends whenever/);
  assert.doesNotMatch(said(false)?.nextAction ?? '', /foreground/);
  assert.match(said(true)?.nextAction ?? '', /foreground/);
});
