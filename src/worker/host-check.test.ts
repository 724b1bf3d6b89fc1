import assert from 'node:assert/strict';
import test from 'node:test';
import { GodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { MountNeeds } from '../host/mount-needs.ts';
import { missingProgram } from '../jail/jail.ts';
import type { MachineManager } from '../machine/manager.ts';
import { hostCheck } from './host-check.ts';

const CONFIG: MachineConfig = {
  command: ['sh', '-c', 'true'],
  env: {},
  volume: { volumeId: 'v_1', mountPath: '/data' },
  restart: { policy: 'always', retriesMax: 1 },
  stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
  resources: {},
  network: 'host',
  metadata: {},
};
const MOUNT = { filesystem: 'ext4' } as MountNeeds;

test('what a host lacks for a machine is said before it comes', async () => {
  let host: () => void = () => {};
  let mounts: () => Promise<string | null> = async () => null;
  let full: string | null = null;
  const records = [{ id: 'm_1', name: 'db' }];
  const check = hostCheck({
    machines: {
      checkHostCanRun: () => host(),
      missing: missingProgram,
      records: () => records,
    } as unknown as MachineManager,
    proof: { refusal: () => mounts() },
    shimRoomLacks: async () => full,
    logger: silentLogger,
  });
  const say = (config: Partial<MachineConfig> = {}, name = 'web') =>
    check({ id: 'm_2', name }, { config: { ...CONFIG, ...config }, mount: MOUNT });
  assert.equal(await say(), null);
  assert.match((await say({}, 'db')) ?? '', /^has a machine called db/);
  assert.equal(await check({ id: 'm_1', name: 'db' }, { config: CONFIG }), null, 'the one that comes back');
  assert.match((await say({ command: ['no-such-program'] })) ?? '', /^has no program no-such-program/);
  mounts = async () => 'its kernel does not mount ext4 with casefold';
  assert.match((await say()) ?? '', /^cannot mount its volume: .*casefold/);
  mounts = async () => {
    throw new GodwitError('HOST_MOUNT_UNPROVED', 'no mkfs', { nextAction: 'install it' });
  };
  assert.equal(await say(), null, 'not known is not no');
  full = 'its filesystem is full';
  assert.match((await say()) ?? '', /^has no room in its runtime folder: its filesystem is full/);
  host = () => {
    throw new GodwitError('MACHINE_CGROUP_MISSING', 'there is no cgroup controller memory', {
      nextAction: 'x',
    });
  };
  assert.match((await say()) ?? '', /^cannot run it: there is no cgroup controller memory/);
});

test('a program is looked for where the machine will; what only the machine has is not', () => {
  const missing = (command: string[], change: Partial<MachineConfig> = {}) =>
    missingProgram({ ...CONFIG, command, ...change });
  assert.equal(missing(['sh']), null);
  assert.equal(missing(['/bin/sh']), null);
  assert.equal(missing(['/no/such/program']), '/no/such/program');
  assert.equal(missing(['/etc/passwd']), '/etc/passwd', 'it is not to be executed');
  assert.equal(missing(['/etc']), '/etc');
  assert.equal(missing(['no-such-program']), 'no-such-program');
  assert.equal(missing(['sh'], { env: { PATH: '/no/such/folder' } }), 'sh');
  assert.equal(missing(['/data/bin/server']), null, 'it may be on the volume');
  assert.equal(missing(['server'], { env: { PATH: '/bin:/data/bin' } }), null);
  assert.equal(missing(['/data/../no/such'], {}), '/data/../no/such');
  assert.equal(missing(['./server']), null);
  assert.equal(missing(['/tmp/server']), null);
});
