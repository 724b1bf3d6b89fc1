import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { mkfs, mkfsCommand } from './mkfs.ts';
import type { Tools } from './tools.ts';

const GIB = 2 ** 30;
const answering = (output: { exitCode: number; stdout?: string; stderr?: string }): Tools => ({
  run: async () => ({ stdout: '', stderr: '', ...output }),
});

test('ext4: blocks of 4 KiB, and a journal that does not grow with the volume', () => {
  const ext4 = (lengthBytes: number) =>
    mkfsCommand({ filesystem: 'ext4', path: '/v/data.raw', lengthBytes }).join(' ');
  const common = 'mkfs.ext4 -q -F -b 4096 -m 0 -E assume_storage_prezeroed=1,nodiscard';
  assert.equal(ext4(GIB), `${common} /v/data.raw`);
  assert.equal(ext4(16 * GIB), `${common} -J size=64 /v/data.raw`);
});

test('xfs is told the sectors of its device where they are not the usual ones', () => {
  const xfs = (sectorBytes?: number) =>
    mkfsCommand({
      filesystem: 'xfs',
      path: '/v/data.raw',
      lengthBytes: GIB,
      ...(sectorBytes && { sectorBytes }),
    }).join(' ');
  assert.equal(xfs(), 'mkfs.xfs -q -f -K /v/data.raw');
  assert.equal(xfs(4096), 'mkfs.xfs -q -f -K -s size=4096 /v/data.raw');
});

test('what the program says is in the error, and a program that is missing has its package named', async () => {
  const options = { filesystem: 'ext4', path: '/v/data.raw', lengthBytes: 4096 } as const;
  await mkfs(options, answering({ exitCode: 0 }));
  const refusing = answering({
    exitCode: 1,
    stderr: 'mkfs.ext4: Device size reported to be zero.  Invalid partition specified\n',
  });
  await assert.rejects(
    mkfs(options, refusing),
    (error) =>
      isGodwitError(error, 'HOST_MKFS_FAILED') && /Device size reported to be zero/.test(error.message),
  );
  const missing = new GodwitError('HOST_TOOL_MISSING', 'none', { nextAction: 'Install it.' });
  await assert.rejects(
    mkfs({ ...options, filesystem: 'xfs' }, { run: () => Promise.reject(missing) }),
    (error) => isGodwitError(error, 'HOST_MKFS_MISSING') && /xfsprogs/.test(error.nextAction),
  );
  const stuck = new GodwitError('HOST_TOOL_STUCK', 'late', { nextAction: 'Wait.' });
  await assert.rejects(mkfs(options, { run: () => Promise.reject(stuck) }), (error) => error === stuck);
});
