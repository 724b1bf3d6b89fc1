import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RecordedTools } from '../../test/support/recorded-tools.ts';
import { isGodwitError } from '../base/errors.ts';
import { DeviceMapper } from './device-mapper.ts';

// All runs were recorded in the lab: dmsetup 1.02.185 on Linux 6.1.
const linear = { target: 'linear', sectors: 262144, device: '/dev/loop0', startSector: 0 } as const;
const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

test('a table goes in by standard input, never by argument', async () => {
  const tools = new RecordedTools([
    { argv: ['dmsetup', 'create', 'godwit-x'], input: '0 262144 linear /dev/loop0 0\n' },
    { argv: ['dmsetup', 'create', 'godwit-y', '--readonly'], input: '0 262144 linear /dev/loop0 0\n' },
  ]);
  const mapper = new DeviceMapper(tools);
  assert.equal(await mapper.create('godwit-x', linear), '/dev/mapper/godwit-x');
  await mapper.create('godwit-y', linear, { readonly: true });
  assert.deepEqual(tools.left, []);
});

test('a name that is taken', async () => {
  const mapper = new DeviceMapper(
    new RecordedTools([
      {
        argv: ['dmsetup', 'create', 'godwit-x'],
        input: '0 262144 linear /dev/loop0 0\n',
        exitCode: 1,
        stderr: 'device-mapper: create ioctl on godwit-x  failed: Device or resource busy\nCommand failed.\n',
      },
      {
        argv: ['dmsetup', 'ls'],
        stdout: 'godwit-x\t(254:1)\ngodwit-x-clone\t(254:0)\ngodwit-x-crypt\t(254:2)\n',
      },
    ]),
  );
  await assert.rejects(mapper.create('godwit-x', linear), code('HOST_MAPPER_NAME_TAKEN'));
});

test('a device that is in use is not removed, and one that is gone is', async () => {
  const busy = new DeviceMapper(
    new RecordedTools([
      {
        argv: ['dmsetup', 'remove', '--retry', 'godwit-x'],
        exitCode: 1,
        stderr: 'device-mapper: remove ioctl on godwit-x  failed: Device or resource busy\nCommand failed.\n',
      },
      { argv: ['dmsetup', 'ls'], stdout: 'godwit-x\t(254:1)\n' },
    ]),
  );
  await assert.rejects(busy.remove('godwit-x'), code('HOST_MAPPER_BUSY'));
  const gone = new DeviceMapper(
    new RecordedTools([
      {
        argv: ['dmsetup', 'remove', '--retry', 'godwit-x'],
        exitCode: 1,
        stderr:
          'device-mapper: remove ioctl on godwit-x  failed: No such device or address\nCommand failed.\n',
      },
      { argv: ['dmsetup', 'ls'], stdout: 'No devices found\n' },
    ]),
  );
  await gone.remove('godwit-x');
});

test('status and table of one target', async () => {
  const mapper = new DeviceMapper(
    new RecordedTools([
      { argv: ['dmsetup', 'status', '--noflush', 'godwit-x'], stdout: '0 262144 linear \n' },
      {
        argv: ['dmsetup', 'table', 'godwit-x-crypt'],
        stdout: `0 262144 crypt aes-xts-plain64 ${'0'.repeat(128)} 0 254:1 0 2 allow_discards sector_size:4096\n`,
      },
      { argv: ['dmsetup', 'table', 'two'], stdout: '0 8 linear 7:0 0\n8 8 linear 7:1 0\n' },
    ]),
  );
  assert.deepEqual(await mapper.status('godwit-x'), { sectors: 262144, target: 'linear', text: '' });
  assert.equal((await mapper.table('godwit-x-crypt')).target, 'crypt');
  await assert.rejects(mapper.table('two'), code('HOST_UNKNOWN_OUTPUT'));
});

test('a kernel without device-mapper, or without a target', async () => {
  const mapper = new DeviceMapper(
    new RecordedTools([
      {
        argv: ['dmsetup', 'ls'],
        exitCode: 1,
        stderr:
          '/dev/mapper/control: open failed: No such device\nFailure to communicate with kernel device-mapper driver.\nCheck that device-mapper is available in the kernel.\n',
      },
      {
        argv: ['dmsetup', 'create', 'godwit-x'],
        input: '0 262144 linear /dev/loop0 0\n',
        exitCode: 1,
        stderr: 'device-mapper: reload ioctl on godwit-x  failed: Invalid argument\nunknown target type\n',
      },
    ]),
  );
  await assert.rejects(mapper.names(), code('HOST_MAPPER_MISSING'));
  await assert.rejects(mapper.create('godwit-x', linear), code('HOST_MAPPER_NO_TARGET'));
});

test('a target that is there, that comes with its module, that does not come, that is of another version', async () => {
  const targets = (more: string) => ({
    argv: ['dmsetup', 'targets'] as const,
    stdout: `${more}crypt            v1.24.0\nlinear           v1.4.0\nerror            v1.5.0\n`,
  });
  const modprobe = (more: object) => ({ argv: ['modprobe', 'dm-clone'] as const, ...more });
  const requireClone = (...runs: ConstructorParameters<typeof RecordedTools>[0]) =>
    new DeviceMapper(new RecordedTools(runs)).requireTarget('clone');
  await requireClone(targets('clone            v1.0.0\n'));
  await requireClone(targets(''), modprobe({}), targets('clone            v1.0.0\n'));
  await assert.rejects(
    requireClone(
      targets(''),
      modprobe({ exitCode: 1, stderr: "modprobe: ERROR: could not insert 'dm_clone': Exec format error\n" }),
      targets(''),
    ),
    code('HOST_MAPPER_NO_TARGET'),
  );
  await assert.rejects(requireClone(targets('clone            v2.0.0\n')), code('HOST_UNKNOWN_OUTPUT'));
  await assert.rejects(requireClone(targets('clone            v10.0.0\n')), code('HOST_UNKNOWN_OUTPUT'));
});

test('no name that dmsetup could take for something else', async () => {
  const mapper = new DeviceMapper(new RecordedTools([]));
  for (const name of ['', '--force', 'a b', 'a/b', 'x'.repeat(128)]) {
    await assert.rejects(async () => mapper.status(name), /not a name/);
  }
});
