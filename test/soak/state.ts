import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

export type Round = {
  soak: string;
  seed: number;
  /** `unfinished`: it was ended, because the time was over or somebody said so. */
  outcome: 'passed' | 'failed' | 'unfinished';
  seconds: number;
};

/** All that is needed to go on where a soak was left. */
export type SoakState = { version: 1; seed: number; rounds: Round[] };

/** Null where there is none, or none that this version reads. */
export function readState(path: string): SoakState | null {
  try {
    const state = JSON.parse(readFileSync(path, 'utf8')) as SoakState;
    return state.version === 1 && Number.isInteger(state.seed) && Array.isArray(state.rounds) ? state : null;
  } catch {
    return null;
  }
}

export function writeState(path: string, state: SoakState): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, `${JSON.stringify(state, null, 1)}\n`);
  renameSync(`${path}.new`, path);
}

/**
 * The soak whose turn it is: the one with the fewest rounds that are over, the first of several. An
 * unfinished round is tried again, with its seed.
 */
export function nextRound(state: SoakState, names: readonly string[]): { soak: string; seed: number } {
  const over = (name: string) =>
    state.rounds.filter(({ soak, outcome }) => soak === name && outcome !== 'unfinished').length;
  const [soak] = [...names].sort((left, right) => over(left) - over(right));
  if (soak === undefined) throw new Error('no soak');
  return { soak, seed: roundSeed(state.seed, soak, over(soak)) };
}

/** 1 to 2^31 - 1: the same for the same soak, round and seed of the whole. */
export function roundSeed(seed: number, soak: string, round: number): number {
  const digest = createHash('sha256').update(`${seed} ${soak} ${round}`).digest();
  return (digest.readUInt32LE(0) % (2 ** 31 - 1)) + 1;
}

/** A line a soak: rounds, and what came of them. */
export function report(state: SoakState, names: readonly string[]): string {
  return names
    .map((name) => {
      const rounds = state.rounds.filter(({ soak }) => soak === name);
      const count = (outcome: Round['outcome']) => rounds.filter((round) => round.outcome === outcome).length;
      const seconds = rounds.reduce((sum, round) => sum + round.seconds, 0);
      const failed = rounds.filter(({ outcome }) => outcome === 'failed').map(({ seed }) => seed);
      return `${name}: ${count('passed')} rounds passed, ${failed.length} failed${failed.length > 0 ? ` (seeds ${failed.join(', ')})` : ''}, ${count('unfinished')} not finished, ${seconds} s`;
    })
    .join('\n');
}
