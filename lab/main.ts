import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { EXIT_FROZEN, FOLDER_VARIABLE, KIND_VARIABLE } from './kind.ts';
import { ALONE, PROOFS, SCENARIOS } from './scenarios/index.ts';

/**
 * `npm run lab [-- scenario…] [--jobs N]`: runs scenarios, each in namespaces and a lab of its own (scripts/lab-scenario), N of them at a time. They wait more than
 * they work. Exit code 1 when one of them fails. `--all`: also what takes long, and the measurements.
 * `--qemu`: guests of QEMU, which work more than they wait.
 */
const SCRIPT = fileURLToPath(new URL('../scripts/lab-scenario', import.meta.url));

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { all: { type: 'boolean' }, jobs: { type: 'string' }, qemu: { type: 'boolean' } },
});
const names = positionals.length > 0 ? positionals : values.all ? Object.keys(SCENARIOS) : [...PROOFS];
const unknown = names.filter((name) => SCENARIOS[name] === undefined);
const jobs = Number(values.jobs ?? (values.qemu ? 1 : 3));
if (unknown.length > 0 || !Number.isInteger(jobs) || jobs < 1) {
  console.error(
    unknown.length > 0
      ? `there is no scenario ${unknown.join(', ')}: ${Object.keys(SCENARIOS).join(', ')}`
      : '--jobs is a number from 1 on',
  );
  process.exit(2);
}

const env = { ...process.env, [KIND_VARIABLE]: values.qemu ? 'qemu' : 'uml' };
const running = new Map<ChildProcess, { folder: string }>();
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => {
    for (const [child, { folder }] of running) {
      child.kill('SIGKILL');
      rmSync(folder, { recursive: true, force: true });
    }
    process.exit(130);
  });

/** Resolves with its exit code. What it says is printed a line at a time, so that lines of several do not mix. */
function run(name: string): Promise<number | null> {
  return new Promise((resolve) => {
    // It ends when its standard input does: also when this process dies without a word.
    const folder = mkdtempSync(join(tmpdir(), 'godwit-lab-'));
    const child = spawn(SCRIPT, [name], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...env, [FOLDER_VARIABLE]: folder },
    });
    running.set(child, { folder });
    child.stdin.on('error', () => {});
    createInterface(child.stdout).on('line', (line) => console.log(line));
    createInterface(child.stderr).on('line', (line) => console.error(line));
    child.once('error', (error) => console.error(`${name}: ${error.message}`));
    child.once('close', (exitCode) => {
      running.delete(child);
      rmSync(folder, { recursive: true, force: true });
      resolve(exitCode);
    });
  });
}

/** A guest that froze proves nothing, for or against: once more. */
async function passes(name: string): Promise<boolean> {
  let exitCode = await run(name);
  if (exitCode === EXIT_FROZEN) {
    console.error(`          ${name}: a guest froze; once more`);
    exitCode = await run(name);
  }
  return exitCode === 0;
}

async function runAll(queue: string[], atOnce: number): Promise<string[]> {
  const failed: string[] = [];
  const worker = async () => {
    for (let name = queue.shift(); name !== undefined; name = queue.shift())
      if (!(await passes(name))) failed.push(name);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return failed;
}

const startedMs = Date.now();
// Measurements first, while nothing else runs.
const failed = await runAll(
  names.filter((name) => ALONE.has(name)),
  1,
);
failed.push(
  ...(await runAll(
    names.filter((name) => !ALONE.has(name)),
    jobs,
  )),
);
const seconds = Math.round((Date.now() - startedMs) / 1000);
if (names.length > 1)
  console.log(
    `${names.length - failed.length} of ${names.length} scenarios passed in ${seconds} s${failed.map((name) => `; FAILED: ${name}`).join('')}`,
  );
process.exit(failed.length === 0 ? 0 : 1);
