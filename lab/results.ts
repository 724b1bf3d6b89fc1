import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';

/**
 * `passed`: all held. `failed`: something did not hold, or did not come in a time that is long for this
 * machine. `unfinished`: it was ended because the time of the whole was over, or a guest froze twice: it says
 * nothing, for or against.
 */
export type Outcome = 'passed' | 'failed' | 'unfinished';

export type Result = {
  scenario: string;
  /** Kind of its guests: `uml` or `qemu`. */
  kind: string;
  outcome: Outcome;
  seconds: number;
  /** The longest boot of its guests: the measure of the machine. Null where none came up. */
  bootMs: number | null;
  /** Of the checkout, whole; null where it had changes that are not committed. */
  commit: string | null;
  /** YYYY-MM-DD */
  date: string;
};

const STORE = fileURLToPath(new URL('../.cache/lab/results.json', import.meta.url));

/** The last result of each scenario at each commit, oldest first. A file that cannot be read is none. */
export function readResults(path = STORE): Result[] {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Result[];
  } catch {
    return [];
  }
}

/** Keeps one of a scenario, kind and commit; what has no commit proves nothing later and is not kept. */
export function keepResult(result: Result, path = STORE): void {
  if (result.commit === null) return;
  const key = ({ scenario, kind, commit }: Result) => [scenario, kind, commit];
  const others = readResults(path).filter((other) => !isDeepStrictEqual(key(other), key(result)));
  mkdirSync(dirname(path), { recursive: true });
  // Two runs in one checkout may end at once: the last one wins, and none reads half of a file.
  const next = `${path}.${process.pid}`;
  writeFileSync(next, `${JSON.stringify([...others, result], null, 1)}\n`);
  renameSync(next, path);
}

/** Null where the checkout has changes, or is none of git. */
export function cleanCommit(): string | null {
  const git = (...words: string[]) =>
    execFileSync('git', words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    return git('status', '--porcelain') === '' ? git('rev-parse', 'HEAD') : null;
  } catch {
    return null;
  }
}

/** The same list from another place on: with each commit another scenario is the first. */
export function rotated<Item>(items: readonly Item[], by: number): Item[] {
  const start = items.length === 0 ? 0 : by % items.length;
  return [...items.slice(start), ...items.slice(0, start)];
}

/** What a person reads at the end. */
export function resultTable(results: readonly Result[]): string {
  const rows = results.map(({ scenario, outcome, seconds, bootMs }) => [
    scenario,
    outcome === 'failed' ? 'FAILED' : outcome,
    `${seconds}`,
    bootMs === null ? '-' : `${(bootMs / 1000).toFixed(1)}`,
  ]);
  const all = [['scenario', 'result', 'seconds', "guest's boot, s"], ...rows];
  const widths = all[0]!.map((_word, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all
    .map((row) =>
      row.map((word, column) => (column < 2 ? word.padEnd(widths[column]!) : word.padStart(widths[column]!))),
    )
    .map((row) => row.join('  ').trimEnd())
    .join('\n');
}

const BEGIN = '<!-- results: made by npm run lab -- --record -->';
const END = '<!-- end of results -->';

/**
 * The page with the table of when each scenario passed last, from the newest passed result of each. Throws
 * where the page has no place for it.
 */
export function withRecord(page: string, results: readonly Result[], scenarios: readonly string[]): string {
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END);
  if (begin === -1 || end < begin) throw new Error(`the page has no ${BEGIN} … ${END}`);
  const rows = scenarios.map((scenario) => {
    const last = results.findLast(
      (result) => result.scenario === scenario && result.outcome === 'passed' && result.kind === 'uml',
    );
    return last === undefined
      ? `| ${scenario} | not since this is recorded | | | |`
      : `| ${scenario} | ${last.date} | ${last.commit?.slice(0, 9)} | ${last.seconds} | ${last.bootMs === null ? '-' : (last.bootMs / 1000).toFixed(1)} |`;
  });
  return [
    page.slice(0, begin) + BEGIN,
    '| scenario | passed last on | at commit | seconds | a guest booted in, s |',
    '|---|---|---|---|---|',
    ...rows,
    page.slice(end),
  ].join('\n');
}
