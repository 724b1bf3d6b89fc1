import { isGodwitError, toWireError } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';

/*
 * What stands in the way of a step has a name, or it is only slow. An obstacle that trying again does not
 * lift (`retry: 'never'`) sends the run back at once, which the journal does for every step; slowness and
 * silence never do, once the machine is stopped (journal/run.ts, `whenQuiet`).
 */

/** Of what is neither: tries after which it does not pass by itself either. */
const TRIES_MAX = 5;
/** While the machine still runs at the source nobody waits for them but a drain, which may go elsewhere. */
const TRIES_BEFORE_STOP = 8;

/**
 * The same while the machine runs, also for what the system of this host says (an immutable folder): another
 * worker may take it.
 */
export async function orElsewhere<T>(attempt: number, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const isUnknown = !(error instanceof Abort) && toWireError(error).retry === 'unknown';
    if (error instanceof Error && isUnknown && attempt >= TRIES_BEFORE_STOP) throw new Abort(error);
    throw error;
  }
}

/**
 * While the machine is stopped: what is not known to pass is tried a few times, because the machine waits.
 */
export async function orBack<T>(attempt: number, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (isGodwitError(error) && error.retry === 'unknown' && attempt >= TRIES_MAX) throw new Abort(error);
    throw error;
  }
}
