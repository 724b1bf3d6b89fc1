import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { parseMountTable } from '../host/mount-table.ts';
import {
  enterCommand,
  hostnameOf,
  type JailPlan,
  jailArguments,
  jailFstab,
  machineEnvironment,
  ownFilesystems,
  resolveAccount,
  resolveMountPath,
} from './jail.ts';

const plan: JailPlan = {
  jailDir: '/run/gw/m/jail',
  hostname: 'm',
  network: 'none',
  workingDirectory: '/srv',
  hostFolders: ['/tmp/app'],
  devices: ['/dev/kvm', '/dev/net/tun'],
  hidden: ['/var/lib/godwit', '/tmp/fleet'],
  ownFilesystems: ['/var'],
  resolverFolder: null,
  volume: { source: '/run/gw/m/fs', place: '/data/my files' },
  nbdFolder: null,
  cgroupProcs: ['/a/cgroup.procs', '/b/cgroup.procs'],
};
const tools = {
  sh: '/bin/sh',
  unshare: 'u',
  nsenter: '/n',
  setpriv: '/s',
  setsid: '/c',
  env: '/e',
  tini: '/t',
};
const passwd =
  'root:x:0:0:root:/root:/bin/sh\npostgres:x:105:112:,,,:/var/lib/postgresql:/bin/bash\nbroken\n';

test('the mounts of a jail: volume last, spaces escaped, fleet folders hidden', () => {
  const lines = jailFstab(plan, 'overlay').trimEnd().split('\n');
  assert.equal(lines.at(-1), '/run/gw/m/fs /run/gw/m/jail/root/data/my\\040files none bind,X-mount.mkdir');
  assert.ok(lines.some((line) => line.startsWith('tmpfs /run/gw/m/jail/root/var/lib/godwit tmpfs')));
  assert.ok(!lines.some((line) => line.includes('fleet')), '/tmp is empty anyway');
  assert.ok(lines.includes('/tmp/app /run/gw/m/jail/root/tmp/app none bind,ro,X-mount.mkdir'));
  assert.match(lines[0]!, /^overlay .*root\/var overlay lowerdir=\/var,upperdir=/);
  const withSocket = jailFstab({ ...plan, nbdFolder: '/run/gw/m/nbd' }, 'overlay')
    .trimEnd()
    .split('\n');
  assert.deepEqual(withSocket.slice(0, -1), lines);
  assert.match(withSocket.at(-1)!, /^\/run\/gw\/m\/nbd \/run\/gw\/m\/jail\/root\/run\/godwit none bind,ro,/);
  assert.match(jailFstab(plan, 'bind'), /^\/var \/run\/gw\/m\/jail\/root\/var none bind\n/);
});

test('the environment of the machine reaches only the machine, and its own network is asked for', () => {
  const account = resolveAccount('postgres', passwd);
  const args = jailArguments(plan, tools, account, { LD_PRELOAD: '/evil.so' }, ['cmd', 'arg']);
  assert.ok(args.includes('--net'));
  assert.ok(args.includes('/dev/kvm\n/dev/net/tun'));
  assert.ok(
    args
      .find((arg) => arg.startsWith('upper\n'))!
      .split('\n')
      .includes('dev/net'),
  );
  assert.deepEqual(args.slice(args.indexOf('/s'), args.indexOf('/s') + 4), [
    '/s',
    '--reuid=105',
    '--regid=112',
    '--init-groups',
  ]);
  assert.deepEqual(args.slice(args.indexOf('/e')), [
    '/e',
    '-i',
    '--',
    'LD_PRELOAD=/evil.so',
    '/t',
    '--',
    'cmd',
    'arg',
  ]);
});

test('a command inside joins the cgroups first', () => {
  const { file, args } = enterCommand(
    {
      initPid: 77,
      network: 'host',
      cgroupProcs: plan.cgroupProcs,
      tools,
      account: resolveAccount('0', passwd),
      environment: {},
    },
    ['id'],
  );
  assert.equal(file, '/bin/sh');
  assert.ok(args.indexOf('/b/cgroup.procs') < args.indexOf('/n'));
  assert.ok(!args.includes('--net'));
  assert.equal(args.at(-1), 'id');
});

test('users by name and number', () => {
  assert.deepEqual(resolveAccount(undefined, passwd), { uid: 0, gid: 0, name: 'root', home: '/root' });
  assert.deepEqual(resolveAccount('105', passwd).name, 'postgres');
  assert.deepEqual(resolveAccount('4000', passwd), { uid: 4000, gid: 4000, name: null, home: '/' });
  for (const user of ['nobody-here', 'broken', '', '99999999999']) {
    assert.throws(
      () => resolveAccount(user, passwd),
      (error) => isGodwitError(error, 'MACHINE_UNKNOWN_USER'),
    );
  }
});

test('environment: defaults, overrides, and names that cannot be', () => {
  const account = resolveAccount('postgres', passwd);
  const environment = machineEnvironment({ env: { HOME: '/data', '-u': 'x' } }, 'db', account);
  assert.equal(environment.HOME, '/data');
  assert.equal(environment.USER, 'postgres');
  assert.equal(environment['-u'], 'x');
  for (const env of [{ '': 'x' }, { 'A=B': 'x' }, { A: 'x\0' }]) {
    assert.throws(
      () => machineEnvironment({ env }, 'db', account),
      (error) => isGodwitError(error, 'MACHINE_BAD_ENVIRONMENT'),
    );
  }
});

test('mount paths lose their symbolic links and stay out of the places of the jail', (t) => {
  const dir = scratchDir(t);
  mkdirSync(join(dir, 'real'));
  symlinkSync(join(dir, 'real'), join(dir, 'link'));
  assert.equal(resolveMountPath(join(dir, 'link', 'a', 'b')), join(dir, 'real', 'a', 'b'));
  assert.equal(resolveMountPath('/data-that-is-not-there/x/'), '/data-that-is-not-there/x');
  for (const path of [
    '/',
    '/proc',
    '/proc/1',
    '/sys/x',
    '/dev',
    '/tmp',
    '/run/',
    '/a/../run',
    '/run/.host',
    '/run/godwit/x',
  ]) {
    assert.throws(
      () => resolveMountPath(path),
      (error) => isGodwitError(error, 'MACHINE_BAD_MOUNT_PATH'),
      path,
    );
  }
});

test('host names', () => {
  assert.equal(hostnameOf('My Database_1'), 'my-database-1');
  assert.equal(hostnameOf('---'), 'machine');
  assert.equal(hostnameOf('ä'.repeat(99)), 'machine');
  assert.equal(hostnameOf('a'.repeat(99)).length, 63);
});

test('folders that are filesystems of their own are found in the mount table', () => {
  const table = parseMountTable(`1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:2 / /var rw,relatime shared:2 master:1 - xfs /dev/sda2 rw
3 1 8:3 / /mnt/with\\040space rw - ext4 /dev/sda3 rw
nonsense`);
  assert.deepEqual(ownFilesystems(table), ['/var']);
  assert.equal(table[2]?.mountPoint, '/mnt/with space');
});
