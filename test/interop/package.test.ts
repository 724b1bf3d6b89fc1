import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
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
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { patient } from '../support/patience.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
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

test('the package works below node_modules: both libraries, their types, the program', async (t) => {
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
  for (const name of readdirSync(join(ROOT, 'node_modules'))) {
    symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
  }
  const manifest = JSON.parse(readFileSync(join(modules, 'godwit/package.json'), 'utf8'));

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
});
