import assert from 'node:assert/strict';
import test from 'node:test';
import {
  type SimulationOptions,
  type SimulationResult,
  simulateClone,
  Violation,
} from '../../test/support/clone-simulation.ts';
import { testSeed } from '../../test/support/seed.ts';

const seed = testSeed();
const LONG = process.env.GODWIT_LONG === '1';
const CRASH_POINTS_MIN = Number(process.env.GODWIT_CRASH_POINTS ?? (LONG ? 50_000 : 5_000));
const FAULT_POINTS_MIN = Number(process.env.GODWIT_FAULT_POINTS ?? (LONG ? 50_000 : 5_000));

/** The run's own seed is in the message, so that GODWIT_SEED can repeat it alone. */
async function life(
  lifeSeed: number,
  cutAt: number | null,
  cutsAfterwards: number,
  guestOperations: number,
  failingDisk = false,
) {
  try {
    // Most lives with a power cut are judged by it; some go on to the end of hydration.
    const toTheEnd = cutAt === null || cutAt % 8 === 0;
    return await simulateClone({
      seed: lifeSeed,
      cutAt,
      cutsAfterwards,
      guestOperations,
      toTheEnd,
      failingDisk,
    });
  } catch (error) {
    throw new Error(`GODWIT_SEED=${lifeSeed} cutAt=${cutAt}: ${(error as Error).message}`, { cause: error });
  }
}

/** Without a power cut. Rejects with the first violation. */
async function livesToTheEnd(
  count: number,
  optionsOf: (index: number) => Partial<SimulationOptions>,
): Promise<SimulationResult[]> {
  const always = { cutAt: null, cutsAfterwards: 0, guestOperations: 60, toTheEnd: true };
  const results: SimulationResult[] = [];
  for (let index = 0; index < count; index++)
    results.push(await simulateClone({ seed: seed + index, ...always, ...optionsOf(index) }));
  return results;
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

test(`a disk that refuses fetched blocks, and metadata, makes no block present that it does not have (GODWIT_SEED=${seed})`, async (t) => {
  let faultPoints = 0;
  let crashPoints = 0;
  let deaths = 0;
  let lives = 0;
  for (let index = 0; faultPoints < FAULT_POINTS_MIN; index++) {
    const cutAt = index % 3 === 0 ? 1 + (index % 97) : null;
    const result = await life(seed + index, cutAt, cutAt === null ? 0 : 4, 60, true);
    faultPoints += result.faultPoints;
    crashPoints += result.crashPoints;
    deaths += result.processDeaths;
    lives++;
  }
  t.diagnostic(
    `${faultPoints} refusals, ${crashPoints} power cuts, ${deaths} deaths of the process in ${lives} lives`,
  );
});

test('the simulation notices blocks that are present because the page cache has them', async () => {
  await assert.rejects(
    livesToTheEnd(100, () => ({ failingDisk: true, trustPageCache: true })),
    (error) => error instanceof Violation && /a read of sector|is not what was fetched/.test(error.message),
  );
});

test(`a data filesystem that is mounted again loses nothing that was flushed (GODWIT_SEED=${seed})`, async (t) => {
  const remounts = { harmless: 0, lossy: 0 };
  const options = (index: number) => ({ failingDisk: index % 2 === 1, remounts: true });
  for (const found of await livesToTheEnd(LONG ? 4_000 : 80, options)) {
    remounts.harmless += found.remounts.harmless;
    remounts.lossy += found.remounts.lossy;
  }
  assert.ok(remounts.harmless > 20 && remounts.lossy > 20, `both kinds came: ${JSON.stringify(remounts)}`);
  t.diagnostic(`${remounts.harmless} without a loss, ${remounts.lossy} with one`);
});

test('the simulation notices a live map that is believed after its data was mounted again', async () => {
  await assert.rejects(
    livesToTheEnd(400, () => ({ remounts: true, trustLiveMap: true })),
    (error) => error instanceof Violation,
  );
});
