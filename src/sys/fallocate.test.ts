import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { allocate, allocateNow, punchHole, punchHoleNow } from './fallocate.ts';
import { type FileExtent, fileExtents } from './file-extents.ts';
import { errnoOf } from './libc.ts';

const MIB = 1024 * 1024;

function scratchFile(t: TestContext, lengthBytes: number): number {
  const fd = openSync(join(scratchDir(t), 'file'), 'w+');
  t.after(() => closeSync(fd));
  if (lengthBytes > 0) writeSync(fd, Buffer.alloc(lengthBytes, 7), 0, lengthBytes, 0);
  return fd;
}

const bytesAt = (fd: number, offset: number, length: number) => {
  const into = Buffer.alloc(length);
  readSync(fd, into, 0, length, offset);
  return new Set(into);
};

for (const [name, punch] of [
  ['punchHole', punchHole],
  ['punchHoleNow', async (...args: Parameters<typeof punchHoleNow>) => punchHoleNow(...args)],
] as const) {
  test(`${name} gives the space back, reads as zeros and keeps the length`, async (t) => {
    const fd = scratchFile(t, 4 * MIB);
    const before = fstatSync(fd).blocks;
    await punch(fd, MIB, 2 * MIB);
    assert.equal(fstatSync(fd).size, 4 * MIB);
    assert.equal(before - fstatSync(fd).blocks, (2 * MIB) / 512);
    assert.deepEqual(bytesAt(fd, MIB, 2 * MIB), new Set([0]));
    assert.deepEqual(bytesAt(fd, 0, MIB), new Set([7]));
    assert.deepEqual(bytesAt(fd, 3 * MIB, MIB), new Set([7]));
  });
}

test('a hole beyond 4 GiB lands where it should', async (t) => {
  const fd = scratchFile(t, 0);
  const offset = 5 * 1024 * MIB;
  writeSync(fd, Buffer.alloc(8192, 9), 0, 8192, offset);
  await punchHole(fd, offset, 4096);
  assert.deepEqual(bytesAt(fd, offset, 4096), new Set([0]));
  assert.deepEqual(bytesAt(fd, offset + 4096, 4096), new Set([9]));
});

test('allocate reserves space, and makes the file longer', async (t) => {
  const fd = scratchFile(t, MIB);
  await allocate(fd, MIB, MIB);
  assert.equal(fstatSync(fd).size, 2 * MIB);
  allocateNow(fd, 2 * MIB, MIB);
  assert.equal(fstatSync(fd).size, 3 * MIB);
  assert.ok(fstatSync(fd).blocks * 512 >= 3 * MIB);
});

test('failures carry the name of the errno, from the pool too', async (t) => {
  const readOnly = openSync(join(scratchDir(t), 'file'), 'a+');
  t.after(() => closeSync(readOnly));
  const einval = (error: unknown) => isGodwitError(error, 'SYS_CALL_FAILED') && errnoOf(error) === 'EINVAL';
  await assert.rejects(punchHole(readOnly, 0, 0), einval);
  assert.throws(() => punchHoleNow(readOnly, 0, 0), einval);
  await assert.rejects(punchHole(-1, 0, 4096), (error) => errnoOf(error) === 'EBADF');
});

test('fileExtents lists holes and data in order without gaps', async (t) => {
  const fd = scratchFile(t, 0);
  writeSync(fd, Buffer.alloc(MIB, 1), 0, MIB, MIB);
  writeSync(fd, Buffer.alloc(MIB, 1), 0, MIB, 6 * MIB);
  const list = (offset: number, length: number) =>
    [...fileExtents(fd, offset, length)].map(
      (extent: FileExtent) => [extent.kind, extent.offsetBytes / MIB, extent.lengthBytes / MIB] as const,
    );
  assert.deepEqual(list(0, 16 * MIB), [
    ['hole', 0, 1],
    ['data', 1, 1],
    ['hole', 2, 4],
    ['data', 6, 1],
    ['hole', 7, 9],
  ]);
  assert.deepEqual(list(1.5 * MIB, MIB), [
    ['data', 1.5, 0.5],
    ['hole', 2, 0.5],
  ]);
  assert.deepEqual(list(8 * MIB, MIB), [['hole', 8, 1]]);
  assert.deepEqual(list(0, 0), []);
  assert.throws(
    () => [...fileExtents(-1, 0, 4096)],
    (error) => errnoOf(error) === 'EBADF',
  );
});
