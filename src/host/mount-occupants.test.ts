import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { withMountsOf } from '../../test/support/mount-copy.ts';
import { until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { systemClock } from '../base/clock.ts';
import { findOccupants, heldError, isFrozen } from './mount-occupants.ts';

const skip = requires('root', 'mkfs.ext4', 'mount', 'umount', 'losetup', 'unshare', 'fsfreeze');

/**
 * A filesystem of its own. Occupants go first, then a freeze, then the mount; all in one hook, since hooks run
 * in the order in which they were set.
 */
function filesystem(t: TestContext): { place: string; occupants: ChildProcess[] } {
  const dir = mkdtempSync(join(tmpdir(), 'gw-h-'));
  const occupants: ChildProcess[] = [];
  const place = join(dir, 'fs');
  t.after(async () => {
    for (const occupant of occupants) {
      const exited = new Promise((resolve) => occupant.once('exit', resolve));
      if (occupant.kill('SIGKILL')) await exited;
    }
    spawnSync('fsfreeze', ['--unfreeze', place]);
    spawnSync('umount', [place]);
    rmSync(dir, { recursive: true, force: true });
  });
  mkdirSync(place);
  const image = join(dir, 'image');
  writeFileSync(image, '');
  truncateSync(image, 32 * 2 ** 20);
  execFileSync('mkfs.ext4', ['-q', image]);
  execFileSync('mount', ['-o', 'loop', image, place]);
  return { place, occupants };
}

test('an open file, a working folder and a copy of the mount are found with the process that has them, and nobody else is', {
  skip,
}, async (t) => {
  const { place, occupants } = filesystem(t);
  writeFileSync(join(place, 'file'), 'x');
  assert.deepEqual(await findOccupants(place, new Set()), []);
  const hold = (script: string) => occupants.push(spawn('sh', ['-c', script], { stdio: 'ignore' }));
  hold(`exec 9<${place}/file; exec sleep 1000`);
  hold(`cd ${place}; exec sleep 1000`);
  const [program, ...args] = withMountsOf(place);
  occupants.push(spawn(program, [...args, 'sleep', '1000'], { stdio: 'ignore' }));
  const found = await until('the three', async () => {
    const all = await findOccupants(place, new Set());
    return all.length === 3 && all.every(({ program }) => program === 'sleep') ? all : null;
  });
  const byPid = new Map(found.map(({ pid, how }) => [pid, how]));
  assert.deepEqual(
    occupants.map(({ pid }) => byPid.get(pid!)),
    ['file', 'folder', 'mount'],
  );
  const error = heldError(place, found)!;
  for (const { pid } of occupants) assert.match(error.message, new RegExp(`sleep \\(pid ${pid}, `));
  assert.deepEqual(await findOccupants(place, new Set(occupants.map(({ pid }) => pid!))), []);
  assert.deepEqual(await findOccupants(place, new Set([process.pid])), [], 'what one of ours has started');
  assert.deepEqual(await findOccupants(join(place, 'nothing'), new Set()), []);
});

test('a frozen filesystem is told from one that answers', { skip }, async (t) => {
  const { place } = filesystem(t);
  assert.equal(await isFrozen(place, systemClock), false);
  execFileSync('fsfreeze', ['--freeze', place]);
  assert.equal(await isFrozen(place, systemClock), true);
  execFileSync('fsfreeze', ['--unfreeze', place]);
  assert.equal(await isFrozen(place, systemClock), false);
});
