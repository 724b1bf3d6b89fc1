import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { requires } from '../support/requires.ts';
import { mayLack } from '../support/skips.ts';

const SCRIPT = fileURLToPath(new URL('../../scripts/lab', import.meta.url));
/** Of lab/main.ts: a guest froze twice, which says nothing. */
const EXIT_UNFINISHED = 3;

const skip = requires(
  ...['root', '/dev/net/tun', '/dev/fuse', 'dmsetup', 'iscsid', 'cryptsetup', 'modprobe', 'tini', 'tc'],
  ...['mkfs.ext4', 'linux.uml'],
);

/**
 * The short proof of the kernel plane, with dm-clone and open-iscsi of a real kernel: of the scenarios with a
 * move the one with one guest. `npm run lab` has all that it is held to.
 */
it('a machine moves to a kernel of the lab', { skip }, async (t) => {
  const child = spawn(SCRIPT, ['userspace-to-kernel'], { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGTERM'));
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const exitCode = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const lack = mayLack('guest that goes on', exitCode !== EXIT_UNFINISHED);
  if (lack) return t.skip(lack);
  assert.equal(exitCode, 0, output);
});
