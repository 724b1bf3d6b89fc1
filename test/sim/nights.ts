import { mkdtempSync } from 'node:fs';
import type { SoakContext } from '../soak/soaks.ts';
import { figures } from './figures.ts';
import type { LifeOptions, LifeResult } from './life.ts';
import { live } from './start.ts';

const DRAINS = 10_000;
const DRAINS_PER_LIFE = 50;

/** So that `--seed` begins with the very life that was printed. */
function fleetOf(seed: number): Pick<LifeOptions, 'seed' | 'workers' | 'machines'> {
  return { seed, workers: 3 + (seed % 6), machines: seed % 2 === 0 ? 8 : 15 + (seed % 8) * 5 };
}

/**
 * Lives of fleets, one after the other, until ten thousand drains are over or the time is; every other one of
 * twenty to fifty machines. What is found is printed, and does not end the night.
 */
export async function run({ minutes, seed, log }: SoakContext): Promise<void> {
  const endMs = Date.now() + minutes * 60_000;
  const lives: LifeResult[] = [];
  const found: number[] = [];
  for (let life = 0; Date.now() < endMs && life < DRAINS / DRAINS_PER_LIFE; life++) {
    const result = await live({
      ...fleetOf((seed + life) % 2 ** 31),
      root: mkdtempSync('/dev/shm/godwit-sim-'),
      drains: DRAINS_PER_LIFE,
    });
    lives.push(result);
    if (result.violation !== null) {
      found.push(result.seed);
      log(`GODWIT_SEED=${result.seed}: ${result.violation}`);
    }
    if (life % 10 === 9) log(figures(lives));
  }
  log(figures(lives));
  if (found.length > 0) throw new Error(`seeds ${found.join(', ')}`);
}
