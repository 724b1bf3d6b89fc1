import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PROOFS, SCENARIOS } from '../../lab/scenarios/index.ts';
import { requires } from '../support/requires.ts';

const SCRIPT = fileURLToPath(new URL('../../scripts/lab', import.meta.url));
const TIMEOUT_MS = 800_000;
/** What the drains of PostgreSQL show as well; `npm run lab` has them. */
const COVERED = new Set(['guests', 'kernel-to-kernel', 'userspace-to-kernel', 'kernel-to-userspace']);
const QEMU_TIMEOUT_MS = 1_800_000;

/** Under QEMU, where all take minutes: the guests themselves, and dm-clone, iSCSI and dm-crypt of Debian's kernel at work. */
const QEMU = ['guests', 'kernel-to-kernel', 'luks2'];
const QEMU_KERNEL = fileURLToPath(new URL('../../.cache/lab-kernel/vmlinuz', import.meta.url));

const COMMON = [
  ...[
    'root',
    '/dev/net/tun',
    '/dev/fuse',
    'dmsetup',
    'iscsid',
    'cryptsetup',
    'modprobe',
    'tini',
    'tc',
    'mkfs.ext4',
  ],
];
const skip = requires(...COMMON, 'linux.uml');
const notAsked = process.env.GODWIT_LONG === '1' ? false : 'GODWIT_LONG=1 runs it';
const skipLong = skip || notAsked;
// Not before there is a reason to look for programs that only it wants.
const skipQemu = notAsked || requires(...COMMON, 'qemu-system-x86_64', QEMU_KERNEL);

/** They wait more than they work: two at a time. Each is in namespaces of its own. */
describe('the lab', { concurrency: 2 }, () => {
  for (const scenario of Object.keys(SCENARIOS)) {
    it(scenario, { skip: PROOFS.includes(scenario) && !COVERED.has(scenario) ? skip : skipLong }, () =>
      passes([scenario], TIMEOUT_MS),
    );
  }
});

describe('the lab under QEMU', () => {
  for (const scenario of QEMU) {
    it(scenario, { skip: skipQemu }, () => passes(['--qemu', scenario], QEMU_TIMEOUT_MS));
  }
});

async function passes(words: string[], timeoutMs: number): Promise<void> {
  const child = spawn(SCRIPT, words, { stdio: ['ignore', 'pipe', 'pipe'], timeout: timeoutMs });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const exitCode = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  assert.equal(exitCode, 0, output);
}
