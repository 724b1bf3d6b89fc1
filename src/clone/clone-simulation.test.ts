import assert from 'node:assert/strict';
import test from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { simulateClone, Violation } from './clone-simulation.ts';

const seed = testSeed();
const CRASH_POINTS_MIN = Number(process.env.GODWIT_CRASH_POINTS ?? 5_000);

/** The run's own seed is in the message, so that GODWIT_SEED can repeat it alone. */
async function life(lifeSeed: number, cutAt: number | null, cutsAfterwards: number, guestOperations: number) {
  try {
    // Most lives with a power cut are judged by it; some go on to the end of hydration.
    const toTheEnd = cutAt === null || cutAt % 8 === 0;
    return await simulateClone({ seed: lifeSeed, cutAt, cutsAfterwards, guestOperations, toTheEnd });
  } catch (error) {
    throw new Error(`GODWIT_SEED=${lifeSeed} cutAt=${cutAt}: ${(error as Error).message}`, { cause: error });
  }
}

test('random operations, stalls, outages and deaths of the process agree with the model', async (t) => {
  let deaths = 0;
  let steps = 0;
  for (let index = 0; index < 150; index++) {
    const result = await life(seed + index, null, 0, 80);
    deaths += result.processDeaths;
    steps += result.steps;
  }
  assert.ok(deaths > 50, 'processes died');
  t.diagnostic(`150 lives, ${deaths} deaths of the process, ${steps} steps`);
});

test('a power cut at every point loses nothing that was flushed and invents nothing', async (t) => {
  let crashPoints = 0;
  let lives = 0;
  for (let index = 0; crashPoints < CRASH_POINTS_MIN; index++) {
    const { powerOperations } = await life(seed + index, null, 0, 24);
    for (let cutAt = 1; cutAt <= powerOperations; cutAt++) {
      crashPoints += (await life(seed + index, cutAt, 8, 24)).crashPoints;
      lives++;
    }
  }
  t.diagnostic(`${crashPoints} power cuts in ${lives} lives`);
});

test('the simulation notices bits that are durable before their data', async () => {
  await assert.rejects(
    async () => {
      for (let index = 0; index < 400; index++) {
        for (const cutAt of [2, 5, 9, 14, 20]) {
          await simulateClone({
            seed: seed + index,
            cutAt,
            cutsAfterwards: 3,
            guestOperations: 30,
            toTheEnd: false,
            commitOrder: async (dataDurable, bitsDurable) => {
              await bitsDurable();
              await dataDurable();
            },
          });
        }
      }
    },
    (error) => error instanceof Violation && /after a power cut|nothing says where from/.test(error.message),
  );
});
