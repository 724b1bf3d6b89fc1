import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { machineConfig } from '../../test/support/machine.ts';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { silentLogger } from '../base/logger.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { Instance, Run, Runtime, WorkloadExit } from '../shim/runtime.ts';
import { Workload } from './workload.ts';

/** A runtime whose runs end when the test says so. */
class Toy {
  readonly calls: string[] = [];
  readonly runs: PromiseWithResolvers<WorkloadExit>[] = [];
  failure: Error | null = null;

  readonly instance: Instance = {
    prepare: async () => this.#did('prepare'),
    start: async () => this.#run('start'),
    startAgain: async () => this.#run('startAgain'),
    statistics: () => ({ memoryBytes: 7, outOfMemoryKills: 0 }),
    clear: async () => this.#did('clear'),
    remove: async () => this.#did('remove'),
  };

  #did(what: string): void {
    this.calls.push(what);
  }

  #run(what: string): Run {
    this.#did(what);
    if (this.failure !== null) throw this.failure;
    const exited = Promise.withResolvers<WorkloadExit>();
    this.runs.push(exited);
    return {
      initPid: 100 + this.runs.length,
      exited: exited.promise,
      end: async (signal) => {
        this.#did(`end ${signal}`);
        exited.resolve({ exitCode: null, exitSignal: signal });
        return true;
      },
      settle: () => exited.promise,
      exec: async () => ({ exitCode: 0, stdout: '', stderr: '', timedOut: false }),
      enter: () => null,
      probe: () => async () => ({ ok: true, message: 'yes' }),
    };
  }
}

function made(t: TestContext, change: Partial<MachineConfig> = {}) {
  const toy = new Toy();
  const clock = new FakeClock();
  const nowhere = { memory: null, cpu: null, pids: null, freezer: null, unified: null };
  const workload = new Workload({
    runtimeDir: scratchDir(t),
    hidden: [],
    runtimes: { process: { instance: () => toy.instance } as unknown as Runtime },
    cgroupLayout: { version: 2, ...nowhere },
    clock,
    logger: silentLogger,
    onChange() {},
  });
  t.after(() => workload.close());
  const subject = { machineId: 'm_1', name: 'one', config: machineConfig('true', change) };
  return { toy, clock, workload, subject };
}

/** Its log is a file, so that the clock alone does not bring it there. */
const becomes = (workload: Workload, state: string) =>
  until(`it to be ${state}`, () => workload.status?.state, { is: (now) => now === state });

test('what ends is started again by its policy, within the limits that stand', async (t) => {
  const { toy, clock, workload, subject } = made(t, { restart: { policy: 'on-failure', retriesMax: 1 } });
  await workload.start(subject);
  assert.equal(workload.status?.memoryBytes, 7);
  toy.runs[0]!.resolve({ exitCode: 1, exitSignal: null });
  await becomes(workload, 'restarting');
  await clock.run(100);
  await becomes(workload, 'running');
  assert.deepEqual([workload.status?.restarts, workload.initPid], [1, 102]);
  toy.runs[1]!.resolve({ exitCode: 1, exitSignal: null });
  await becomes(workload, 'failed');
  assert.equal(workload.status?.memoryBytes, null);
  assert.deepEqual(toy.calls, ['start', 'clear', 'startAgain', 'clear', 'remove']);
});

test('a stop ends what runs with its signal, clears what is left, and nothing starts again', async (t) => {
  const { toy, clock, workload, subject } = made(t, { restart: { policy: 'always', retriesMax: 10 } });
  await workload.start(subject);
  const stopped = await workload.stop({ signal: 'SIGINT', timeoutMs: 1_000 });
  assert.deepEqual([stopped.signal, stopped.killed, workload.status?.state], ['SIGINT', false, 'stopped']);
  await clock.run(60_000);
  assert.equal(toy.runs.length, 1);
  assert.deepEqual(toy.calls.slice(0, 3), ['start', 'end SIGINT', 'clear']);
});

test('a start that fails leaves nothing, and one that was prepared is not prepared while it runs', async (t) => {
  const { toy, workload, subject } = made(t);
  toy.failure = new Error('no memory');
  await assert.rejects(workload.start(subject), /no memory/);
  assert.deepEqual(toy.calls, ['start', 'clear', 'remove']);
  assert.equal(workload.status?.state, 'failed');
  toy.failure = null;
  await workload.prepare(subject);
  await workload.start(subject);
  await workload.prepare(subject);
  assert.deepEqual(toy.calls.slice(3), ['prepare', 'start']);
});
