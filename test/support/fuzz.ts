import { setImmediate } from 'node:timers/promises';
import fc from 'fast-check';

const BATCH_RUNS = 2_000;

/**
 * `fc.assert` in batches, with a turn of the event loop between them: what the code under test left for the
 * end of the turn (a writer's batch) would otherwise pile up over a million runs.
 */
export async function assertInBatches<Values>(
  property: fc.IRawProperty<Values>,
  options: { numRuns: number; seed: number },
): Promise<void> {
  for (let done = 0; done < options.numRuns; done += BATCH_RUNS) {
    const numRuns = Math.min(BATCH_RUNS, options.numRuns - done);
    await fc.assert(property, { numRuns, seed: (options.seed + done / BATCH_RUNS) | 0 });
    await setImmediate();
  }
}
