import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { silentLogger } from '../base/logger.ts';
import { type HeldWorkload, ShimService } from './service.ts';
import { readShimState } from './state.ts';

/** A shim whose folder takes no state as long as there is something in its place. */
function refused(t: TestContext) {
  const runtimeDir = scratchDir(t);
  const clock = new FakeClock();
  const cgroup = { folders: ['/before'] };
  const service = new ShimService({
    runtimeDir,
    workload: { status: { state: 'none' }, cgroup, initPid: null } as unknown as HeldWorkload,
    makeBackend: async () => assert.fail('no volume is opened'),
    clock,
    logger: silentLogger,
    emit: () => {},
    onShutdown: () => {},
  });
  const place = join(runtimeDir, 'shim.json');
  mkdirSync(join(place, 'in-the-way'), { recursive: true });
  const hold = async (...folders: string[]) => {
    cgroup.folders = folders;
    await assert.rejects(service.writeState());
  };
  const clear = () => {
    rmdirSync(join(place, 'in-the-way'));
    rmdirSync(place);
  };
  return { runtimeDir, clock, hold, clear };
}

test('what a shim holds is written down as soon as that can be, though nothing changes any more', async (t) => {
  const { runtimeDir, clock, hold, clear } = refused(t);
  await hold('/before');
  await hold('/after');
  clear();
  // The last refusal may be noticed only now.
  const state = await until('the state to be written', () => {
    clock.advance(1_000);
    return readShimState(runtimeDir);
  });
  assert.deepEqual(state.cgroupFolders, ['/after']);
});

test('however much changes meanwhile, there is one try to come', async (t) => {
  const { clock, hold } = refused(t);
  for (const folder of ['/a', '/b', '/c', '/d']) {
    await hold(folder);
    clock.advance(100);
  }
  await until('a try to come', () => clock.pendingTimers > 0);
  assert.equal(clock.pendingTimers, 1);
});
