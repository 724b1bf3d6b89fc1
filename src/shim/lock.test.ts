import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import test from 'node:test';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { cleanUpAfterDeadShim } from './cleanup.ts';
import { findShim } from './client.ts';
import { isShimLocked, shimLockName } from './lock.ts';
import { SHIM_FILES } from './protocol.ts';

test('a shim that holds its folder is not cleaned up after, whatever its files say', {
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
    assert.equal(await findShim(dir), 'running');
    await assert.rejects(cleanUpAfterDeadShim(dir, systemClock, silentLogger), (error) =>
      isGodwitError(error, 'MACHINE_SHIM_ALIVE'),
    );
    assert.ok(existsSync(socket));
  } finally {
    await new Promise((resolve) => next.close(resolve));
  }
  await cleanUpAfterDeadShim(dir, systemClock, silentLogger);
  assert.ok(!existsSync(socket));
});
