import { constants } from 'node:os';
import { GodwitError } from '../base/errors.ts';

/** Throws `MACHINE_BAD_SIGNAL` for a name that this host does not know. */
export function checkStopSignal(signal: string): void {
  if (isSignal(signal)) return;
  throw new GodwitError('MACHINE_BAD_SIGNAL', `there is no signal ${signal}`, {
    values: { signal },
    nextAction: 'Use a name of signal(7), such as SIGTERM, SIGINT or SIGQUIT.',
  });
}

export function isSignal(name: string): name is NodeJS.Signals {
  return Object.hasOwn(constants.signals, name);
}
