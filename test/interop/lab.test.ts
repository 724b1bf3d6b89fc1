import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ALONE, SCENARIOS } from '../../lab/scenarios/index.ts';
import { requires } from '../support/requires.ts';

const SCRIPT = fileURLToPath(new URL('../../scripts/lab', import.meta.url));
const TIMEOUT_MS = 800_000;
/** Measurements, and the two that take longest. */
const LONG = new Set([...ALONE, 'cut-60s', 'target-worker-dies']);

<<<<<<< HEAD
/** Under QEMU, where all take minutes: the guests themselves, and dm-clone, dm-crypt and iSCSI of Debian's kernel at work. */
const QEMU = ['guests', 'encrypted'];
const QEMU_KERNEL = fileURLToPath(new URL('../../.cache/lab-kernel/vmlinuz', import.meta.url));

const COMMON = [
  ...['root', '/dev/net/tun', '/dev/fuse', 'dmsetup', 'iscsid', 'modprobe', 'tini', 'tc', 'mkfs.ext4'],
];
const skip = requires(...COMMON, 'linux.uml');
const long = process.env.GODWIT_LONG === '1' ? false : 'GODWIT_LONG=1 runs it';
// Not before there is a reason to look for programs that only it wants.
const skipQemu = long || requires(...COMMON, 'qemu-system-x86_64', QEMU_KERNEL);

for (const scenario of Object.keys(SCENARIOS)) {
  test(`lab: ${scenario}`, { skip: skip || (scenario === DEFAULT ? false : long) }, () => passes(scenario));
}

for (const scenario of QEMU) {
  test(`lab under QEMU: ${scenario}`, { skip: skipQemu }, () => passes('--qemu', scenario));
}

async function passes(...words: string[]): Promise<void> {
  const child = spawn(SCRIPT, words, { stdio: ['ignore', 'pipe', 'pipe'], timeout: TIMEOUT_MS });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const exitCode = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  assert.equal(exitCode, 0, output);
}
=======
const skip = requires(
  ...[
    'root',
    '/dev/net/tun',
    '/dev/fuse',
    'linux.uml',
    'dmsetup',
    'iscsid',
    'cryptsetup',
    'modprobe',
    'tini',
    'tc',
    'mkfs.ext4',
  ],
);
const skipLong = skip || (process.env.GODWIT_LONG === '1' ? false : 'GODWIT_LONG=1 runs it');

/** They wait more than they work: two at a time. Each is in namespaces of its own. */
describe('the lab', { concurrency: 2 }, () => {
  for (const scenario of Object.keys(SCENARIOS)) {
    it(scenario, { skip: LONG.has(scenario) ? skipLong : skip }, async () => {
      const child = spawn(SCRIPT, [scenario], { stdio: ['ignore', 'pipe', 'pipe'], timeout: TIMEOUT_MS });
      let output = '';
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
      const exitCode = await new Promise((resolve, reject) => {
        child.once('error', reject);
        child.once('close', resolve);
      });
      assert.equal(exitCode, 0, output);
    });
  }
});
>>>>>>> main
