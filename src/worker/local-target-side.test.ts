import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import type { MachineHost } from '../machine/machine-host.ts';
import { MachineManager, type VolumeProvider } from '../machine/manager.ts';
import type { MachineStore } from '../machine/store.ts';
import { ShimClient, type ShimConnection } from '../shim/client.ts';
import { LocalTargetSide, type LocalTargetSideOptions } from './local-target-side.ts';

const MACHINE_ID = 'm_01kdvdnevb3rm49f2hzsqy4bmt';

/** A shim whose workload takes its time to start. */
class SlowShim {
  runs = false;
  volume: { mounted: boolean } | null = null;
  readonly startAsked = Promise.withResolvers<void>();
  readonly mayStart = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<void>();

  readonly connection: ShimConnection = {
    closed: this.#closed.promise,
    close: () => this.#closed.resolve(),
    call: async (op: string) => {
      if (op === 'workload.start') {
        this.startAsked.resolve();
        await this.mayStart.promise;
        this.runs = true;
      }
      if (op === 'workload.stop') this.runs = false;
      if (op === 'fs.mount') throw new Error('a filesystem that no kernel mounts');
      return { workload: null, volume: this.volume };
    },
  };
}

async function fixture(t: TestContext) {
  const shim = new SlowShim();
  const dial = async () => shim.connection;
  const host = {
    ...{ openRoot: (path: string) => path, dial, find: async () => 'running', cleanUp: async () => {} },
    ...{ process: () => null, remove: async () => {} },
    start: ({ runtimeDir }: { runtimeDir: string }) =>
      ShimClient.connect(runtimeDir, { clock: systemClock, dial }),
  } as unknown as MachineHost;
  // Without a disk: all that goes on goes on within some turns of the loop.
  const store = { load: async () => ({ machines: [], broken: [] }), write: async () => {} };
  const machines = await MachineManager.open({
    ...{ store: store as unknown as MachineStore, volumes: {} as VolumeProvider, host, hidden: [] },
    ...{ runtimeRoot: '/nowhere', clock: systemClock, random: systemRandom, logger: silentLogger },
  });
  t.after(() => machines.close());
  const target = new LocalTargetSide({ machines, clock: systemClock } as unknown as LocalTargetSideOptions);
  const request = {
    ...{ runId: 'r_1', machineId: MACHINE_ID, machineName: 'db', startMachine: true, volume: null },
    config: {
      ...{ command: ['/bin/true'], env: {}, resources: {}, network: 'host', metadata: {} },
      restart: { policy: 'always', retriesMax: 10 },
      stop: { signal: 'SIGTERM', timeoutMs: 5_000 },
    },
  } as unknown as PrepareRequest;
  await target.attachStandby(request);
  return { target, machines, request, shim };
}

test('a machine whose owner stops it while its move starts it here is stopped when he is told so', async (t) => {
  const { target, machines, request, shim } = await fixture(t);
  const booted = target.boot(request, () => {});
  await shim.startAsked.promise;
  const stopped = machines.stop(MACHINE_ID, {}, { moving: true });
  // As far as the stop comes meanwhile.
  for (let turns = 0; turns < 100; turns++) await turn();
  shim.mayStart.resolve();
  await Promise.all([booted, stopped]);
  assert.equal(shim.runs, false);
});

test('a machine that its owner has stopped on its way is not started here', async (t) => {
  const { target, machines, request, shim } = await fixture(t);
  shim.mayStart.resolve();
  await machines.stop(MACHINE_ID, {}, { moving: true });
  await target.boot(request, () => {});
  assert.equal(shim.runs, false);
});

test('a move goes on with what cannot be mounted here when its owner has stopped the machine', async (t) => {
  const { target, machines, request, shim } = await fixture(t);
  shim.mayStart.resolve();
  shim.volume = { mounted: false };
  const config = { ...request.config, volume: { volumeId: 'v_1', mountPath: '/data' } };
  const mounting = { ...request, config, volume: { volumeId: 'v_1', filesystem: 'ext4' } } as PrepareRequest;
  await assert.rejects(
    target.boot(mounting, () => {}),
    /no kernel mounts/,
  );
  await machines.stop(MACHINE_ID, {}, { moving: true });
  await target.boot(mounting, () => {});
  assert.equal(shim.runs, false);
});

for (const step of ['awaitHealthy', 'settle'] as const) {
  test(`a machine that went with its host after its boot is started again by ${step}: nobody else does while the move has it`, async (t) => {
    const { target, machines, request, shim } = await fixture(t);
    shim.mayStart.resolve();
    await target.boot(request, () => {});
    // The shim that is found then is a new one, which has nothing that runs.
    shim.runs = false;
    await target[step](request, 1_000);
    assert.equal(shim.runs, true);
    if (step === 'settle') assert.equal(machines.get(MACHINE_ID).claimedBy, null);
    // Unless its owner has stopped it meanwhile.
    await machines.stop(MACHINE_ID, {}, { moving: true });
    await target[step](request, 1_000);
    assert.equal(shim.runs, false);
  });
}
