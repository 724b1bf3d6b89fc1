import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { bootId } from './boot-id.ts';
import { fileSystemOf } from './file-system.ts';
import { ioctl } from './ioctl.ts';
import { errnoName, errnoOf } from './libc.ts';

/** include/uapi/linux/fs.h: how many bytes of a file lie ahead of the offset. */
const FIONREAD = 0x541b;

test('ioctl fills the caller’s bytes and names its errors', (t) => {
  const path = join(scratchDir(t), 'file');
  const fd = openSync(path, 'w+');
  t.after(() => closeSync(fd));
  writeSync(fd, Buffer.alloc(1234), 0, 1234, 0);
  const argument = new Uint8Array(4);
  assert.equal(ioctl(fd, FIONREAD, argument), 0);
  assert.equal(new DataView(argument.buffer).getUint32(0, true), 1234);
  assert.throws(
    () => ioctl(fd, 0xdeadbeef, 1),
    (error) => errnoOf(error) === 'ENOTTY',
  );
});

test('errno names are those that Node uses, and those of Linux where it has none', () => {
  assert.deepEqual([28, 11, 95, 117, 9999].map(errnoName), [
    'ENOSPC',
    'EAGAIN',
    'ENOTSUP',
    'EUCLEAN',
    'E9999',
  ]);
});

test('the boot id is a UUID and stays', () => {
  assert.match(bootId(), /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  assert.equal(bootId(), readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim());
});

test('the filesystem of a path is named and has its free space in bytes', async () => {
  assert.match((await fileSystemOf('/proc')).type, /^(0x9fa0|fuse)$/);
  const root = await fileSystemOf('/');
  const stats = await statfs('/');
  assert.equal(root.totalBytes, stats.blocks * stats.bsize);
  assert.ok(root.availableBytes <= root.totalBytes);
  await assert.rejects(fileSystemOf('/no such folder'), (error) => errnoOf(error) === 'ENOENT');
});
