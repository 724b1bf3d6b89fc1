import { inspect } from 'node:util';
import type { Suite } from './suites.ts';

/**
 * What node:test tells of one process, put down to the suites that run in it, one after the other: pure but
 * for the clock that is given. Where there are several, each begins with a test of its path's name
 * (suites-together.cjs).
 */
export class ProcessReport {
  readonly #suites: readonly Suite[];
  readonly #now: () => number;
  readonly #over: (ended: EndedSuite) => void;
  /** Its index; -1 before the first of several has begun. */
  #current: number;
  #beganMs: number;
  #tree: TestEvent[] = [];
  /** The tests that the next event is in, outermost first, as far as `#tree` does not have them. */
  #parents: TestEvent[] = [];
  #repeats: string[] = [];

  /** `over`: told of each suite, in the order of `paths`, when it has ended. `now`: in milliseconds. */
  constructor(paths: readonly string[], now: () => number, over: (ended: EndedSuite) => void) {
    this.#suites = paths.map((path) => newSuite(path));
    this.#now = now;
    this.#over = over;
    this.#beganMs = now();
    this.#current = this.#suites.length === 1 ? 0 : -1;
  }

  take({ type, data }: TestEvent): void {
    if (type === 'test:stdout' || type === 'test:stderr') this.#hear(data.message ?? '');
    if (type === 'test:start')
      this.#parents = [
        ...this.#parents.filter((parent) => parent.data.nesting < data.nesting),
        { type, data },
      ];
    if (type !== 'test:pass' && type !== 'test:fail') return;
    if (this.#isBeginning(data)) {
      this.#next();
      if (type === 'test:pass') return;
    }
    const suite = this.#suite();
    // Where the process failed before the first suite had begun, that one has not begun either: `end`.
    if (this.#current >= 0) count(suite, type, data);
    if (type === 'test:pass') return;
    // One that passed after the failure, within the same parent, is none of this one's.
    const parents = this.#parents.splice(0).filter((parent) => parent.data.nesting <= data.nesting);
    this.#tree.push(...parents, { type, data });
    if (data.nesting === 0 && this.#current >= 0) this.#repeats.push(again(suite.path, data.name));
    const { error } = data.details ?? {};
    if (error?.failureType !== 'subtestsFailed')
      this.#hear(`\n✖ ${data.name}\n${inspect(error?.cause ?? error)}\n`);
  }

  /** The process has ended. Suites that it did not come to have failed. */
  end(): void {
    const { length } = this.#suites;
    const last = this.#current >= 0 ? `, in ${this.#suite().path}` : '';
    if (this.#current >= 0) this.#close();
    for (this.#current += 1; this.#current < length; this.#current += 1) {
      const suite = this.#suite();
      suite.failed = 1;
      suite.tests = 1;
      this.#hear(`its process had ended before it began${last}\n`);
      this.#repeats.push(again(suite.path, suite.path));
      this.#close();
    }
  }

  #isBeginning(data: TestData): boolean {
    return data.nesting === 0 && this.#suites[this.#current + 1]?.path === data.name;
  }

  /** Of what is told before the first one has begun, the first one. */
  #suite(): Suite {
    return this.#suites[Math.max(0, this.#current)]!;
  }

  #hear(text: string): void {
    const suite = this.#suite();
    suite.output = (suite.output + text).slice(-OUTPUT_CHARACTERS_MAX);
  }

  #next(): void {
    if (this.#current >= 0) this.#close();
    // What it took to load all of them is nobody's.
    else this.#beganMs = this.#now();
    this.#current += 1;
  }

  #close(): void {
    const suite = this.#suite();
    const nowMs = this.#now();
    suite.durationMs = nowMs - this.#beganMs;
    this.#beganMs = nowMs;
    this.#over({ suite, tree: this.#tree, repeats: this.#repeats });
    this.#tree = [];
    this.#repeats = [];
  }
}

/** `tree`: what the reporter draws of its failures. `repeats`: commands that run again what failed. */
export type EndedSuite = { suite: Suite; tree: readonly TestEvent[]; repeats: readonly string[] };

/** Of what one suite prints; the end is what tells. */
const OUTPUT_CHARACTERS_MAX = 64 * 1024;

type TestData = {
  file?: string;
  name: string;
  nesting: number;
  message?: string;
  skip?: string | boolean;
  todo?: string | boolean;
  details?: { type?: string; error?: Error & { failureType?: string } };
};

export type TestEvent = { type: string; data: TestData };

function newSuite(path: string): Suite {
  return { path, ...NOTHING, durationMs: 0, output: '' };
}

const NOTHING = { tests: 0, suites: 0, passed: 0, failed: 0, cancelled: 0, skipped: 0, todo: 0 };
const CANCELLED: ReadonlySet<unknown> = new Set(['cancelledByParent', 'testAborted', 'testTimeoutFailure']);

/** As node:test itself counts; and a `describe` whose own hook failed is a failure, too. */
function count(suite: Suite, type: 'test:pass' | 'test:fail', data: TestData): void {
  const failure = data.details?.error?.failureType;
  if (data.details?.type === 'suite') {
    suite.suites += 1;
    if (type === 'test:fail' && failure !== 'subtestsFailed' && data.todo === undefined) suite.failed += 1;
    return;
  }
  suite.tests += 1;
  if (data.skip !== undefined) suite.skipped += 1;
  else if (data.todo !== undefined) suite.todo += 1;
  else if (type === 'test:pass') suite.passed += 1;
  else if (CANCELLED.has(failure)) suite.cancelled += 1;
  else suite.failed += 1;
}

/**
 * How to run that one test again, as a person would type it; a file that ended before it told of a test is a
 * test of its own.
 */
function again(path: string, name: string): string {
  if (name === path || name.endsWith(TOGETHER)) return `  again: scripts/test ${path}`;
  return `  again: scripts/test ${path} --name '${name.replaceAll("'", `'\\''`)}'`;
}

/** What node is started with for several suites, relative to the checkout. */
export const TOGETHER = 'scripts/suites-together.cjs';
