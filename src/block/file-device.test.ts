import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { patient } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { alignExtents, FileDevice } from './file-device.ts';

const MIB = 1024 * 1024;
/** include/uapi/asm-generic/fcntl.h */
const O_PATH = 0o10000000;

for (const blockBytes of [512, 4096]) {
  testConformance(`file, blocks of ${blockBytes}`, {
    open: async (t, { lengthBytes, writable, content }) => {
      const path = join(scratchDir(t), 'data.raw');
      const created = await FileDevice.create(path, { lengthBytes, blockBytes });
      t.after(() => created.close());
      if (content !== null) await created.write(0, content);
      if (writable) return created;
      const device = await FileDevice.open({ file: path, lengthBytes, blockBytes, writable });
      t.after(() => device.close());
      return device;
    },
  });
}

test('a file that is shorter than its device is refused, and named with both lengths', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  writeFileSync(path, Buffer.alloc(8192));
  const short = (fileLengthBytes: number) => (error: unknown) =>
    isGodwitError(error, 'BLOCK_SHORT_FILE') &&
    error.values.lengthBytes === 8192 &&
    error.values.fileLengthBytes === fileLengthBytes;
  const device = await FileDevice.open({ file: path, lengthBytes: 8192 });
  t.after(() => device.close());
  truncateSync(path, 6144);
  await device.read(4096, new Uint8Array(2048));
  await assert.rejects(device.read(4096, new Uint8Array(4096)), short(6144));
  await assert.rejects(FileDevice.open({ file: path, lengthBytes: 8192 }), short(6144));
});

test('a missing file and one that exists already are typed errors', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  const failed = (errno: string) => (error: unknown) =>
    isGodwitError(error, 'BLOCK_OPEN_FAILED') && error.values.errno === errno;
  await assert.rejects(FileDevice.open({ file: path, lengthBytes: 4096 }), failed('ENOENT'));
  await (await FileDevice.create(path, { lengthBytes: 4096 })).close();
  await assert.rejects(FileDevice.create(path, { lengthBytes: 4096 }), failed('EEXIST'));
  assert.equal(statSync(path).mode & 0o777, 0o600);
});

test('a device on a descriptor owns it and exposes it; a longer file is fine and its rest stays', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  writeFileSync(path, Buffer.alloc(3 * 4096, 5));
  const fd = openSync(path, 'r+');
  const device = await FileDevice.open({ file: fd, lengthBytes: 2 * 4096 });
  assert.equal(device.fileDescriptor, fd);
  await device.discard(0, 2 * 4096);
  await device.close();
  assert.throws(() => closeSync(fd), { code: 'EBADF' });
  const expected = Buffer.alloc(3 * 4096).fill(5, 2 * 4096);
  assert.deepEqual(readFileSync(path), expected);
});

test('discard and writeZeroes give space back', async (t) => {
  const device = await FileDevice.create(join(scratchDir(t), 'data.raw'), { lengthBytes: 1024 * MIB });
  t.after(() => device.close());
  assert.ok((await device.allocatedBytes()) <= 4096, 'a new file is all hole');
  await device.write(0, new Uint8Array(4 * MIB).fill(1));
  await device.flush();
  assert.ok((await device.allocatedBytes()) >= 4 * MIB);
  await device.discard(0, MIB);
  await device.writeZeroes(MIB, 2 * MIB);
  await device.flush();
  const left = await device.allocatedBytes();
  assert.ok(left >= MIB && left < 1.1 * MIB, `${left} bytes left`);
});

test('close waits for the calls in flight', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  const device = await FileDevice.create(path, { lengthBytes: 16 * MIB });
  const bytes = new Uint8Array(MIB).fill(3);
  const writes = Array.from({ length: 16 }, (_, i) => device.write(i * MIB, bytes));
  await device.close();
  await Promise.all(writes);
  assert.ok(readFileSync(path).every((byte) => byte === 3));
});

test('extents with borders inside a block: any data makes the block data', () => {
  const extents = [
    { offsetBytes: 4096, lengthBytes: 1024, kind: 'hole' },
    { offsetBytes: 5120, lengthBytes: 1024, kind: 'data' },
    { offsetBytes: 6144, lengthBytes: 1024, kind: 'hole' },
    { offsetBytes: 7168, lengthBytes: 2048, kind: 'data' },
    { offsetBytes: 9216, lengthBytes: 15360, kind: 'hole' },
  ] as const;
  assert.deepEqual(alignExtents(extents, 4096, 20480, 4096, 8), [
    { offsetBytes: 4096, lengthBytes: 8192, kind: 'data' },
    { offsetBytes: 12288, lengthBytes: 12288, kind: 'hole' },
  ]);
  assert.deepEqual(alignExtents(extents, 4096, 20480, 1024, 2), [
    { offsetBytes: 4096, lengthBytes: 1024, kind: 'hole' },
    { offsetBytes: 5120, lengthBytes: 1024, kind: 'data' },
  ]);
  const tail = [
    { offsetBytes: 0, lengthBytes: 9216, kind: 'hole' },
    { offsetBytes: 9216, lengthBytes: 7168, kind: 'data' },
  ] as const;
  assert.deepEqual(alignExtents(tail, 0, 16384, 4096, 8), [
    { offsetBytes: 0, lengthBytes: 8192, kind: 'hole' },
    { offsetBytes: 8192, lengthBytes: 8192, kind: 'data' },
  ]);
});

test('after a flush failed no later one claims success', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  const device = await FileDevice.create(path, { lengthBytes: 4096 });
  await device.write(0, new Uint8Array(4096).fill(1));
  closeSync(device.fileDescriptor);
  const failed = (error: unknown) => isGodwitError(error, 'BLOCK_IO') && error.values.errno === 'EBADF';
  await assert.rejects(device.flush(), failed);
  // A good descriptor of the same number: the disk is well again, and the data of before is gone all the
  // same.
  const others: number[] = [];
  while (others.at(-1) !== device.fileDescriptor && others.length < 100) others.push(openSync(path, 'r+'));
  for (const fd of others) if (fd !== device.fileDescriptor) closeSync(fd);
  await device.write(0, new Uint8Array(4096).fill(2));
  await assert.rejects(device.flush(), failed);
  await device.close();
});

test('a write-back that fails is told', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  writeFileSync(path, Buffer.alloc(8192));
  // What can be looked at and not written back (open(2)): EBADF.
  const device = await FileDevice.open({ file: openSync(path, O_PATH), lengthBytes: 8192 });
  t.after(() => device.close());
  const ranges = [0, 4096].map((offsetBytes) => ({ offsetBytes, lengthBytes: 4096 }));
  const failed = (error: unknown) => isGodwitError(error) && error.values.offsetBytes === 0;
  await assert.rejects(device.writeBack(ranges), failed);
  await assert.rejects(device.beginWriteBack(ranges), failed);
});

test('without holes in the filesystem, zeros are written', { skip: requires('root', 'mount') }, async (t) => {
  const folder = join(scratchDir(t), 'ramfs');
  mkdirSync(folder);
  execFileSync('mount', ['-t', 'ramfs', 'ramfs', folder], { timeout: patient(30_000) });
  try {
    const device = await FileDevice.create(join(folder, 'data.raw'), { lengthBytes: 4 * MIB });
    try {
      await device.write(0, new Uint8Array(4 * MIB).fill(1));
      await device.discard(4096, 3 * MIB);
      await device.writeZeroes(4 * MIB - 512, 512);
      const expected = Buffer.alloc(4 * MIB, 1)
        .fill(0, 4096, 4096 + 3 * MIB)
        .fill(0, 4 * MIB - 512);
      assert.equal(Buffer.compare(readFileSync(join(folder, 'data.raw')), expected), 0);
      // Work of many steps, and close has to wait for the last.
      const zeroing = device.writeZeroes(0, 4 * MIB);
      await device.close();
      await zeroing;
      assert.equal(Buffer.compare(readFileSync(join(folder, 'data.raw')), Buffer.alloc(4 * MIB)), 0);
    } finally {
      await device.close();
    }
  } finally {
    // Here and not in t.after: those run in the order in which they were registered, so the folder would go
    // first.
    execFileSync('umount', [folder], { timeout: patient(30_000) });
  }
});

test('a full disk is BLOCK_NO_SPACE, and freed space can be used again', {
  skip: requires('root', 'mount'),
}, async (t) => {
  const folder = join(scratchDir(t), 'small');
  mkdirSync(folder);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder], { timeout: patient(30_000) });
  try {
    const device = await FileDevice.create(join(folder, 'data.raw'), { lengthBytes: 16 * MIB });
    try {
      const full = (error: unknown) => isGodwitError(error, 'BLOCK_NO_SPACE');
      await assert.rejects(device.write(0, new Uint8Array(4 * MIB)), full);
      await device.discard(0, 4 * MIB);
      await device.write(8 * MIB, new Uint8Array(MIB / 2).fill(1));
    } finally {
      await device.close();
    }
  } finally {
    // Here and not in t.after: those run in the order in which they were registered, so the folder would go
    // first.
    execFileSync('umount', [folder], { timeout: patient(30_000) });
  }
});

test('writeNow writes what is read afterwards, and says no where write would reject', async (t) => {
  const path = join(scratchDir(t), 'data.raw');
  const device = await FileDevice.create(path, { lengthBytes: MIB });
  assert.equal(device.writeNow(4096, new Uint8Array(512).fill(7)), true);
  const block = Buffer.alloc(512);
  await device.read(4096, block);
  assert.ok(block.every((byte) => byte === 7));
  assert.equal(device.writeNow(100, new Uint8Array(512)), false);
  assert.equal(device.writeNow(MIB, new Uint8Array(512)), false);
  await device.close();
  assert.equal(device.writeNow(0, new Uint8Array(512)), false);
  const readOnly = await FileDevice.open({ file: path, lengthBytes: MIB, writable: false });
  assert.equal(readOnly.writeNow(0, new Uint8Array(512)), false);
  await readOnly.close();
});
