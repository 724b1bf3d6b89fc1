import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { type MountNeeds, mountNeeds, SUPERBLOCK_READ_BYTES } from './mount-needs.ts';
import { MountProof, proofRecipe } from './mount-proof.ts';
import type { ToolOutput } from './tools.ts';

const needsRoot = requires('root', '/dev/loop-control', 'mkfs.ext4', 'mkfs.xfs', 'unshare', 'mount');

function superblockOf(path: string): Buffer {
  const bytes = Buffer.alloc(SUPERBLOCK_READ_BYTES);
  const fd = openSync(path, 'r');
  readSync(fd, bytes, 0, bytes.length, 0);
  closeSync(fd);
  return bytes;
}

function made(dir: string, filesystem: 'ext4' | 'xfs', ...options: string[]): MountNeeds {
  const path = join(dir, 'image');
  writeFileSync(path, '');
  truncateSync(path, 320 * 2 ** 20);
  execFileSync(`mkfs.${filesystem}`, ['-q', filesystem === 'ext4' ? '-F' : '-f', ...options, path]);
  const needs = mountNeeds(filesystem, superblockOf(path));
  assert.ok(needs);
  return needs;
}

/** What this kernel says of a module or an option of its build. */
const hasUnicode = /=[ym]$/m.test(
  spawnSync('sh', ['-c', 'zcat /proc/config.gz 2>/dev/null | grep ^CONFIG_UNICODE='], { encoding: 'utf8' })
    .stdout,
);

test('the kernel of this host says whether it mounts a filesystem of the same features', {
  skip: needsRoot,
}, async (t) => {
  const dir = scratchDir(t);
  const proof = new MountProof({ dir });
  const usual = made(dir, 'ext4', '-b', '4096');
  assert.equal(await proof.refusal(usual), null);
  assert.equal(
    await proof.refusal(
      made(dir, 'ext4', '-b', '1024', '-O', '^has_journal,bigalloc,inline_data', '-C', '16384'),
    ),
    null,
  );
  assert.equal(await proof.refusal(made(dir, 'xfs')), null);
  assert.equal(await proof.refusal(made(dir, 'xfs', '-m', 'rmapbt=1', '-i', 'size=1024')), null);
  if (!hasUnicode) {
    const folded = made(dir, 'ext4', '-O', 'casefold');
    assert.match((await proof.refusal(folded)) ?? '', /does not mount ext4 .*casefold/);
  }
  // Of a kernel to come.
  const unknown = { ...usual, incompatible: (usual.incompatible | 0x4000_0000) >>> 0 } as MountNeeds;
  assert.match((await proof.refusal(unknown)) ?? '', /unknown bits 0x40000000/);
  const later = made(dir, 'xfs');
  const bit = { ...later, incompatible: (later.incompatible | 0x4000_0000) >>> 0 } as MountNeeds;
  assert.match((await proof.refusal(bit)) ?? '', /does not mount xfs .*unknown bits 0x40000000/);
  assert.deepEqual(readdirSync(dir), ['image'], 'nothing is left');
  assert.doesNotMatch(readFileSync('/proc/self/mountinfo', 'utf8'), new RegExp(dir));
});

test('bytes that are no superblock, and damaged ones, are no needs', () => {
  const empty = Buffer.alloc(SUPERBLOCK_READ_BYTES);
  assert.equal(mountNeeds('ext4', empty), null);
  assert.equal(mountNeeds('xfs', empty), null);
  assert.equal(mountNeeds('xfs', Buffer.from('XFSB')), null, 'too short');
  const large = Buffer.alloc(SUPERBLOCK_READ_BYTES, 0xff);
  large.writeUInt16LE(0xef53, 1024 + 0x38);
  assert.equal(mountNeeds('ext4', large), null, 'blocks of 2^4294967305 bytes');
  large.write('XFSB');
  assert.equal(mountNeeds('xfs', large)?.filesystem, 'xfs');
});

test('a recipe names what mkfs knows, and keeps the rest for afterwards', () => {
  const ext4 = proofRecipe(
    {
      filesystem: 'ext4',
      blockBytes: 4096,
      clusterBytes: 16384,
      inodeBytes: 256,
      compatible: 0x4,
      incompatible: 0x2 | 0x20000 | 0x1000_0000,
      readonlyCompatible: 0x200,
    },
    '/x',
  );
  assert.deepEqual(ext4.argv.slice(1), [
    ...['-q', '-F', '-b', '4096', '-I', '256', '-E', 'nodiscard,encoding=utf8', '-C', '16384'],
    ...['-O', 'none,has_journal,filetype,casefold,bigalloc', '/x'],
  ]);
  assert.deepEqual([ext4.incompatible, ext4.readonlyCompatible], [0x1000_0000, 0]);
  const xfs = { filesystem: 'xfs', blockBytes: 4096, sectorBytes: 512, inodeBytes: 256 } as const;
  const old = proofRecipe({ ...xfs, version: 4, incompatible: 0, readonlyCompatible: 0 }, '/x');
  assert.ok(old.argv.includes('crc=0'));
});

test('an answer is kept; a refusal for a while, a try that was none not at all', async (t) => {
  const clock = new FakeClock();
  const says: ToolOutput[] = [];
  let runs = 0;
  const tools = {
    run: async ([program]: readonly [string, ...string[]]): Promise<ToolOutput> => {
      runs++;
      return program === 'unshare' ? says.shift()! : { exitCode: mkfs, stdout: '', stderr: 'no' };
    },
  };
  let mkfs = 0;
  const proof = new MountProof({ dir: scratchDir(t), tools, clock });
  const needs: MountNeeds = {
    filesystem: 'xfs',
    blockBytes: 4096,
    sectorBytes: 512,
    inodeBytes: 512,
    version: 5,
    incompatible: 1,
    readonlyCompatible: 1,
  };
  const fails = { exitCode: 32, stdout: '', stderr: 'mount: unknown filesystem type' };
  const mounts = { exitCode: 0, stdout: '', stderr: '' };
  says.push(fails, mounts);
  assert.match((await proof.refusal(needs)) ?? '', /unknown filesystem type/);
  await proof.refusal(needs);
  assert.equal(runs, 4);
  clock.advance(3_600_000);
  says.push(mounts);
  assert.equal(await proof.refusal(needs), null);
  clock.advance(3_600_000);
  assert.equal(await proof.refusal(needs), null);
  assert.equal(runs, 6);
  // Nothing can be mounted here: that says nothing about these features.
  const later = { ...needs, inodeBytes: 2048 };
  says.push(fails, fails);
  await assert.rejects(proof.refusal(later), (error) => isGodwitError(error, 'HOST_MOUNT_UNPROVED'));
  says.push(mounts);
  assert.equal(await proof.refusal(later), null);
  assert.equal(runs, 12);
  mkfs = 1;
  const other = { ...needs, inodeBytes: 1024 };
  for (let attempt = 0; attempt < 2; attempt++)
    await assert.rejects(proof.refusal(other), (error) => isGodwitError(error, 'HOST_MOUNT_UNPROVED'));
  assert.equal(runs, 14);
});
