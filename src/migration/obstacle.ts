import { toWireError } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';

/*
 * What stands in the way of a step has a name, or it is only slow. An obstacle that trying again does not
 * lift (`retry: 'never'`) sends the run back at once, which the journal does for every step; slowness and
 * silence never do, once the machine is stopped (journal/run.ts, `whenQuiet`). What is neither, also what the
 * system of this host says (an immutable folder), is tried a few times.
 */

/** The machine is stopped and waits: tries after which it does not pass by itself either. */
const TRIES_MAX = 5;
/** While the machine still runs at the source nobody waits for them but a drain, which may go elsewhere. */
const TRIES_BEFORE_STOP = 8;

/** While the machine runs: another worker may take it. */
export function orElsewhere<T>(attempt: number, work: Promise<T>): Promise<T> {
  return orAbort(attempt >= TRIES_BEFORE_STOP, work);
}

/** While the machine is stopped: it starts again where it was. */
export function orBack<T>(attempt: number, work: Promise<T>): Promise<T> {
  return orAbort(attempt >= TRIES_MAX, work);
}

async function orAbort<T>(isLast: boolean, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    // One that was called off, because this worker ends, says nothing of what stands in the way.
    const tells = error instanceof Error && !(error instanceof Abort) && error.name !== 'AbortError';
    if (isLast && tells && toWireError(error).retry === 'unknown') throw new Abort(error);
    throw error;
  }
}
