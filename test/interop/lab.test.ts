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
