import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  globSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { run as runTests } from 'node:test';
import { spec } from 'node:test/reporters';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ulid } from 'ulid';
import { RUN_VARIABLE } from '../test/support/patience.ts';
import { IdleProcessors, placesFor } from './idle-processors.ts';
import { describeLeftBehind, endLeftBehind, isNothing, leftBehind } from './left-behind.ts';
import {
  clock,
  failures,
  folderOf,
  line,
  measuredSeconds,
  plan,
  type Seconds,
  type Suite,
  table,
} from './suites.ts';
import { type EndedSuite, ProcessReport, type TestEvent, TOGETHER } from './test-events.ts';

/**
 * `scripts/test [FILE|PATTERN…] [--name PATTERN] [--jobs N] [--keep-seconds]`: runs test files with
 * node:test, all of them with scripts/check beside them, some processes at a time; quick ones of one folder
 * share a process. A line per suite as it ends, what a failing one printed, the time of each folder, and at
 * the end node:test's own summary. Exit code 1 when something failed, or when no test ran. `--keep-seconds`:
 * writes down how long each suite took, by which the next runs begin with the longest.
 */
const TIMEOUT_MS = 3_600_000;
const PRELOAD = fileURLToPath(new URL('./test-preload.cjs', import.meta.url));
const LOOK_MS = 250;
const LOOKS_MAX = 40;
const EXTRA_JOBS = 4;
/** A suite that has just been started is not busy yet. */
const IDLE_OVER_MS = 2_000;
const SECONDS_FILE = fileURLToPath(new URL('./suite-seconds.json', import.meta.url));

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    name: { type: 'string' },
    jobs: { type: 'string' },
    'keep-seconds': { type: 'boolean', default: false },
  },
});
const patterns = positionals.length > 0 ? positionals : ['{src,test,lab,scripts}/**/*.test.ts'];
const asked = values.jobs ?? process.env.GODWIT_TEST_JOBS;
const jobs = Number(asked ?? Math.max(2, cpus().length));
/**
 * Beside suites that wait (for a slow disk, a quota, a deadline) there is room for more, unless somebody said
 * how many.
 */
const jobsMax = asked === undefined ? jobs + EXTRA_JOBS : jobs;
const files = [...new Set(patterns.flatMap((pattern) => globSync(pattern)))];
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

/** Its line, and what it printed where it failed. */
function over({ suite, tree, repeats }: EndedSuite): void {
  suites.push(suite);
  // What the reporter draws as a tree is given to it in one piece, so that two files do not mix.
  for (const event of tree) summary.write(event);
  const hasFailed = failures(suite) > 0;
  console.log(
    line(suite, { ended: suites.length, of: files.length, elapsedMs: performance.now() - startedMs }),
  );
  if (hasFailed && suite.output.trim() !== '')
    console.log(`--- what ${suite.path} printed, and why it failed\n${suite.output.trimEnd()}\n---`);
  suite.output = '';
  for (const repeat of repeats) console.log(repeat);
}

console.log(
  `${files.length} suites, ${jobs} at a time, ${jobsMax} while processors are idle; load ${readFileSync('/proc/loadavg', 'utf8').split(' ')[0]}`,
);
const summary = new spec();
summary.pipe(process.stdout);

/** One process. A run for each, as one run of all tells of a file when those before it have ended. */
async function runProcess(paths: readonly string[]): Promise<void> {
  const report = new ProcessReport(paths, () => performance.now(), over);
  const [first] = paths;
  for await (const event of runTests({
    files: [paths.length === 1 ? first! : TOGETHER],
    argv: paths.length === 1 ? [] : [...paths],
    timeout: TIMEOUT_MS,
    execArgv: ['--require', PRELOAD],
    signal: abort.signal,
    ...(values.name === undefined ? {} : { testNamePatterns: [new RegExp(escaped(values.name))] }),
  }) as AsyncIterable<TestEvent>)
    report.take(event);
  report.end();
}

/** Types, lint and house rules. What is wrong with them is printed, and ends the run. */
async function check(): Promise<void> {
  const child = spawn('scripts/check', { stdio: ['ignore', 'inherit', 'inherit'] });
  const [exitCode] = await once(child, 'exit');
  if (exitCode === 0 || abort.signal.aborted) return;
  console.log('scripts/check failed: no more tests are run');
  abort.abort();
}

const readStat = () => readFileSync('/proc/stat', 'utf8');
/** Of all of it. */
const whole = new IdleProcessors(readStat, 1);
// A test is asked for by its name, and those with which suites that share a process begin have others.
const seconds = JSON.parse(readFileSync(SECONDS_FILE, 'utf8')) as Seconds;
const waiting = values.name === undefined ? plan(files, seconds) : files.map((path) => [path]);
const running = new Set<Promise<void>>();
function start(work: Promise<void>): void {
  const one = work.finally(() => running.delete(one));
  running.add(one);
}
const processors = new IdleProcessors(readStat, (IDLE_OVER_MS / 10) * cpus().length);
// A whole run begins with it, beside the first tests.
if (positionals.length === 0) start(check());
let places = jobs;
while (waiting.length > 0 && !abort.signal.aborted) {
  places = placesFor({ places, jobs, jobsMax, running: running.size, idleShare: processors.share() });
  if (running.size < places) {
    start(runProcess(waiting.shift()!));
    continue;
  }
  await Promise.race([...running, sleep(IDLE_OVER_MS, undefined, { ref: false })]);
}
await Promise.all(running);

// Of the last ones, a process may just be ending.
let hasFailed = suites.some((suite) => failures(suite) > 0);
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
const idle = whole.shares() ?? { nothing: 0, disk: 0 };
const percent = (share: number) => `${Math.round(100 * share)} %`;
console.log(
  `${clock(performance.now() - startedMs)} in all, ${jobs} suites at a time, processors idle for ${percent(idle.nothing)} of it and for ${percent(idle.disk)} waiting for a disk, in ${folderOf(files).join(', ')}\n`,
);
// In the words, the order and the form of node:test's own summary, which is per run.
const total = (what: 'tests' | 'suites' | 'passed' | 'failed' | 'cancelled' | 'skipped' | 'todo') =>
  suites.reduce((sum, suite) => sum + suite[what], 0);
for (const [name, value] of [
  ['tests', total('tests')],
  ['suites', total('suites')],
  ['pass', total('passed')],
  ['fail', total('failed')],
  ['cancelled', total('cancelled')],
  ['skipped', total('skipped')],
  ['todo', total('todo')],
  ['duration_ms', performance.now() - startedMs],
])
  summary.write({
    type: 'test:diagnostic',
    data: { nesting: 0, message: `${name} ${value}`, level: 'info' },
  });
summary.end();
if (total('tests') === 0) console.error('no test ran');
if (values['keep-seconds'] && !hasFailed)
  writeFileSync(SECONDS_FILE, `${JSON.stringify(measuredSeconds(suites), null, 2)}\n`);
process.exitCode = hasFailed || total('tests') === 0 || abort.signal.aborted ? 1 : 0;

function escaped(text: string): string {
  return text.replace(/[\\^$*+?()[\]{}|/]/g, '\\$&');
}
