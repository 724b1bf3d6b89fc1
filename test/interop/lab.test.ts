import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { SCENARIOS } from '../../lab/scenarios/index.ts';
import { requires } from '../support/requires.ts';

const SCRIPT = fileURLToPath(new URL('../../scripts/lab', import.meta.url));
const TIMEOUT_MS = 800_000;
/** The one that shows most in a minute; all the others take long. */
const DEFAULT = 'userspace-to-kernel';

const skip = requires(
  ...[
    'root',
    '/dev/net/tun',
    '/dev/fuse',
    'linux.uml',
    'dmsetup',
    'iscsid',
    'modprobe',
    'tini',
    'tc',
    'mkfs.ext4',
  ],
);
const skipLong = skip || (process.env.GODWIT_LONG === '1' ? false : 'GODWIT_LONG=1 runs it');

for (const scenario of Object.keys(SCENARIOS)) {
  test(`lab: ${scenario}`, { skip: scenario === DEFAULT ? skip : skipLong }, async () => {
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
