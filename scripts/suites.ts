/** What a run of tests says of its suites: pure. A suite is one test file. */
export type Suite = {
  /** Relative to the checkout. */
  path: string;
  passed: number;
  failed: number;
  skipped: number;
  durationMs: number;
  /** What it printed, the end of it. */
  output: string;
};

/**
 * Those that take minutes, most of them waiting: begun first, they cost the run nothing but their processor
 * time.
 */
const LONGEST = [
  'test/chaos/slow-host.test.ts',
  'test/interop/lab.test.ts',
  'test/interop/nbd-hostile-peers.test.ts',
  'test/chaos/target-dies.test.ts',
  'test/interop/import-and-serve.test.ts',
  'test/chaos/kill-control.test.ts',
  'test/sim/fleet.test.ts',
  'src/clone/clone-simulation.test.ts',
  'src/cli/cli.test.ts',
];
/**
 * Then whole workers and foreign programs, so that none of them holds up the end. Within a folder the longest
 * text.
 */
const FIRST = ['test/chaos', 'test/interop', 'src/cli', 'src/clone', 'src/migration', 'src/machine'];

export function longestFirst(files: readonly { path: string; bytes: number }[]): string[] {
  const rank = (path: string) => {
    const long = LONGEST.indexOf(path);
    if (long !== -1) return long - LONGEST.length;
    const index = FIRST.findIndex((folder) => path.startsWith(`${folder}/`));
    return index === -1 ? FIRST.length : index;
  };
  return [...files]
    .sort(
      (left, right) =>
        rank(left.path) - rank(right.path) || right.bytes - left.bytes || left.path.localeCompare(right.path),
    )
    .map(({ path }) => path);
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

export function line(suite: Suite, progress: { ended: number; of: number; elapsedMs: number }): string {
  const { ended, of, elapsedMs } = progress;
  const count = `[${String(ended).padStart(String(of).length)}/${of}]`;
  const skipped = suite.skipped > 0 ? `, ${suite.skipped} skipped` : '';
  const failed = suite.failed > 0 ? `, ${suite.failed} FAILED` : '';
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
