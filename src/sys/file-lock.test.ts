import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { isGodwitError } from '../base/errors.ts';
import { lockExclusive, unlock } from './file-lock.ts';

test('one process at a time; the lock goes with unlock and with close', (t) => {
  const path = join(scratchDir(t), 'file');
  const first = openSync(path, 'w');
  const second = openSync(path, 'r');
  t.after(() => closeSync(second));
  const locked = (error: unknown) => isGodwitError(error, 'SYS_LOCKED');
  lockExclusive(first);
  lockExclusive(first);
  assert.throws(() => lockExclusive(second), locked);
  unlock(first);
  lockExclusive(second);
  assert.throws(() => lockExclusive(first), locked);
  unlock(second);
  unlock(second);
  lockExclusive(first);
  closeSync(first);
  lockExclusive(second);
});
