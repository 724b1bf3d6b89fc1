import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { constants, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { systemConfigTree } from './config-tree.ts';

test('objects, attributes and links; what is done already, and what is gone, is no error', async (t) => {
  const folder = scratchDir(t);
  const tree = systemConfigTree(systemClock);
  const object = join(folder, 'object');
  await tree.makeObject(object);
  await tree.makeObject(object);
  writeFileSync(join(object, 'attribute'), 'was');
  await tree.write(join(object, 'attribute'), 'now');
  assert.equal(readFileSync(join(object, 'attribute'), 'utf8'), 'now');
  assert.equal(await tree.read(join(object, 'attribute')), 'now');
  await tree.link(object, join(folder, 'link'));
  await tree.link(object, join(folder, 'link'));
  assert.deepEqual(await tree.list(folder), ['link', 'object']);
  await tree.unlink(join(folder, 'link'));
  await tree.unlink(join(folder, 'link'));
  assert.deepEqual(await tree.list(join(folder, 'link')), []);
  await assert.rejects(tree.removeObject(object), { code: 'ENOTEMPTY' });
  await tree.unlink(join(object, 'attribute'));
  await tree.removeObject(object);
  await tree.removeObject(object);
  await assert.rejects(tree.write(join(object, 'attribute'), 'x'), { code: 'ENOENT' });
});

test('a kernel that does not come back is an error in time', async (t) => {
  const fifo = join(scratchDir(t), 'attribute');
  execFileSync('mkfifo', [fifo]);
  // Nobody reads: the open for writing waits, as a write to configfs does for a device.
  const stuck = systemConfigTree(systemClock, 50).write(fifo, '1');
  await assert.rejects(
    stuck,
    (error) => isGodwitError(error, 'HOST_CONFIGFS_STUCK') && error.values?.path === fifo,
  );
  // Lets the thread go.
  openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK);
});
