/**
 * `npm run mutants -- --room ROOM [--seed N] [--count K]`: small changes to the sources of a room, drawn by
 * the seed, each on a copy of the checkout with the room's tests that reach the file. Lists those that no
 * test saw: they are equivalent, or a test is missing. Exit code 1 when some survived.
 */
import { execFileSync, spawn } from 'node:child_process';
import {
  cpSync,
  globSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { seededRandom } from '../src/base/random.ts';
import { importsOf } from './house.ts';
import { type Mutation, mutate, mutationsOf } from './mutations.ts';

/** A test that takes so much longer than without the change waits for something that does not come. */
const PATIENCE_FACTOR = 4;
const PATIENCE_MS_MIN = 30_000;

const { values } = parseArgs({
  options: {
    room: { type: 'string' },
    file: { type: 'string' },
    seed: { type: 'string', default: '1' },
    count: { type: 'string', default: '20' },
  },
});
const room = values.room ?? '';
const seed = Number(values.seed);
const files = globSync(values.file ?? `src/${room}/**/*.ts`).sort();
const sources = files.filter((path) => !path.endsWith('.test.ts'));
if (sources.length === 0 || !Number.isInteger(seed)) {
  console.error('npm run mutants -- --room ROOM (or --file FILE) [--seed N] [--count K]');
  process.exit(2);
}

const copy = realpathSync(mkdtempSync(join(tmpdir(), 'gw-mutants-')));
process.once('exit', () => rmSync(copy, { recursive: true, force: true }));
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));
for (const path of execFileSync('git', ['ls-files'], { encoding: 'utf8' }).trim().split('\n')) {
  cpSync(path, join(copy, path), { recursive: true });
}
symlinkSync(resolve('node_modules'), join(copy, 'node_modules'));

/** What a test starts as a process of its own (test/support/programs.ts): here the copy's source. */
const PROGRAM = /\bprogramPath\('([^']+)'\)/g;

/** How far a test file is from a source, in imports; undefined: it does not reach it. */
const imports = new Map<string, string[]>();
function distances(test: string): Map<string, number> {
  const far = new Map([[test, 0]]);
  for (const [path, distance] of far) {
    let next = imports.get(path);
    if (next === undefined) {
      const text = readFileSync(path, 'utf8');
      const programs = [...text.matchAll(PROGRAM)].map(([, program]) => `src/${program}`);
      next = [...importsOf({ path, text }), ...programs];
      imports.set(path, next);
    }
    for (const each of next) if (!far.has(each)) far.set(each, distance + 1);
  }
  return far;
}
const rooms = new Set(sources.map((path) => path.split('/')[1]));
const tests = globSync('src/*/**/*.test.ts')
  .filter((path) => rooms.has(path.split('/')[1]))
  .map((path) => ({ path, reaches: distances(path) }));

/** How long it took; null: it failed, or took too long. */
function run(path: string, patienceMs: number): Promise<number | null> {
  const startedMs = performance.now();
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', '--test', path], {
    cwd: copy,
    stdio: 'ignore',
    detached: true,
    env: { ...process.env, GODWIT_SEED: '1', NODE_COMPILE_CACHE: '' },
  });
  const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), patienceMs);
  return new Promise((done) =>
    child.once('close', (code) => {
      clearTimeout(timer);
      done(code === 0 ? performance.now() - startedMs : null);
    }),
  );
}

const tookMs = new Map<string, number>();
async function judge(mutation: Mutation): Promise<string | null> {
  const near = tests
    .filter(({ reaches }) => reaches.has(mutation.path))
    .sort((left, right) => left.reaches.get(mutation.path)! - right.reaches.get(mutation.path)!);
  for (const { path } of near) {
    if (tookMs.has(path)) continue;
    const took = await run(path, 3_600_000);
    if (took === null) throw new Error(`${path} fails without any change`);
    tookMs.set(path, took);
  }
  const text = readFileSync(mutation.path, 'utf8');
  writeFileSync(join(copy, mutation.path), mutate(text, mutation));
  try {
    for (const { path } of near) {
      const patienceMs = Math.max(PATIENCE_MS_MIN, PATIENCE_FACTOR * tookMs.get(path)!);
      if ((await run(path, patienceMs)) === null) return path;
    }
    return null;
  } finally {
    writeFileSync(join(copy, mutation.path), text);
  }
}

const random = seededRandom(seed);
const all = sources.flatMap((path) => mutationsOf({ path, text: readFileSync(path, 'utf8') }));
const drawn: Mutation[] = [];
while (drawn.length < Number(values.count) && all.length > 0)
  drawn.push(...all.splice(random.below(all.length), 1));
const survivors: Mutation[] = [];
for (const [index, mutation] of drawn.entries()) {
  const killer = await judge(mutation);
  if (killer === null) survivors.push(mutation);
  const line = readFileSync(mutation.path, 'utf8').split('\n')[mutation.line - 1]!.trim();
  const change = `${mutation.path}:${mutation.line}  ${mutation.was} → ${mutation.text || 'nothing'}`;
  const verdict = killer === null ? 'SURVIVED' : `seen by ${killer}`;
  console.log(
    `[${index + 1}/${drawn.length}] ${verdict}  ${change}${killer === null ? `\n    ${line}` : ''}`,
  );
}
const killed = drawn.length - survivors.length;
console.log(
  `\n${[...rooms].join(', ')}: ${killed} of ${drawn.length} seen (${Math.round((100 * killed) / drawn.length)} %), seed ${seed}, of ${all.length + drawn.length} possible changes`,
);
process.exitCode = survivors.length === 0 ? 0 : 1;
