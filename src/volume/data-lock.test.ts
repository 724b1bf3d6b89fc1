import assert from 'node:assert/strict';
import { closeSync, openSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { isDataLocked, lockData } from './data-lock.ts';

test('one has the lock, until it lets go; who looks does not disturb', (t) => {
  const path = join(scratchDir(t), 'data.raw');
  assert.equal(isDataLocked(path), false, 'there is nothing');
  writeFileSync(path, 'data');
  const lock = lockData(path);
  assert.equal(isDataLocked(path), true);
  assert.throws(
    () => lockData(path),
    (error) => isGodwitError(error, 'VOLUME_LOCKED'),
  );
  lock.release();
  lock.release();
  assert.equal(isDataLocked(path), false);
});

test('the lock is of the file that is open, not of the name that it had', (t) => {
  const dir = scratchDir(t);
  const path = join(dir, 'data.raw');
  writeFileSync(path, 'data');
  const fd = openSync(path, 'r+');
  t.after(() => closeSync(fd));
  const first = lockData(path);
  first.checkIs(fd);
  first.release();
  // Restored under the same name while a server in standby has the old one open.
  writeFileSync(join(dir, 'other'), 'data');
  renameSync(join(dir, 'other'), path);
  const second = lockData(path);
  t.after(() => second.release());
  assert.throws(
    () => second.checkIs(fd),
    (error) => isGodwitError(error, 'VOLUME_DATA_REPLACED'),
  );
});
