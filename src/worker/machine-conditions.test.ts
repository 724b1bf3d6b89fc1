import assert from 'node:assert/strict';
import { test } from 'node:test';
import { machineView } from '../../test/support/fake-service.ts';
import {
  noRoomConditions,
  silentConditions,
  stateConditions,
  stoppingConditions,
} from './machine-conditions.ts';

test('what waits for room says which is full: the data disk, or the memory for the map of a clone', () => {
  const full = { sinceMs: 7, waiting: 2, freeBytes: 3 * 2 ** 20, reserveBytes: 256 * 2 ** 20 };
  const [disk] = noRoomConditions('db', full, 'worker-1');
  assert.match(disk!.message, /data disk of worker-1 is full \(3 MiB free/);
  // Nobody waits where writes fail, and none may be under way: a fetched block has found no room.
  assert.match(noRoomConditions('db', { ...full, waiting: 0 }, 'w')[0]!.message, /waits for room, or fails/);
  const [map] = noRoomConditions('db', { ...full, map: '/dev/shm/godwit-1/v_1.validity' }, 'worker-1');
  assert.match(
    map!.message,
    /no memory left on worker-1 .*v_1\.validity.*\(2 writes now\), nothing of it is lost/,
  );
  assert.match(map!.nextAction, /df \/dev\/shm\/godwit-1;/);
  assert.deepEqual(noRoomConditions('db', undefined, 'worker-1'), []);
});

test('a machine whose shim hangs says where to look', () => {
  assert.deepEqual(silentConditions(machineView({}), '/run/x'), []);
  assert.match(
    silentConditions(machineView({ silentSinceMs: 3 }), '/run/x')[0]?.nextAction ?? '',
    /\/run\/x\/shim.log/,
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
    stateConditions(
      machineView({
        state: 'restarting',
        ailment: {
          kind: 'restarting',
          message: 'ends whenever it is started',
          ...(endsWell && { endsWell }),
        },
      }),
    )[0];
  assert.match(said(false)?.message ?? '', /^it ends whenever/);
  assert.doesNotMatch(said(false)?.nextAction ?? '', /foreground/);
  assert.match(said(true)?.nextAction ?? '', /foreground/);
});
