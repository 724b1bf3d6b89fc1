import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { requires } from '../../test/support/requires.ts';
import { tool, VolumeLab } from '../../test/support/volume-lab.ts';
import { filesystemInstance } from './filesystem-instance.ts';

test('a filesystem that is mounted again is another instance; a bind mount and another namespace are the same', {
  skip: requires('root', '/dev/loop-control', 'mkfs.ext4', 'losetup'),
}, async (t) => {
  const lab = new VolumeLab(t);
  const dir = await lab.smallDisk(16 * 2 ** 20);
  const first = filesystemInstance(dir);
  assert.match(first ?? '', /^ext4:\d+$/);
  assert.equal(filesystemInstance(dir), first);
  const again = join(lab.dir, 'again');
  mkdirSync(again);
  await tool('mount', '--bind', dir, again);
  assert.equal(filesystemInstance(again), first);
  await tool('umount', again);
  const script = join(lab.dir, 'instance.mjs');
  const module = new URL('./filesystem-instance.ts', import.meta.url).href;
  writeFileSync(
    script,
    `import { filesystemInstance } from '${module}'; console.log(filesystemInstance('${dir}'));`,
  );
  const elsewhere = await tool('unshare', '--mount', process.execPath, script);
  assert.equal(elsewhere.trim(), first);
  await tool('umount', dir);
  await tool('mount', '-o', 'loop', join(lab.dir, 'small-disk.img'), dir);
  assert.notEqual(filesystemInstance(dir), first);
});

test('where it cannot be told it is null', () => {
  assert.equal(filesystemInstance('/dev/shm'), null);
  assert.equal(filesystemInstance('/no such path'), null);
});
