import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import type { MachineConfig } from './machine-config.ts';
import { networkOf, runOf, writtenConfig } from './machine-run.ts';

const COMMON: MachineConfig = {
  env: {},
  restart: { policy: 'no', retriesMax: 0 },
  stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
  resources: {},
  network: 'none',
  metadata: {},
};
const TOP: MachineConfig = { ...COMMON, command: ['x'], env: { A: 'b' }, user: 'u', devices: ['/dev/kvm'] };
const RUN = {
  kind: 'process' as const,
  command: ['x'],
  env: { A: 'b' },
  user: 'u',
  devices: ['/dev/kvm'],
};

test('a process is the same at the top of a configuration and under its name', () => {
  assert.deepEqual(runOf(TOP), RUN);
  assert.deepEqual(runOf({ ...COMMON, run: RUN }), RUN);
  for (const network of ['none', { kind: 'none' }] as const)
    assert.deepEqual(networkOf({ network }), { kind: 'none' });
});

test('it is written as workers of earlier versions read it', () => {
  assert.deepEqual(writtenConfig({ ...COMMON, run: RUN }), TOP);
  assert.deepEqual(writtenConfig(TOP), TOP);
  assert.deepEqual(writtenConfig({ ...COMMON, network: { kind: 'none' }, run: RUN }), TOP);
});

test('a machine that runs nothing, or two things, is refused', () => {
  for (const config of [COMMON, { ...TOP, run: RUN }, { ...COMMON, run: RUN, user: 'v' }])
    for (const read of [runOf, writtenConfig])
      assert.throws(
        () => read(config),
        (error) => isGodwitError(error, 'MACHINE_BAD_RUN'),
      );
});
