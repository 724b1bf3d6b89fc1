import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { BOOT_DESCRIPTOR, EXIT_FROZEN, FOLDER_VARIABLE, KIND_VARIABLE } from './kind.ts';
import {
  cleanCommit,
  keepResult,
  type Outcome,
  type Result,
  readResults,
  resultTable,
  rotated,
  withRecord,
} from './results.ts';
import { ALONE, SCENARIOS } from './scenarios/index.ts';

/**
 * `npm run lab [-- scenario…]`: runs scenarios, each in namespaces and a lab of its own
 * (scripts/lab-scenario), some at a time: they wait more than they work. All of them, but those that passed
 * at this commit already. At the end a table. Exit code 1 when one failed, 3 when one did not finish, 2 for
 * words that mean nothing.
 */
const HELP = `npm run lab -- [SCENARIO…] [--again] [--jobs N] [--qemu] [--minutes M] [--rotate N] [--record]
  --again       also those that passed at this commit
  --jobs N      at a time (3; with --qemu 1)
  --qemu        guests of QEMU, which work more than they wait
  --minutes M   what is not over then is ended, and counts as unfinished
  --rotate N    begin with another one for each N
  --record      afterwards write into docs/kernel-plane.md when each passed last`;
const EXIT_UNFINISHED = 3;
const SCRIPT = fileURLToPath(new URL('../scripts/lab-scenario', import.meta.url));
const PAGE = fileURLToPath(new URL('../docs/kernel-plane.md', import.meta.url));

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    again: { type: 'boolean' },
    jobs: { type: 'string' },
    qemu: { type: 'boolean' },
    minutes: { type: 'string' },
    rotate: { type: 'string', default: '0' },
    record: { type: 'boolean' },
    help: { type: 'boolean' },
  },
});
if (values.help) {
  console.log(`${HELP}\nscenarios: ${Object.keys(SCENARIOS).join(', ')}`);
  process.exit(0);
}
const kind = values.qemu ? 'qemu' : 'uml';
const jobs = Number(values.jobs ?? (values.qemu ? 1 : 3));
const minutes = Number(values.minutes ?? Number.POSITIVE_INFINITY);
const rotation = Number(values.rotate);
const unknown = positionals.filter((name) => SCENARIOS[name] === undefined);
if (unknown.length > 0 || !(jobs >= 1) || !(minutes > 0) || !(rotation >= 0)) {
  console.error(unknown.length > 0 ? `there is no scenario ${unknown.join(', ')}` : 'a number is none');
  console.error(HELP);
  process.exit(2);
}

const commit = cleanCommit();
const before = readResults();
const passedAlready = (name: string) =>
  commit !== null &&
  before.some(
    (result) =>
      result.scenario === name &&
      result.kind === kind &&
      result.commit === commit &&
      result.outcome === 'passed',
  );
const asked = positionals.length > 0 ? positionals : Object.keys(SCENARIOS);
const names = values.again || positionals.length > 0 ? asked : asked.filter((name) => !passedAlready(name));
if (names.length < asked.length)
  console.log(
    `${asked.length - names.length} of ${asked.length} passed at this commit already (--again runs them too)`,
  );

const env = { ...process.env, [KIND_VARIABLE]: kind };
const running = new Set<ChildProcess>();
const folders = new Set<string>();
let isTimeOver = false;
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => {
    for (const child of running) child.kill('SIGKILL');
    for (const folder of folders) rmSync(folder, { recursive: true, force: true });
    process.exit(130);
  });
const timer = Number.isFinite(minutes)
  ? setTimeout(() => {
      isTimeOver = true;
      for (const child of running) child.kill('SIGKILL');
    }, minutes * 60_000)
  : null;

type Run = { exitCode: number | null; bootMs: number | null; folder: string };

/** What it says is printed a line at a time, so that lines of several do not mix. */
function run(name: string): Promise<Run> {
  return new Promise((resolve) => {
    const folder = mkdtempSync(join(tmpdir(), 'godwit-lab-'));
    folders.add(folder);
    // It ends when its standard input does: also when this process dies without a word.
    const child = spawn(SCRIPT, [name], {
      stdio: ['pipe', 'pipe', 'pipe', 'pipe'],
      env: { ...env, [FOLDER_VARIABLE]: folder },
    });
    running.add(child);
    let bootMs: number | null = null;
    child.stdin!.on('error', () => {});
    createInterface(child.stdio[BOOT_DESCRIPTOR] as Readable).on('line', (line) => {
      bootMs = Math.max(bootMs ?? 0, Number(line));
    });
    createInterface(child.stdout!).on('line', (line) => console.log(line));
    createInterface(child.stderr!).on('line', (line) => console.error(line));
    child.once('error', (error) => console.error(`${name}: ${error.message}`));
    child.once('close', (exitCode) => {
      running.delete(child);
      resolve({ exitCode, bootMs, folder });
    });
  });
}

function outcomeOf(exitCode: number | null): Outcome {
  if (exitCode === 0) return 'passed';
  return isTimeOver || exitCode === EXIT_FROZEN ? 'unfinished' : 'failed';
}

/** A guest that froze proves nothing, for or against: once more. */
async function result(name: string): Promise<Result> {
  const startedMs = performance.now();
  let last = isTimeOver ? null : await run(name);
  if (last?.exitCode === EXIT_FROZEN && !isTimeOver) {
    console.error(`          ${name}: a guest froze; once more`);
    rmSync(last.folder, { recursive: true, force: true });
    last = await run(name);
  }
  const outcome = last === null ? 'unfinished' : outcomeOf(last.exitCode);
  if (last !== null && outcome === 'failed') {
    console.error(
      `          ${name}: its folder is kept: ${last.folder}; again: npm run lab -- ${name}${values.qemu ? ' --qemu' : ''}`,
    );
  } else if (last !== null) {
    rmSync(last.folder, { recursive: true, force: true });
  }
  if (last !== null) folders.delete(last.folder);
  const seconds = Math.round((performance.now() - startedMs) / 1000);
  const date = new Date().toISOString().slice(0, 10);
  return { scenario: name, kind, outcome, seconds, bootMs: last?.bootMs ?? null, commit, date };
}

const results: Result[] = [];
async function runAll(queue: string[], atOnce: number): Promise<void> {
  const worker = async () => {
    for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
      const made = await result(name);
      results.push(made);
      if (made.outcome !== 'unfinished') keepResult(made);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

const startedMs = performance.now();
const order = rotated(names, rotation);
// Measurements first, while nothing else runs; where time is short, last.
const alone = order.filter((name) => ALONE.has(name));
const others = order.filter((name) => !ALONE.has(name));
if (timer === null) await runAll(alone, 1);
await runAll(others, jobs);
if (timer !== null) await runAll(alone, 1);
if (timer !== null) clearTimeout(timer);

const seconds = Math.round((performance.now() - startedMs) / 1000);
const count = (outcome: Outcome) => results.filter((made) => made.outcome === outcome).length;
if (results.length > 0) console.log(`\n${resultTable(results)}`);
console.log(
  `${count('passed')} of ${results.length} scenarios passed in ${seconds} s, ${count('failed')} failed, ${count('unfinished')} did not finish`,
);
if (values.record)
  writeFileSync(PAGE, withRecord(readFileSync(PAGE, 'utf8'), readResults(), Object.keys(SCENARIOS)));
process.exit(count('failed') > 0 ? 1 : count('unfinished') > 0 ? EXIT_UNFINISHED : 0);
