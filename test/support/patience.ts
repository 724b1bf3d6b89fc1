import { spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  fsyncSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * How long tests wait. Each names a base patience: what is ample on the machine on which they were written,
 * when it is quiet. Here it is multiplied by how slow this machine is: measured once a run, and again by
 * every wait that becomes long. A wait that is over sooner costs nothing, so nothing here makes a test slower
 * that passes.
 */

/** Of a wait that does not say otherwise, in milliseconds before scaling. */
export const PATIENCE_MS = 120_000;

/**
 * In the environment of a test run: a name of its own, under which its measure is kept for all of its
 * processes.
 */
export const RUN_VARIABLE = 'GODWIT_TEST_RUN';

/** A measure is of a run; one that a shell left behind is taken again after so long. */
const MEASURE_AGE_MS_MAX = 3_600_000;
/** On the quiet machine that the base patience was found on: 2 cores, 24 GiB, a virtual disk. */
const USUAL = { processMs: 70, programMs: 3, fsyncMs: 2 } as const;
/** A measure that says more says that something else is wrong. */
const SLOWNESS_MAX = 50;
const LET_PASS_SLOWNESS_MAX = 5;
/** Of a wait: after so long it looks how slow the machine has become, and then again each time. */
const PROBE_EVERY_MS = 5_000;
const TURN_MS = 100;
/** Of one that takes long itself, such as a command. */
const LOOK_TURN_MS_MAX = 1_000;
/**
 * A turn that took longer than so many of its lengths is time in which this process did not run; others then
 * did not either.
 */
const TURN_COUNTS_MAX = 5;

/**
 * What this machine takes for the things that tests wait for most, in milliseconds, and how many times as
 * slow that makes it; at least 1.
 */
export type Measure = {
  /** Start and end of a node process. */
  processMs: number;
  /** Fork, exec and end of a small program. */
  programMs: number;
  /** One block written and flushed in the folder for temporary files. */
  fsyncMs: number;
  slowness: number;
};

let known: Measure | null = null;
/** The latest look of this process at how slow the machine has become; one for all that wait in it. */
let lately = 1;
let probe: Probe | null = null;
let probedMs = Number.NEGATIVE_INFINITY;

/** Called by every wait that has become long. */
function lookAgain(): void {
  if (probe === null && performance.now() - probedMs > PROBE_EVERY_MS) probe = new Probe();
  if (probe === null) return;
  lately = probe.slowness;
  if (!probe.ended) return;
  probe = null;
  probedMs = performance.now();
}

/** Of this run; taken by whoever asks first, which takes half a second. */
export function measure(): Measure {
  known ??= readMeasure() ?? keepMeasure(takeMeasure());
  return known;
}

/**
 * That time on a quiet machine, in milliseconds, here and now: for programs, options and guards whose end
 * nobody can ask about.
 */
export function patient(baseMs: number): number {
  return Math.ceil(baseMs * slowness());
}

/**
 * A time-out of what is tested that the test lets pass, again and again: so much longer here that answers
 * come before it, and never so much that the test waits for nothing else.
 */
export function letPass(baseMs: number): number {
  return Math.ceil(baseMs * Math.min(LET_PASS_SLOWNESS_MAX, slowness()));
}

/** A rate at which something is still under way on this machine when what the test does meanwhile is done. */
export function leisurely(bytesPerSecond: number): number {
  return Math.ceil(bytesPerSecond / slowness());
}

/**
 * How many times as slow as the machine on which tests were written: the measure of the run, or what this
 * process has seen since.
 */
export function slowness(): number {
  return Math.max(measure().slowness, lately);
}

/** What a wait found that is not yet what it waits for, so that its failure can tell. */
export class NotYet {
  readonly state: unknown;

  constructor(state: unknown) {
    this.state = state;
  }
}

/** Thrown in a look for what will not change any more: ends the wait at once. */
export class NotWorthWaiting extends Error {}

/** The wait was longer than this machine's measure explains. */
export class OutOfPatience extends Error {}

type Answer<Value> = Value | NotYet | null | undefined | false;
export type Look<Value> = () => Promise<Answer<Value>> | Answer<Value>;

export type UntilOptions<Value> = {
  /** Before scaling. */
  patienceMs?: number;
  /** Of what `look` gives, whether it is that; all values but null, undefined and false are, without it. */
  is?: (value: Value) => boolean;
  /** Asked when the wait has failed: more about the state. */
  state?: () => unknown;
  signal?: AbortSignal;
};

/**
 * Resolves with the first value that is it. Errors of `look` count as "not yet". Rejects with what was waited
 * for, how long, and what the state was last when patience is out.
 */
export async function until<Value>(
  what: string,
  look: Look<Value>,
  options: UntilOptions<Value> = {},
): Promise<Value> {
  const { is, signal } = options;
  const patience = new Patience(options.patienceMs);
  for (;;) {
    signal?.throwIfAborted();
    let last: () => string;
    try {
      const value = await look();
      const there =
        value !== null && value !== undefined && value !== false && !(value instanceof NotYet)
          ? { value }
          : null;
      if (there !== null && (is === undefined || is(there.value))) return there.value;
      last = () => `the state was ${show(value instanceof NotYet ? value.state : value)}`;
    } catch (error) {
      if (error instanceof NotWorthWaiting) throw error;
      last = () => `the state could not be seen: ${error instanceof Error ? error.message : String(error)}`;
    }
    if (!(await patience.turn(signal))) {
      const more = options.state ? `; ${show(await stateOf(options.state))}` : '';
      throw patience.out(what, `${last()}${more}`);
    }
  }
}

/** As the promise, and rejects when patience is out before. What the promise stands for goes on. */
export async function inPatience<Value>(
  what: string,
  promise: Promise<Value>,
  options: { patienceMs?: number; state?: () => unknown } = {},
): Promise<Value> {
  const over = new AbortController();
  const settled = promise.finally(() => over.abort());
  settled.catch(() => {});
  const patience = new Patience(options.patienceMs);
  const guard = async (): Promise<Value> => {
    while (await patience.turn(over.signal).catch(() => true)) if (over.signal.aborted) return settled;
    const state = options.state ? show(await stateOf(options.state)) : 'it has not ended';
    throw patience.out(what, state);
  };
  return Promise.race([settled, guard()]);
}

/** Counts what a wait may still take: time as it would be on a quiet machine. */
export class Patience {
  readonly #baseMs: number;
  readonly #startedMs = performance.now();
  #countedMs = 0;
  #lookedMs = this.#startedMs;

  /** `baseMs`: before scaling. */
  constructor(baseMs = PATIENCE_MS) {
    this.#baseMs = baseMs;
  }

  /** Lets some time pass; false when patience is out. */
  async turn(signal?: AbortSignal): Promise<boolean> {
    const beforeMs = performance.now();
    // The first looks come at once: most waits are short. Each costs those who answer, and the next are no
    // later than a tenth of the wait, and take no more than half of it.
    const turnMs = Math.max(
      Math.min(TURN_MS, 1 + (beforeMs - this.#startedMs) / 10),
      Math.min(LOOK_TURN_MS_MAX, beforeMs - this.#lookedMs),
    );
    await sleep(turnMs, undefined, signal ? { signal } : {});
    const nowMs = performance.now();
    const sleptMs = Math.min(nowMs - beforeMs, turnMs * TURN_COUNTS_MAX);
    this.#countedMs += (beforeMs - this.#lookedMs + sleptMs) / slowness();
    this.#lookedMs = nowMs;
    if (nowMs - this.#startedMs > PROBE_EVERY_MS) lookAgain();
    return this.#countedMs < this.#baseMs;
  }

  /** The error of a wait that is given up. `state`: what there was instead. */
  out(what: string, state: string): OutOfPatience {
    const waitedMs = performance.now() - this.#startedMs;
    return new OutOfPatience(
      `waited ${inSeconds(waitedMs)} for ${what}; ${state}; the base patience of ${inSeconds(this.#baseMs)} was scaled: ${tellMeasure()}`,
    );
  }
}

/** For people: the machine's measure. */
export function tellMeasure(): string {
  const { processMs, programMs, fsyncMs } = measure();
  const of = (name: keyof typeof USUAL, ms: number) => `${ms.toFixed(1)} ms (usual ${USUAL[name]})`;
  const now = lately > measure().slowness ? `, and ${lately.toFixed(1)} times as slow lately` : '';
  return (
    `this machine is ${measure().slowness.toFixed(1)} times as slow as a quiet one${now}: a process takes ${of('processMs', processMs)}, ` +
    `a program ${of('programMs', programMs)}, an fsync ${of('fsyncMs', fsyncMs)}`
  );
}

export type RunOptions = {
  /** Before scaling. */
  patienceMs?: number;
  input?: string | Buffer;
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  signal?: AbortSignal;
};

/**
 * Resolves with how a program ended, and all that it said. One that outlives patience is killed, and the
 * rejection tells what it had said by then.
 */
export async function runToEnd(
  program: string,
  words: readonly string[],
  options: RunOptions = {},
): Promise<{ exitCode: number | null; signal: string | null; stdout: string; stderr: string }> {
  const child = spawn(program, words, {
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    ...(options.cwd !== undefined && { cwd: options.cwd }),
    ...(options.env !== undefined && { env: options.env }),
    ...(options.signal !== undefined && { signal: options.signal }),
    killSignal: 'SIGKILL',
  });
  const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  child.stdout!.on('data', (chunk: Buffer) => output.stdout.push(chunk));
  child.stderr!.on('data', (chunk: Buffer) => output.stderr.push(chunk));
  child.stdin?.on('error', () => {});
  child.stdin?.end(options.input);
  const said = () => ({
    stdout: Buffer.concat(output.stdout).toString(),
    stderr: Buffer.concat(output.stderr).toString(),
  });
  const ended = new Promise<{ exitCode: number | null; signal: string | null }>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (exitCode, signal) => resolve({ exitCode, signal }));
  });
  try {
    const end = await inPatience(`${program} ${words.join(' ')} to end`, ended, {
      ...(options.patienceMs !== undefined && { patienceMs: options.patienceMs }),
      state: () => said(),
    });
    return { ...end, ...said() };
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
  }
}

/**
 * As `runToEnd`, with what it said on its standard output; rejects with all that it said when it did not end
 * with 0.
 */
export async function mustEndWell(
  program: string,
  words: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { exitCode, signal, stdout, stderr } = await runToEnd(program, words, options);
  if (exitCode === 0) return stdout;
  throw new Error(
    `${program} ${words.join(' ')} ended with ${exitCode ?? signal}: ${(stderr || stdout).slice(-8_192)}`,
  );
}

/** A start of a process, while something waits: one that has not ended yet is as slow as it is old. */
class Probe {
  readonly #startedMs = performance.now();
  #tookMs: number | null = null;

  constructor() {
    const child = spawn(process.execPath, ['-e', '0'], { stdio: 'ignore', env: {} });
    const done = () => {
      this.#tookMs ??= performance.now() - this.#startedMs;
    };
    child.once('exit', done);
    child.once('error', done);
    child.unref();
  }

  get ended(): boolean {
    return this.#tookMs !== null;
  }

  get slowness(): number {
    return within((this.#tookMs ?? performance.now() - this.#startedMs) / USUAL.processMs);
  }
}

function takeMeasure(): Measure {
  const processMs = middle(3, () => spawnSync(process.execPath, ['-e', '0'], { stdio: 'ignore', env: {} }));
  const programMs = middle(9, () => spawnSync('/bin/true', { stdio: 'ignore' }));
  const dir = mkdtempSync(join(tmpdir(), 'gw-measure-'));
  const file = openSync(join(dir, 'block'), 'w');
  const block = Buffer.alloc(4096);
  try {
    const fsyncMs = middle(9, (round) => {
      writeSync(file, block, 0, block.length, round * block.length);
      fsyncSync(file);
    });
    const ratios = [processMs / USUAL.processMs, programMs / USUAL.programMs, fsyncMs / USUAL.fsyncMs];
    return { processMs, programMs, fsyncMs, slowness: within(Math.max(...ratios)) };
  } finally {
    closeSync(file);
    rmSync(dir, { recursive: true, force: true });
  }
}

function within(ratio: number): number {
  return Math.min(SLOWNESS_MAX, Math.max(1, ratio));
}

/** The median of so many rounds, in milliseconds. */
function middle(rounds: number, work: (round: number) => unknown): number {
  const tookMs = Array.from({ length: rounds }, (_, round) => {
    const startedMs = performance.now();
    work(round);
    return performance.now() - startedMs;
  });
  return tookMs.sort((left, right) => left - right)[rounds >> 1]!;
}

/** Without a name for the run, it is the one of the process that started this one. */
function measurePath(): string {
  const run = process.env[RUN_VARIABLE] ?? parentRun();
  return join(tmpdir(), `godwit-measure-${run.replaceAll(/[^\w.-]/g, '_')}.json`);
}

function parentRun(): string {
  try {
    // Its pid and when it started: a pid comes again.
    const startedAt = readFileSync(`/proc/${process.ppid}/stat`, 'utf8').split(') ')[1]!.split(' ')[19]!;
    return `${process.ppid}-${startedAt}`;
  } catch {
    return `${process.pid}`;
  }
}

function readMeasure(): Measure | null {
  try {
    const path = measurePath();
    if (Date.now() - statSync(path).mtimeMs > MEASURE_AGE_MS_MAX) return null;
    const { processMs, programMs, fsyncMs, slowness } = JSON.parse(readFileSync(path, 'utf8')) as Measure;
    const numbers = [processMs, programMs, fsyncMs, slowness];
    if (numbers.some((number) => !Number.isFinite(number) || number <= 0)) return null;
    return { processMs, programMs, fsyncMs, slowness: within(slowness) };
  } catch {
    return null;
  }
}

function keepMeasure(taken: Measure): Measure {
  const path = measurePath();
  // What this process starts, and what that starts, is of the same run.
  process.env[RUN_VARIABLE] ??= parentRun();
  try {
    writeFileSync(`${path}.${process.pid}`, JSON.stringify(taken));
    renameSync(`${path}.${process.pid}`, path);
  } catch {
    // Without a place for it each process measures for itself.
  }
  return taken;
}

async function stateOf(state: () => unknown): Promise<unknown> {
  try {
    return await state();
  } catch (error) {
    return `its state cannot be told: ${error instanceof Error ? error.message : String(error)}`;
  }
}

function show(state: unknown): string {
  if (typeof state === 'string') return state;
  try {
    return (
      JSON.stringify(state, (_, value) => (typeof value === 'bigint' ? String(value) : value)) ??
      String(state)
    );
  } catch {
    return String(state);
  }
}

function inSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 0)} s`;
}
