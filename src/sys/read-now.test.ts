import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, fdatasyncSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { mayLack } from '../../test/support/skips.ts';
import { errnoOf } from './libc.ts';
import { readNow } from './read-now.ts';

test('readNow reads what is cached and refuses what is not', (t) => {
  const path = join(scratchDir(t), 'file');
  const fd = openSync(path, 'w+');
  t.after(() => closeSync(fd));
  const content = Buffer.alloc(1024 * 1024);
  for (let i = 0; i < content.length; i += 4) content.writeUInt32LE(i, i);
  writeSync(fd, content, 0, content.length, 0);

  const pool = new Uint8Array(64 * 1024);
  const into = pool.subarray(4096, 4096 + 8192);
  const lack = mayLack('reads that do not wait', readNow(fd, into, 65536));
  if (lack) return t.skip(lack);
  assert.deepEqual(Buffer.from(into), content.subarray(65536, 65536 + 8192));
  assert.ok(
    pool.subarray(0, 4096).every((byte) => byte === 0),
    'bytes before the view stay',
  );
  assert.ok(
    pool.subarray(4096 + 8192).every((byte) => byte === 0),
    'bytes after the view stay',
  );
  assert.equal(readNow(fd, into, content.length - 4096), false, 'the end of the file is a short read');
  assert.equal(readNow(fd, new Uint8Array(0), 0), true);
  assert.throws(
    () => readNow(-1, into, 0),
    (error) => errnoOf(error) === 'EBADF',
  );

  fdatasyncSync(fd);
  execFileSync('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
  const cold = new Uint8Array(content.length);
  if (readNow(fd, cold, 0)) {
    t.diagnostic('the page cache did not let go of the file: the refusal was not seen');
    return;
  }
  readSync(fd, cold, 0, cold.length, 0);
  assert.equal(readNow(fd, cold, 0), true, 'after an ordinary read it is cached');
  assert.deepEqual(Buffer.from(cold), content);
});
