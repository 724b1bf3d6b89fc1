import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { ApiClient } from '../../src/api/client.ts';
import { patient, until } from '../support/patience.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TOOLS = ['.bin', 'typescript', '@typescript', '@types/node', 'undici-types'];
const TIMEOUT = { timeout: patient(60_000) };

/** What docs/iscsi.md and docs/nbd.md show, as a program of somebody else. */
const CONSUMER = `
import { IscsiInitiator, IscsiTarget, MemoryDevice, silentLogger, systemClock, systemRandom } from 'godwit/iscsi';
import { NbdClient, NbdServer } from 'godwit/nbd';

const parts = { clock: systemClock, random: systemRandom, logger: silentLogger };
const device = new MemoryDevice({ lengthBytes: 2 ** 20, content: Buffer.alloc(4096, 5) });
const target = await IscsiTarget.listen({ host: '127.0.0.1', port: 0, ...parts });
const targetIqn = 'iqn.2026-01.com.example:disk';
const initiatorIqn = 'iqn.2026-01.com.example:reader';
const share = target.addExport({ targetIqn, device, serial: 'disk', generation: 1, readOnly: false });
share.grant({ initiatorIqn, chap: null, generation: 1 });
const disk = await IscsiInitiator.connect({
  portals: [{ host: '127.0.0.1', port: target.port }],
  targetIqn,
  initiatorIqn,
  ...parts,
});
const into = Buffer.alloc(4096);
await disk.read(0, into);
await disk.close();
await target.close();
process.stdout.write(String(into[0]) + ' ' + typeof NbdClient.connect + ' ' + typeof NbdServer);
`;

/** A worker of the package answers and ends in good order. */
async function workerServes(t: TestContext, directory: string, program: string): Promise<void> {
  const token = 'the-token-of-a-package';
  const flags = ['--name', 'alone', '--data', join(directory, 'data'), '--listen', '127.0.0.1:0'];
  const worker = spawn(program, ['worker', ...flags, '--token', token], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => worker.kill('SIGKILL'));
  let output = '';
  for (const stream of [worker.stdout, worker.stderr]) stream.on('data', (chunk) => (output += chunk));
  const url = await until('the worker of the package to listen', () => {
    assert.equal(worker.exitCode, null, output);
    return /listens on (\S+)/.exec(output)?.[1] ?? null;
  });
  const client = new ApiClient({ url, token, timeoutMs: TIMEOUT.timeout });
  assert.deepEqual(await client.listMachines(), []);
  worker.kill('SIGTERM');
  const [exitCode] = await once(worker, 'exit');
  assert.equal(exitCode, 0, output);
}

test('the package works below node_modules with its own dependencies: both libraries, their types, the program, a worker', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'gw-package-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  await run(join(ROOT, 'scripts/pack'), [directory], TIMEOUT);
  const [archive] = readdirSync(directory).filter((name) => name.endsWith('.tgz'));
  const modules = join(directory, 'node_modules');
  mkdirSync(join(modules, 'godwit'), { recursive: true });
  await run('tar', [
    '-xzf',
    join(directory, archive!),
    '-C',
    join(modules, 'godwit'),
    '--strip-components=1',
  ]);
  const manifest = JSON.parse(readFileSync(join(modules, 'godwit/package.json'), 'utf8'));
  // What it says that it needs, and the compiler: nothing else is there.
  for (const name of [...Object.keys(manifest.dependencies), ...TOOLS]) {
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
  }

  writeFileSync(join(directory, 'consumer.mts'), CONSUMER);
  writeFileSync(
    join(directory, 'tsconfig.json'),
    JSON.stringify({
      compilerOptions: { strict: true, module: 'nodenext', target: 'es2024', types: ['node'] },
      files: ['consumer.mts'],
    }),
  );
  await run(join(modules, '.bin/tsc'), ['-p', directory], TIMEOUT);
  const { stdout } = await run(process.execPath, [join(directory, 'consumer.mjs')], TIMEOUT);
  assert.equal(stdout, '5 function function');

  const version = await run(join(modules, 'godwit/bin/godwit'), ['--version'], TIMEOUT);
  assert.equal(version.stdout.trim(), manifest.version);
  await workerServes(t, directory, join(modules, 'godwit/bin/godwit'));
});
