import { spawn } from 'node:child_process';
import { createWriteStream, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { SOAKS, type Soak } from './soaks.ts';
import { nextRound, type Round, readState, report, roundSeed, type SoakState, writeState } from './state.ts';

/**
 * `npm run soak -- MINUTES`: round after round of what takes long, in turns, for that long. Exit code 1 when
 * a round failed.
 */
const HELP = `npm run soak -- MINUTES [--seed N] [--only NAME,NAME] [--resume] [--state FOLDER]
  --seed N      of the whole; printed, and drawn when it is not given
  --only NAMES  some of them
  --resume      goes on where the last one in that folder was left, also after it was killed
  --state DIR   where state, and the output of rounds that failed, are (.cache/soak)
soaks:
${SOAKS.map(({ name, about }) => `  ${name.padEnd(14)}${about}`).join('\n')}`;
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const ROUND = fileURLToPath(new URL('round-program.ts', import.meta.url));

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    seed: { type: 'string' },
    only: { type: 'string' },
    resume: { type: 'boolean' },
    state: { type: 'string' },
    help: { type: 'boolean' },
  },
});
const minutes = Number(positionals[0]);
const names = values.only?.split(',') ?? SOAKS.map(({ name }) => name);
const unknown = names.filter((name) => !SOAKS.some((soak) => soak.name === name));
if (values.help || !(minutes > 0) || unknown.length > 0) {
  if (unknown.length > 0) console.error(`there is no soak ${unknown.join(', ')}`);
  console.log(HELP);
  process.exit(values.help ? 0 : 2);
}
const folder = values.state ?? join(ROOT, '.cache', 'soak');
const statePath = join(folder, 'state.json');
const earlier = values.resume ? readState(statePath) : null;
if (values.resume && earlier === null)
  console.log(`nothing in ${folder} that could be gone on with: from the beginning`);
const drawn = values.seed === undefined ? roundSeed(Date.now(), 'all', 0) : Number(values.seed);
const state: SoakState = earlier ?? { version: 1, seed: drawn, rounds: [] };
console.log(
  `seed ${state.seed}, ${minutes} minutes, ${state.rounds.length} rounds before; state in ${folder}`,
);

/** A module ends by itself when its minutes are over, and has something to say then. */
const MODULE_GRACE_MS = 20 * 60_000;

const endMs = performance.now() + minutes * 60_000;
const abort = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => abort.abort());

/** How a person runs that round alone. */
function again({ round, name }: Soak, seed: number): string {
  if (!('files' in round)) return `npm run soak -- ${round.minutes} --only ${name} --seed ${state.seed}`;
  const env = Object.entries({ ...round.env, GODWIT_SEED: seed }).map(([key, value]) => `${key}=${value}`);
  return `${env.join(' ')} scripts/test ${round.files.map((file) => `'${file}'`).join(' ')}`;
}

function commandOf({ round }: Soak, seed: number, stateFolder: string): [string, string[]] {
  if ('files' in round) return [join(ROOT, 'scripts', 'test'), [...round.files]];
  const leftMinutes = (endMs - performance.now()) / 60_000;
  return [
    process.execPath,
    [ROUND, round.module, String(Math.min(round.minutes, leftMinutes)), String(seed), stateFolder],
  ];
}

async function run(soak: Soak, seed: number): Promise<Round> {
  const startedMs = performance.now();
  const stateFolder = join(folder, `${soak.name}-${seed}`);
  mkdirSync(stateFolder, { recursive: true });
  const log = createWriteStream(join(stateFolder, 'output.log'));
  const [program, args] = commandOf(soak, seed, stateFolder);
  const child = spawn(program, args, {
    cwd: ROOT,
    // A group of its own: it is ended as a whole, by the signal that lets tests clean up.
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...('files' in soak.round ? soak.round.env : {}), GODWIT_SEED: String(seed) },
  });
  for (const stream of [child.stdout, child.stderr]) stream.pipe(log, { end: false });
  const end = () => child.pid !== undefined && process.kill(-child.pid, 'SIGTERM');
  abort.signal.addEventListener('abort', end, { once: true });
  const graceMs = 'files' in soak.round ? 0 : MODULE_GRACE_MS;
  const timer = setTimeout(() => abort.abort(), Math.max(0, endMs - performance.now()) + graceMs);
  const exitCode = await new Promise<number | null>((resolve) => {
    child.once('error', () => resolve(null));
    child.once('close', resolve);
  });
  abort.signal.removeEventListener('abort', end);
  clearTimeout(timer);
  log.end();
  const outcome = exitCode === 0 ? 'passed' : abort.signal.aborted ? 'unfinished' : 'failed';
  if (outcome !== 'failed') rmSync(stateFolder, { recursive: true, force: true });
  return { soak: soak.name, seed, outcome, seconds: Math.round((performance.now() - startedMs) / 1000) };
}

while (!abort.signal.aborted && performance.now() < endMs) {
  const turn = nextRound(state, names);
  const soak = SOAKS.find(({ name }) => name === turn.soak)!;
  const round = await run(soak, turn.seed);
  state.rounds.push(round);
  writeState(statePath, state);
  console.log(`${round.soak} (seed ${round.seed}): ${round.outcome} after ${round.seconds} s`);
  if (round.outcome === 'failed')
    console.log(`  output: ${join(folder, `${soak.name}-${turn.seed}`)}\n  again: ${again(soak, turn.seed)}`);
}
console.log(report(state, names));
process.exit(state.rounds.some(({ outcome }) => outcome === 'failed') ? 1 : 0);
