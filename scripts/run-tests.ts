import { globSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs';
import { cpus } from 'node:os';
import { join, relative } from 'node:path';
import { run as runTests } from 'node:test';
import { spec } from 'node:test/reporters';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { ulid } from 'ulid';
import { RUN_VARIABLE } from '../test/support/patience.ts';
import { describeLeftBehind, endLeftBehind, isNothing, leftBehind } from './left-behind.ts';
import { clock, folderOf, line, longestFirst, type Suite, table } from './suites.ts';

/**
 * `scripts/test [FILE|PATTERN…] [--name PATTERN] [--jobs N]`: runs test files with node:test, each in a process of its own, some at a time. A line per suite as it
 * ends, what a failing one printed, the time of each folder, and at the end node:test's own summary. Exit code 1 when something failed, or when no test ran.
 */
const TIMEOUT_MS = 3_600_000;
const LOOK_MS = 250;
const LOOKS_MAX = 40;
/** Of what one suite prints; the end is what tells. */
const OUTPUT_CHARACTERS_MAX = 64 * 1024;

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { name: { type: 'string' }, jobs: { type: 'string' } },
});
const patterns = positionals.length > 0 ? positionals : ['{src,test,lab,scripts}/**/*.test.ts'];
const jobs = Number(values.jobs ?? process.env.GODWIT_TEST_JOBS ?? Math.max(2, cpus().length));
const files = longestFirst(
  [...new Set(patterns.flatMap((pattern) => globSync(pattern)))].map((path) => ({
    path,
    bytes: statSync(path).size,
  })),
);
if (files.length === 0 || !Number.isInteger(jobs) || jobs < 1) {
  console.error(
    files.length === 0 ? `no test file is ${patterns.join(', ')}` : '--jobs is a number from 1 on',
  );
  process.exit(2);
}
// Of this run: by it the tests of one run know their own from those of another beside it.
const run = ulid();
process.env[RUN_VARIABLE] = run;
// All that tests make is below it: what is left is seen and ended, also after Ctrl-C. Short: the path of a socket has at most 107 bytes. Without links: mount
// tables have none.
const folder = realpathSync(mkdtempSync(join(process.env.TMPDIR ?? '/tmp', 'gw-')));
process.env.TMPDIR = folder;

const startedMs = performance.now();
const suites = new Map<string, Suite>();
const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => abort.abort());

function suiteOf(file: string | undefined): Suite | null {
  if (file === undefined) return null;
  const path = relative('.', file);
  let suite = suites.get(path);
  if (suite === undefined) {
    suite = { path, passed: 0, failed: 0, skipped: 0, durationMs: 0, output: '', isOver: false };
    suites.set(path, suite);
  }
  return suite;
}

function hear(suite: Suite | null, text: string): void {
  if (suite === null) return;
  suite.output = (suite.output + text).slice(-OUTPUT_CHARACTERS_MAX);
}

/** Its line, and what it printed where it failed. */
function over(suite: Suite, counts: Partial<Counts>, durationMs: number): void {
  const { passed = 0, failed = 0, cancelled = 0, skipped = 0 } = counts;
  Object.assign(suite, { isOver: true, passed, failed: failed + cancelled, skipped, durationMs });
  hasFailed ||= suite.failed > 0;
  ended++;
  console.log(line(suite, { ended, of: files.length, elapsedMs: performance.now() - startedMs }));
  if (suite.failed > 0 && suite.output.trim() !== '')
    console.log(`--- what ${suite.path} printed\n${suite.output.trimEnd()}\n---`);
  suite.output = '';
}

/** How to run that one test again, as a person would type it. */
function again(path: string, name: string): string {
  return `  again: scripts/test ${path} --name '${name.replaceAll("'", `'\\''`)}'`;
}

console.log(
  `${files.length} suites, ${jobs} at a time; load ${readFileSync('/proc/loadavg', 'utf8').split(' ')[0]}`,
);
const summary = new spec();
summary.pipe(process.stdout);
const events = runTests({
  files,
  concurrency: jobs,
  timeout: TIMEOUT_MS,
  signal: abort.signal,
  ...(values.name === undefined ? {} : { testNamePatterns: [new RegExp(escaped(values.name))] }),
});

/** What node:test says of the whole run: last. */
const totals: { type: string; data: TestData }[] = [];
let ran = 0;
let hasFailed = false;
let ended = 0;
for await (const { type, data } of events as AsyncIterable<{ type: string; data: TestData }>) {
  const suite = suiteOf(data.file);
  if (type === 'test:stdout' || type === 'test:stderr') hear(suite, data.message ?? '');
  // The parents of a failure are named before it.
  if (type === 'test:start') summary.write({ type, data });
  if (type === 'test:fail') {
    hasFailed = true;
    summary.write({ type, data });
    // A file that ended before it told of a test is a test of its own, and has no summary.
    if (suite !== null && data.name === data.file) over(suite, { failed: 1 }, 0);
    else if (suite !== null && data.details?.type !== 'suite')
      console.log(again(suite.path, data.name ?? ''));
  }
  if (type === 'test:diagnostic' && data.file === undefined) totals.push({ type, data });
  if (type !== 'test:summary') continue;
  ran += data.counts?.tests ?? 0;
  if (suite !== null && !suite.isOver) over(suite, data.counts ?? {}, data.duration_ms ?? 0);
}

// Of the last ones, a process may just be ending.
let left = leftBehind(run, folder);
for (let look = 0; look < LOOKS_MAX && !isNothing(left) && !abort.signal.aborted; look++) {
  await sleep(LOOK_MS);
  left = leftBehind(run, folder);
}
if (!isNothing(left)) {
  console.log(`\nleft behind, and ended now:\n  ${describeLeftBehind(left).join('\n  ')}`);
  hasFailed = true;
  const still = endLeftBehind(run, folder);
  if (!isNothing(still)) console.log(`not ended:\n  ${describeLeftBehind(still).join('\n  ')}`);
}
const kept = readdirSync(folder);
if (!hasFailed || abort.signal.aborted || kept.length === 0) rmSync(folder, { recursive: true, force: true });
else console.log(`\nwhat tests kept is in ${folder}: ${kept.join(', ')}`);
console.log(`\n${table([...suites.values()])}`);
console.log(
  `${clock(performance.now() - startedMs)} in all, ${jobs} suites at a time, in ${folderOf(files).join(', ')}\n`,
);
for (const total of totals) summary.write(total);
summary.end();
if (ran === 0) console.error('no test ran');
process.exitCode = hasFailed || ran === 0 || abort.signal.aborted ? 1 : 0;

type Counts = { tests: number; passed: number; failed: number; cancelled: number; skipped: number };

type TestData = {
  file?: string;
  name?: string;
  message?: string;
  duration_ms?: number;
  details?: { type?: string };
  counts?: Counts;
};

function escaped(text: string): string {
  return text.replace(/[\\^$*+?()[\]{}|/]/g, '\\$&');
}
