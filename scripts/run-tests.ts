import { globSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { run as runTests } from 'node:test';
import { spec } from 'node:test/reporters';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { inspect, parseArgs } from 'node:util';
import { ulid } from 'ulid';
import { RUN_VARIABLE } from '../test/support/patience.ts';
import { IdleProcessors, mayStart } from './idle-processors.ts';
import { describeLeftBehind, endLeftBehind, isNothing, leftBehind } from './left-behind.ts';
import { clock, folderOf, line, longestFirst, type Suite, table } from './suites.ts';

/**
 * `scripts/test [FILE|PATTERN…] [--name PATTERN] [--jobs N]`: runs test files with node:test, each in a
 * process of its own, some at a time. A line per suite as it ends, what a failing one printed, the time of
 * each folder, and at the end node:test's own summary. Exit code 1 when something failed, or when no test
 * ran.
 */
const TIMEOUT_MS = 3_600_000;
const PRELOAD = fileURLToPath(new URL('./test-preload.cjs', import.meta.url));
const LOOK_MS = 250;
const LOOKS_MAX = 40;
const EXTRA_JOBS = 3;
/** A suite that has just been started is not busy yet. */
const IDLE_OVER_MS = 4_000;
/** Of what one suite prints; the end is what tells. */
const OUTPUT_CHARACTERS_MAX = 64 * 1024;

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { name: { type: 'string' }, jobs: { type: 'string' } },
});
const patterns = positionals.length > 0 ? positionals : ['{src,test,lab,scripts}/**/*.test.ts'];
const asked = values.jobs ?? process.env.GODWIT_TEST_JOBS;
const jobs = Number(asked ?? Math.max(2, cpus().length));
/**
 * Beside suites that wait (for a slow disk, a quota, a deadline) there is room for more, unless somebody said
 * how many.
 */
const jobsMax = asked === undefined ? jobs + EXTRA_JOBS : jobs;
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
// All that tests make is below it: what is left is seen and ended, also after Ctrl-C. Short: the path of a
// socket has at most 107 bytes. Without links: mount tables have none.
const folder = realpathSync(mkdtempSync(join(process.env.TMPDIR ?? '/tmp', 'gw-')));
process.env.TMPDIR = folder;

const startedMs = performance.now();
const suites: Suite[] = [];
const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => abort.abort());

function hear(suite: Suite, text: string): void {
  suite.output = (suite.output + text).slice(-OUTPUT_CHARACTERS_MAX);
}

/** Its line, and what it printed where it failed. */
function over(suite: Suite, counts: Partial<Counts>, durationMs: number): void {
  const { passed = 0, failed = 0, cancelled = 0, skipped = 0 } = counts;
  Object.assign(suite, { passed, failed: failed + cancelled, skipped, durationMs });
  hasFailed ||= suite.failed > 0;
  ended++;
  console.log(line(suite, { ended, of: files.length, elapsedMs: performance.now() - startedMs }));
  if (suite.failed > 0 && suite.output.trim() !== '')
    console.log(`--- what ${suite.path} printed, and why it failed\n${suite.output.trimEnd()}\n---`);
  suite.output = '';
}

/**
 * How to run that one test again, as a person would type it; a file that ended before it told of a test is a
 * test of its own.
 */
function again(path: string, name: string): string {
  if (name === path) return `  again: scripts/test ${path}`;
  return `  again: scripts/test ${path} --name '${name.replaceAll("'", `'\\''`)}'`;
}

console.log(
  `${files.length} suites, ${jobs} at a time, ${jobsMax} while processors are idle; load ${readFileSync('/proc/loadavg', 'utf8').split(' ')[0]}`,
);
const summary = new spec();
summary.pipe(process.stdout);
/** What node:test says of each run, summed. */
const totals: Counts = { tests: 0, suites: 0, passed: 0, failed: 0, cancelled: 0, skipped: 0, todo: 0 };
let hasFailed = false;
let ended = 0;

/**
 * One file. A run for each of them, as one run of all tells of a file when those before it have ended,
 * however long ago it has itself. What the reporter draws as a tree is given to it in one piece, so that two
 * files do not mix.
 */
async function runFile(path: string): Promise<void> {
  const suite: Suite = { path, passed: 0, failed: 0, skipped: 0, durationMs: 0, output: '' };
  suites.push(suite);
  const tree: TestEvent[] = [];
  /** The tests that the next event is in, outermost first, as far as `tree` does not have them. */
  let parents: TestEvent[] = [];
  const repeats: string[] = [];
  const startMs = performance.now();
  let counts: Partial<Counts> = {};
  for await (const { type, data } of runTests({
    files: [path],
    timeout: TIMEOUT_MS,
    execArgv: ['--require', PRELOAD],
    signal: abort.signal,
    ...(values.name === undefined ? {} : { testNamePatterns: [new RegExp(escaped(values.name))] }),
  }) as AsyncIterable<TestEvent>) {
    if (type === 'test:stdout' || type === 'test:stderr') hear(suite, data.message ?? '');
    if (type === 'test:start')
      parents = [...parents.filter((parent) => parent.data.nesting < data.nesting), { type, data }];
    if (type === 'test:fail') tree.push(...parents.splice(0), { type, data });
    if (type === 'test:fail' && data.nesting === 0) repeats.push(again(path, data.name));
    if (type === 'test:fail' && data.details?.error?.failureType !== 'subtestsFailed')
      hear(suite, `\n✖ ${data.name}\n${inspect(data.details?.error?.cause ?? data.details?.error)}\n`);
    if (type === 'test:summary' && data.file === undefined) counts = data.counts ?? {};
  }
  for (const key of Object.keys(totals) as (keyof Counts)[]) totals[key] += counts[key] ?? 0;
  if (repeats.length > 0) for (const event of tree) summary.write(event);
  over(suite, counts, performance.now() - startMs);
  for (const repeat of repeats) console.log(repeat);
}

const readStat = () => readFileSync('/proc/stat', 'utf8');
/** Of all of it. */
const whole = new IdleProcessors(readStat, 1);
const waiting = [...files];
const running = new Set<Promise<void>>();
const processors = new IdleProcessors(readStat, (IDLE_OVER_MS / 10) * cpus().length);
while (waiting.length > 0 && !abort.signal.aborted) {
  if (mayStart({ running: running.size, jobs, jobsMax, idleShare: processors.share() })) {
    const suite = runFile(waiting.shift()!).finally(() => running.delete(suite));
    running.add(suite);
    processors.restart();
    continue;
  }
  await Promise.race([...running, sleep(IDLE_OVER_MS, undefined, { ref: false })]);
}
await Promise.all(running);

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
console.log(`\n${table(suites)}`);
console.log(
  `${clock(performance.now() - startedMs)} in all, ${jobs} suites at a time, processors idle for ${Math.round(100 * (whole.share() ?? 0))} % of it, in ${folderOf(files).join(', ')}\n`,
);
// In the words, the order and the form of node:test's own summary, which is per run.
for (const [name, value] of [
  ['tests', totals.tests],
  ['suites', totals.suites],
  ['pass', totals.passed],
  ['fail', totals.failed],
  ['cancelled', totals.cancelled],
  ['skipped', totals.skipped],
  ['todo', totals.todo],
  ['duration_ms', performance.now() - startedMs],
])
  summary.write({
    type: 'test:diagnostic',
    data: { nesting: 0, message: `${name} ${value}`, level: 'info' },
  });
summary.end();
if (totals.tests === 0) console.error('no test ran');
process.exitCode = hasFailed || totals.tests === 0 || abort.signal.aborted ? 1 : 0;

type Counts = {
  tests: number;
  suites: number;
  passed: number;
  failed: number;
  cancelled: number;
  skipped: number;
  todo: number;
};

type TestData = {
  file?: string;
  name: string;
  nesting: number;
  message?: string;
  counts?: Partial<Counts>;
  details?: { error?: Error & { failureType?: string } };
};

type TestEvent = { type: string; data: TestData };

function escaped(text: string): string {
  return text.replace(/[\\^$*+?()[\]{}|/]/g, '\\$&');
}
