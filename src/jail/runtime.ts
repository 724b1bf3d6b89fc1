import { runOf } from '../contract/machine-config.ts';
import type { Runtime } from '../shim/runtime.ts';
import { startSession } from './exec-session.ts';
import { JailInstance } from './instance.ts';
import { checkHostCanRun, findJailTools, missingProgram, readAccount } from './jail.ts';

/** Machines as process trees of this host. */
export const jailRuntime: Runtime = {
  preflight: checkHostCanRun,
  missing: missingProgram,
  account: (config) => readAccount(runOf(config).user),
  session: startSession,
  instance: (place) => new JailInstance(place, findJailTools()),
};
