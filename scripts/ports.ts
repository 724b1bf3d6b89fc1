/** A file of the product, as `wallProblems` has them. */
type File = { path: string; text: string };

/**
 * The control path: what decides, and so what a simulation runs (test/sim). Time, randomness, files,
 * processes and sockets come in by constructor there.
 */
const CONTROL_PATH =
  /^src\/(?:worker|migration|journal)\/|^src\/machine\/(?:manager|ailment|health|restart-policy|store)\.ts$|^src\/shim\/looks\.ts$|^src\/api\/peer-client\.ts$/;

const GLOBALS: readonly (readonly [pattern: RegExp, what: string])[] = [
  [/\bset(?:Timeout|Interval|Immediate)\(|\bAbortSignal\.timeout\(|from 'node:timers/, 'a timer of its own'],
  [/\bDate\.now\(|\bnew Date\(\)|\bperformance\.now\(|\bsystemClock\b/, 'a clock of its own'],
  [/\bMath\.random\(|\brandom(?:Bytes|Int|UUID)\(|\bsystemRandom\b/, 'randomness of its own'],
  [/from 'node:(?:child_process|cluster|worker_threads)'/, 'processes of its own'],
  [
    /import \{[^}]*\b(?:connect|createServer|Socket|request)\b[^}]*\} from 'node:(?:net|tls|https?)'/,
    'sockets',
  ],
  [/from 'node:fs(?:\/promises)?'/, 'files of its own'],
];

/** Where the world begins, each with what it does there. */
const EDGES: Readonly<Record<string, string>> = {
  'src/worker/main.ts': 'gives a worker the clock, the randomness and the edges of this host',
  'src/worker/data-folder.ts': 'the lock of the data folder',
  'src/worker/paths.ts': 'makes the folders',
  'src/worker/ballast.ts': 'a file that takes room',
  'src/worker/disk-look.ts': 'a write that is tried; comes in as a function',
  'src/worker/options.ts': 'where links of configured paths lead',
  'src/worker/imports.ts': 'where links of the disk that is imported lead',
  'src/journal/crash-points.ts': 'the mark of a crash that was asked for',
  'src/machine/store.ts': 'the records of machines',
};

/** What of the control path reaches past its ports; and edges that are none any more. Pure. */
export function portProblems(files: readonly File[]): string[] {
  const problems: string[] = [];
  const used = new Set<string>();
  for (const { path, text } of files) {
    if (!CONTROL_PATH.test(path) || path.endsWith('.test.ts')) continue;
    for (const [pattern, what] of GLOBALS) {
      if (!pattern.test(text)) continue;
      if (path in EDGES) used.add(path);
      else problems.push(`${path}: ${what}; it comes in by constructor (scripts/ports.ts)`);
    }
  }
  for (const path of Object.keys(EDGES))
    if (!used.has(path) && files.some((file) => file.path === path))
      problems.push(`${path}: is no edge any more (scripts/ports.ts)`);
  return problems;
}
