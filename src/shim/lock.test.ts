import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test from 'node:test';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { cleanUpAfterDeadShim } from './cleanup.ts';
import { isShimLocked, shimLockName } from './lock.ts';
import { SHIM_FILES } from './protocol.ts';

test('a clean-up after a dead shim leaves the files of the next one, which was started meanwhile', {
  skip: requires('root'),
}, async (t) => {
  const dir = scratchDir(t);
  const socket = join(dir, SHIM_FILES.socket);
  writeFileSync(socket, '');
  assert.equal(await isShimLocked(dir), false);
  const next = createServer((each) => each.destroy());
  await new Promise<void>((resolve) => next.listen(shimLockName(dir), resolve));
  try {
    assert.equal(await isShimLocked(dir), true);
    await cleanUpAfterDeadShim(dir, systemClock, silentLogger);
    assert.ok(existsSync(socket), 'the next one is to be found');
  } finally {
    await new Promise((resolve) => next.close(resolve));
  }
  await cleanUpAfterDeadShim(dir, systemClock, silentLogger);
  assert.ok(!existsSync(socket));
});
