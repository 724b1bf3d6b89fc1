import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { silentLogger } from '../base/logger.ts';
import { type HeldWorkload, ShimService } from './service.ts';
import { readShimState } from './state.ts';

test('what a shim holds is written down as soon as that can be, though nothing changes any more', async (t) => {
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
  const before = join(runtimeDir, 'shim.json');
  mkdirSync(join(before, 'in-the-way'), { recursive: true });
  await assert.rejects(service.writeState());
  cgroup.folders = ['/after'];
  await assert.rejects(service.writeState());
  rmdirSync(join(before, 'in-the-way'));
  rmdirSync(before);
  // The last refusal may be noticed only now.
  const state = await until('the state to be written', () => {
    clock.advance(1_000);
    return readShimState(runtimeDir);
  });
  assert.deepEqual(state.cgroupFolders, ['/after']);
});
