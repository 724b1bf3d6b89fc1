import { GodwitError } from '../base/errors.ts';

/** In a request, the worker that it is meant for; in an answer, who gave it. */
export const WORKER_HEADER = 'godwit-worker';

/** What was meant for one worker must not be done by another: a drain empties the wrong host. */
export function wrongWorker(meant: string, found: string, url: string): GodwitError {
  return new GodwitError('API_WRONG_WORKER', `${url} is ${found}, and not ${meant}`, {
    values: { meant, found, url, delivered: false },
    nextAction: `Put the address of ${meant} right: in the fleet file, or in --peer of the worker that asks.`,
  });
}
