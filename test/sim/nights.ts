import { mkdtempSync } from 'node:fs';
import type { SoakContext } from '../soak/soaks.ts';
import { figures } from './figures.ts';
import type { LifeResult } from './life.ts';
import { live } from './start.ts';

const DRAINS = 10_000;
const DRAINS_PER_LIFE = 50;

/** Lives of fleets, one after the other, until ten thousand drains are over or the time is. */
export async function run({ minutes, seed, log }: SoakContext): Promise<void> {
  const endMs = Date.now() + minutes * 60_000;
  const lives: LifeResult[] = [];
  for (let life = 0; Date.now() < endMs && life < DRAINS / DRAINS_PER_LIFE; life++) {
    const result = await live({
      seed: (seed + life) % 2 ** 31,
      root: mkdtempSync('/dev/shm/godwit-sim-'),
      drains: DRAINS_PER_LIFE,
      workers: 3 + (life % 6),
      machines: 20 + (life % 4) * 10,
    });
    lives.push(result);
    if (result.violation !== null) {
      log(figures(lives));
      throw new Error(`seed ${result.seed}: ${result.violation}`);
    }
    if (life % 10 === 9) log(figures(lives));
  }
  log(figures(lives));
}
