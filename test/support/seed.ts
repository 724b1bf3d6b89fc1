import { toldOnFailure } from './failure.ts';

const SEEDS = 2 ** 31;
let drawn: number | null = null;

/**
 * Of all that this test process draws: GODWIT_SEED, or another one each time. A failure tells it. From 0 to
 * 2^31 - 1.
 */
export function testSeed(): number {
  if (drawn === null) {
    const asked = process.env.GODWIT_SEED;
    drawn = asked === undefined ? Math.floor(Math.random() * SEEDS) : Number(asked);
    if (!Number.isSafeInteger(drawn)) throw new Error(`GODWIT_SEED is a whole number, and not ${asked}`);
    toldOnFailure('GODWIT_SEED', String(drawn));
  }
  return drawn;
}
