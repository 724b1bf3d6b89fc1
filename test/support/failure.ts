import { closeSync, fstatSync, openSync, readdirSync, readSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { afterEach, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { tellMeasure } from './patience.ts';

/**
 * What a failed test leaves for the person who reads of it: its seed, the command that runs it again, the
 * folder with its state, which is kept then, and the ends of all logs in there. It is printed where the test
 * fails; a test that passes leaves nothing. Whoever imports this, or a fixture that does, has it.
 */

const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));
/** What a test may be asked in its environment, and has to be asked again. */
const ASKED = ['GODWIT_LONG', 'GODWIT_FULL'];
const TAIL_LINES = 15;
const TAIL_BYTES = 8_192;
const LOGS_MAX = 20;
const DEPTH_MAX = 6;

/** A test, or a suite, whose hook does not know its end. */
export type Ending = Pick<TestContext, 'after'> & { readonly passed?: boolean; readonly fullName?: string };

const facts = new Map<string, string>();
const failed: string[] = [];

/** A variable of the environment with which a test that fails does the same again. */
export function toldOnFailure(name: string, value: string): void {
  facts.set(name, value);
}

// Benchmarks use fixtures too, and are no tests: a hook would make them one.
if (process.argv[1]?.endsWith('.test.ts'))
  afterEach((context) => {
    const t = context as TestContext & { passed: boolean };
    if (t.passed) return;
    failed.push(t.fullName);
    const file = relative(CHECKOUT, process.argv[1]!);
    const asked = ASKED.flatMap((name) => (process.env[name] ? [[name, process.env[name]] as const] : []));
    const environment = [...asked, ...facts].map(([name, value]) => `${name}=${value} `).join('');
    say(
      `FAILED: ${t.fullName}`,
      ...(facts.size > 0 ? [`  seed: ${[...facts.values()].join(', ')}`] : []),
      // A test within another one comes by the name of that.
      `  again: ${environment}scripts/test ${file} --name '${t.fullName.split(' > ')[0]!.replaceAll("'", `'\\''`)}'`,
      `  ${tellMeasure()}`,
    );
  });

/** Asked in the hook at the end of a test, or of a suite. */
export function hasFailed({ passed, fullName }: Ending): boolean {
  if (passed === false) return true;
  // A suite does not know; a test with tests within has passed when they have not.
  return failed.some(
    (name) => fullName === undefined || name === fullName || name.startsWith(`${fullName} > `),
  );
}

/**
 * Removes the folder of a test that has passed, or of no test. Of one that has failed it stays, and what
 * processes have said in there is told.
 */
export function leaveFolder(t: Ending | null, dir: string): void {
  if (t !== null && hasFailed(t)) tellFolder(dir);
  else rmSync(dir, { recursive: true, force: true });
}

function tellFolder(dir: string): void {
  say(`  state kept: ${dir}`);
  const logs = [...logsIn(dir, DEPTH_MAX)];
  for (const path of logs.slice(0, LOGS_MAX)) {
    const lines = tailOf(path);
    if (lines.length > 0) say(`--- the end of ${path}`, ...lines);
  }
  if (logs.length > LOGS_MAX) say(`--- and ${logs.length - LOGS_MAX} other logs`);
}

/** More of the state, for a fixture that can ask; in the place of what it rejects with there is a word. */
export async function tellState(what: string, ask: () => Promise<readonly string[]>): Promise<void> {
  const lines = await ask().catch((error: unknown) => [
    `cannot be told: ${error instanceof Error ? error.message : String(error)}`,
  ]);
  say(`--- ${what}`, ...lines);
}

function* logsIn(dir: string, depth: number): Generator<string> {
  let entries: import('node:fs').Dirent[];
  try {
    entries = readdirSync(dir, { withFileTypes: true });
  } catch {
    return;
  }
  for (const entry of entries) {
    const path = join(dir, entry.name);
    if (entry.isFile() && entry.name.endsWith('.log')) yield path;
    // Not what is mounted there: its server may be gone.
    else if (entry.isDirectory() && depth > 0 && !/^(fuse|fs|mnt|jail|plain)\b/.test(entry.name))
      yield* logsIn(path, depth - 1);
  }
}

function tailOf(path: string): string[] {
  try {
    const file = openSync(path, 'r');
    try {
      const { size } = fstatSync(file);
      const bytes = Buffer.alloc(Math.min(size, TAIL_BYTES));
      readSync(file, bytes, 0, bytes.length, size - bytes.length);
      // A log of the product that is no text.
      if (bytes.includes(0)) return [];
      return bytes.toString().trimEnd().split('\n').filter(Boolean).slice(-TAIL_LINES);
    } finally {
      closeSync(file);
    }
  } catch {
    return [];
  }
}

function say(...lines: string[]): void {
  process.stderr.write(`${lines.join('\n')}\n`);
}
