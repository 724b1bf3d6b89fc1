import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Check } from 'typebox/value';
import { machineView } from '../../../test/support/fake-service.ts';
import { MachineConfig } from '../../contract/machine-config.ts';
import type { MachineView } from '../../contract/schemas.ts';
import { configOf, ioPausedLine, type RunOptions, stateOf, undoneLine } from './machine.ts';

const minimal: RunOptions = {
  name: 'pg',
  filesystem: 'ext4',
  env: [],
  hostFolder: [],
  device: [],
  network: 'host',
  wait: '5m',
};
const config = (some: Partial<RunOptions>) => configOf(['sleep', '9'], { ...minimal, ...some });

test('options become a configuration that the API takes', () => {
  const all = config({
    env: ['A=1', 'B=x=y', 'EMPTY='],
    user: 'postgres',
    workdir: '/data',
    memory: '512MiB',
    cpus: '1.5',
    network: 'none',
    healthTcp: '5432',
    healthInterval: '1s',
    stopSignal: 'int',
    stopTimeout: '1m',
    restart: 'on-failure:3',
    group: 'db',
    device: ['/dev/kvm'],
  });
  assert.ok(Check(MachineConfig, all));
  assert.deepEqual(all, {
    command: ['sleep', '9'],
    env: { A: '1', B: 'x=y', EMPTY: '' },
    user: 'postgres',
    workingDirectory: '/data',
    devices: ['/dev/kvm'],
    restart: { policy: 'on-failure', retriesMax: 3 },
    stop: { signal: 'SIGINT', timeoutMs: 60_000 },
    resources: { memoryBytes: 512 * 2 ** 20, cpus: 1.5 },
    network: 'none',
    metadata: {},
    group: 'db',
    health: {
      kind: 'tcp',
      port: 5432,
      intervalMs: 1_000,
      timeoutMs: 2_000,
      retries: 3,
      startPeriodMs: 60_000,
    },
  });
  assert.ok(Check(MachineConfig, config({})));
});

test('health checks of every kind', () => {
  const kind = (some: Partial<RunOptions>) => {
    const { health } = config(some);
    assert.ok(Check(MachineConfig, config(some)));
    return health;
  };
  assert.deepEqual(Object(kind({ healthExec: 'pg_isready -q' })).command, ['/bin/sh', '-c', 'pg_isready -q']);
  assert.equal(Object(kind({ healthTcp: 'db.local:5432' })).host, 'db.local');
  assert.equal(Object(kind({ healthHttp: 'http://localhost:80/' })).url, 'http://localhost:80/');
  assert.equal(kind({}), undefined);
});

test('what is wrong is named', () => {
  const cases: [Partial<RunOptions>, RegExp][] = [
    [{ env: ['=x'] }, /--env/],
    [{ env: ['GODWIT_TEST_NOT_SET'] }, /--env/],
    [{ cpus: 'two' }, /--cpus/],
    [{ restart: 'sometimes' }, /--restart/],
    [{ healthTcp: 'http' }, /--health-tcp/],
    [{ healthTcp: '1', healthExec: 'true' }, /give one of/],
  ];
  for (const [some, message] of cases)
    assert.throws(() => config(some), { code: 'CLI_INVALID_OPTIONS', message });
});

test('a machine that waits for room on a full disk is told of with since when, and one whose writes fail otherwise', () => {
  const nowMs = 1_000_000;
  const paused = (name: string, sinceMs: number, waiting: number) =>
    ({ ...machineView({ name }), state: 'running', ioPaused: { sinceMs, waiting } }) as MachineView;
  const hog = paused('hog', nowMs - 12_000, 3);
  assert.equal(stateOf(hog, nowMs), 'running (I/O paused 12 s)');
  assert.equal(stateOf(paused('fails', nowMs - 12_000, 0), nowMs), 'running (no room 12 s)');
  assert.equal(ioPausedLine([machineView({})], nowMs), null);
  assert.match(
    ioPausedLine([hog], nowMs)!,
    /^1 machine finds no room on a full disk, hog on .* for 12 s: godwit why hog$/,
  );
  const [long, short] = [paused('long', nowMs - 60_000, 1), hog];
  assert.match(ioPausedLine([short, long], nowMs)!, /^2 machines find no room on a full disk, long on /);
});

test('a machine whose move is undone is told of with why', () => {
  const nowMs = 1_000_000;
  const move = { runId: 'r', phase: 'choose', target: 'w2', undoneBecause: 'cancelled: enough' };
  const back = { ...machineView({ name: 'db' }), state: 'moving', move } as MachineView;
  assert.equal(stateOf(back, nowMs), 'moving (goes back)');
  const down = { sinceMs: nowMs - 12_000, why: 'comes back' };
  assert.equal(stateOf({ ...back, down }, nowMs), 'moving (goes back, down 12 s)');
  assert.equal(undoneLine([{ ...back, move: null }]), null);
  assert.match(undoneLine([back])!, /^1 move is being undone, of db: cancelled: enough .*godwit why db/);
});
