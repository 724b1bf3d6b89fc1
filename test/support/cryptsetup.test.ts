import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import type { ToolOutput, Tools } from '../../src/host/tools.ts';
import { Cryptsetup, parseCryptStatus } from './cryptsetup.ts';

/** Recorded with cryptsetup 2.6.1. */
const ACTIVE = `/dev/mapper/lab-luks2 is active.
  type:    LUKS2
  cipher:  aes-xts-plain64
  keysize: 512 bits
  key location: keyring
  device:  /dev/loop0
  loop:    /var/lib/godwit/luks2.raw
  sector size:  4096
  offset:  32768 sectors
  size:    16384 sectors
  mode:    read/write
`;

function recorded(output: Partial<ToolOutput>): { tools: Tools; argv: string[] } {
  const argv: string[] = [];
  return {
    argv,
    tools: {
      async run(words) {
        argv.push(words.join(' '));
        return { exitCode: 0, stdout: '', stderr: '', ...output };
      },
    },
  };
}

test('a device that is active, and one that is not', async () => {
  const active = recorded({ stdout: ACTIVE });
  assert.deepEqual(await new Cryptsetup(active.tools).status('lab-luks2'), {
    type: 'LUKS2',
    cipher: 'aes-xts-plain64',
    keyBits: 512,
    device: '/dev/loop0',
    sectorBytes: 4096,
    offsetBytes: 16 * 2 ** 20,
    lengthBytes: 8 * 2 ** 20,
    readonly: false,
    flags: [],
  });
  const inactive = recorded({ exitCode: 4, stdout: '/dev/mapper/x is inactive.\n' });
  assert.equal(await new Cryptsetup(inactive.tools).status('x'), null);
  const mounted = ACTIVE.replace('is active.', 'is active and is in use.').replace('read/write', 'readonly');
  const status = parseCryptStatus({ stdout: `${mounted}  flags:   discards no_read_workqueue\n` });
  assert.equal(status.readonly, true);
  assert.deepEqual(status.flags, ['discards', 'no_read_workqueue']);
});

test('lines of another form are an error, not a guess', () => {
  for (const [from, to] of [
    ['is active.', 'is busy.'],
    ['  offset:  32768 sectors\n', ''],
    ['16384 sectors', '8 MiB'],
    ['read/write', 'unknown'],
    ['  cipher:', 'cipher'],
  ] as const)
    assert.throws(
      () => parseCryptStatus({ stdout: ACTIVE.replace(from, to) }),
      (error) => isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
      to,
    );
});

test('the key comes from a file, and the header from where it is', async () => {
  const run = recorded({});
  const cryptsetup = new Cryptsetup(run.tools);
  const volume = { name: 'check', device: '/v/data.raw', keyFile: '/etc/key' };
  assert.equal(await cryptsetup.open(volume), '/dev/mapper/check');
  await cryptsetup.open({ ...volume, header: '/v/header.luks2' });
  await cryptsetup.close('check');
  assert.deepEqual(run.argv, [
    'cryptsetup --batch-mode open --type luks2 --key-file /etc/key /v/data.raw check',
    'cryptsetup --batch-mode open --type luks2 --key-file /etc/key --header /v/header.luks2 /v/data.raw check',
    'cryptsetup --batch-mode close check',
  ]);
});

test('a wrong key is what cryptsetup said; metadata that are no JSON are named', async () => {
  const refused = recorded({ exitCode: 2, stderr: 'No key available with this passphrase.\n' });
  await assert.rejects(
    new Cryptsetup(refused.tools).open({ name: 'check', device: '/v', keyFile: '/k' }),
    (error) => isGodwitError(error, 'HOST_TOOL_FAILED') && /No key available/.test(error.message),
  );
  const json = recorded({ stdout: '{"keyslots":{},"config":{"json_size":"12288"}}\n' });
  assert.deepEqual(await new Cryptsetup(json.tools).dump('/v'), {
    keyslots: {},
    config: { json_size: '12288' },
  });
  await assert.rejects(new Cryptsetup(recorded({ stdout: 'LUKS header\n' }).tools).dump('/v'), (error) =>
    isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
  );
});
