import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { boundDirtyPages, dirtyBoundOf, dirtyBytesMax } from './write-back.ts';

test('the bound of a device is written where the kernel has it, and lifted; a kernel without it is left alone', (t) => {
  const bdi = scratchDir(t);
  assert.equal(statSync('/dev/null').rdev, 0x103, 'null(4) is 1:3');
  assert.equal(boundDirtyPages('/dev/null', 4096, bdi), false);
  const dir = join(bdi, '1:3');
  mkdirSync(dir);
  for (const name of ['strict_limit', 'max_bytes', 'max_ratio']) writeFileSync(join(dir, name), '');
  const read = (name: string) => readFileSync(join(dir, name), 'utf8');
  assert.equal(boundDirtyPages('/dev/null', 8 * 2 ** 20, bdi), true);
  assert.deepEqual([read('max_bytes'), read('strict_limit')], ['8388608', '1']);
  assert.equal(dirtyBoundOf('/dev/null', bdi), 8 * 2 ** 20);
  assert.equal(boundDirtyPages('/dev/null', null, bdi), true);
  assert.deepEqual([read('max_ratio'), read('strict_limit')], ['100', '0']);
  assert.equal(dirtyBoundOf('/dev/null', bdi), null);
  assert.equal(boundDirtyPages('/dev/godwit-no-such-thing', null, bdi), false);
});

test('the kernel says how much may wait in its page cache', () => {
  const bytes = dirtyBytesMax();
  assert.ok(bytes !== null && bytes > 2 ** 20, String(bytes));
});
