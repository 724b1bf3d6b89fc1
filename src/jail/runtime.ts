import { runOf } from '../contract/machine-run.ts';
import type { Runtime } from '../shim/runtime.ts';
import { JailInstance } from './instance.ts';
import { checkHostCanRun, findJailTools, missingProgram, readAccount } from './jail.ts';

/** Machines as process trees of this host. */
export const jailRuntime: Runtime = {
  preflight: checkHostCanRun,
  missing: missingProgram,
  account: (config) => readAccount(runOf(config).user),
  // The worker's: the shim of a machine does not load the code of terminals.
  session: async (entrance, options) => (await import('./exec-session.ts')).startSession(entrance, options),
  instance: (place) => new JailInstance(place, findJailTools()),
};
