import { dirname } from 'node:path';

/** What a run of tests says of its suites: pure. A suite is one test file. */
export type Suite = {
  /** Relative to the checkout. */
  path: string;
  tests: number;
  /** `describe` blocks. */
  suites: number;
  passed: number;
  failed: number;
  cancelled: number;
  skipped: number;
  todo: number;
  durationMs: number;
  /** What it printed, the end of it. */
  output: string;
};

/** Measured, of the suites that take longest, by path; see suite-seconds.json. */
export type Seconds = Readonly<Record<string, number>>;
/** From so much on a suite is in suite-seconds.json, and has a process of its own. */
export const LONG_SECONDS = 2;
/** Of suites that are not in there. */
const QUICK_SECONDS = 0.3;
const UNKNOWN_SECONDS = 30;
/** Whole workers and foreign programs: each has a process of its own, also before it was measured. */
const WHOLE = ['test/chaos/', 'test/interop/', 'test/sim/'];

/**
 * What is started, in this order: each a process, with one suite or, where they are quick, with those of one
 * folder. The longest first, most of which wait, so that none of them holds up the end.
 */
export function plan(paths: readonly string[], seconds: Seconds): string[][] {
  const processes: { paths: string[]; seconds: number }[] = [];
  const quick = new Map<string, string[]>();
  for (const path of [...paths].sort()) {
    const measured =
      seconds[path] ?? (WHOLE.some((place) => path.startsWith(place)) ? UNKNOWN_SECONDS : null);
    if (measured !== null) processes.push({ paths: [path], seconds: measured });
    else quick.set(dirname(path), [...(quick.get(dirname(path)) ?? []), path]);
  }
  for (const together of quick.values())
    processes.push({ paths: together, seconds: together.length * QUICK_SECONDS });
  return processes.sort((left, right) => right.seconds - left.seconds).map(({ paths }) => paths);
}

/** Of a whole run, for suite-seconds.json: whole seconds, by path. */
export function measuredSeconds(suites: readonly Suite[]): Seconds {
  return Object.fromEntries(
    suites
      .map(({ path, durationMs }) => [path, Math.round(durationMs / 1000)] as const)
      .filter(([, seconds]) => seconds >= LONG_SECONDS)
      .sort(([left], [right]) => left.localeCompare(right)),
  );
}

/** `test/chaos` of test/chaos/x.test.ts, `src` of all that is below src. */
function folder(path: string): string {
  const [top = '', second = ''] = path.split('/');
  return top === 'test' ? `${top}/${second}` : top;
}

export function folderOf(paths: readonly string[]): string[] {
  return [...new Set(paths.map(folder))].sort();
}

/** m:ss */
export function clock(durationMs: number): string {
  const seconds = Math.round(durationMs / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

export function failures({ failed, cancelled }: Suite): number {
  return failed + cancelled;
}

export function line(suite: Suite, progress: { ended: number; of: number; elapsedMs: number }): string {
  const { ended, of, elapsedMs } = progress;
  const count = `[${String(ended).padStart(String(of).length)}/${of}]`;
  const skipped = suite.skipped > 0 ? `, ${suite.skipped} skipped` : '';
  const failed = failures(suite) > 0 ? `, ${failures(suite)} FAILED` : '';
  const seconds = `${(suite.durationMs / 1000).toFixed(1)} s`;
  return `${count} ${clock(elapsedMs).padStart(5)}  ${suite.path}: ${suite.passed} passed${failed}${skipped}, ${seconds}`;
}

/** The time of each folder, and of the ten slowest suites. */
export function table(suites: readonly Suite[]): string {
  const folders = new Map<string, { suites: number; durationMs: number }>();
  for (const suite of suites) {
    const entry = folders.get(folder(suite.path)) ?? { suites: 0, durationMs: 0 };
    entry.suites++;
    entry.durationMs += suite.durationMs;
    folders.set(folder(suite.path), entry);
  }
  const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`.padStart(10);
  const slowest = [...suites].sort((left, right) => right.durationMs - left.durationMs).slice(0, 10);
  return [
    ...[...folders]
      .sort((left, right) => right[1].durationMs - left[1].durationMs)
      .map(([name, entry]) => `${seconds(entry.durationMs)}  ${name} (${entry.suites} suites)`),
    'the slowest:',
    ...slowest.map((suite) => `${seconds(suite.durationMs)}  ${suite.path}`),
  ].join('\n');
}
