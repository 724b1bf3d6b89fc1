import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { requires } from '../support/requires.ts';

const SCRIPT = fileURLToPath(new URL('../../scripts/lab', import.meta.url));
const TIMEOUT_MS = 3_600_000;

const skip = requires(
  ...['root', '/dev/net/tun', 'linux.uml', 'dmsetup', 'iscsid', 'modprobe', 'tini', 'tc', 'mkfs.ext4'],
);

/** Runs scenarios of the lab (lab/main.ts) in namespaces of their own; everything ends with the process. */
async function lab(...scenarios: string[]): Promise<void> {
  const child = spawn(SCRIPT, scenarios, { stdio: ['ignore', 'pipe', 'pipe'], timeout: TIMEOUT_MS });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  const exitCode = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  assert.equal(exitCode, 0, output);
}

test('a machine moves to a worker of the kernel plane, on a kernel that has it', { skip }, () =>
  lab('userspace-to-kernel'),
);

test(
  'every scenario of the lab',
  { skip: skip || (process.env.GODWIT_LONG === '1' ? false : 'GODWIT_LONG=1 runs it') },
  () => lab('--all'),
);
