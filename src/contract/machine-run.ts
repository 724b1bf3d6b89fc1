import { GodwitError } from '../base/errors.ts';
import type { MachineConfig, MachineNetwork, MachineRun } from './machine-config.ts';

/*
 * The one reader of both forms of a configuration. Beside the schema and not in it: every machine has a shim, and
 * the library of schemas would be a tenth of its memory.
 */

/** Throws `MACHINE_BAD_RUN` for a configuration that names nothing to run, or two things. */
export function runOf(config: MachineConfig): MachineRun {
  const { run, command, env, user, workingDirectory, hostFolders, devices } = config;
  const atTheTop = [command, user, workingDirectory, hostFolders, devices].some((each) => each !== undefined);
  if (run !== undefined && !atTheTop) return run;
  if (command === undefined || run !== undefined)
    throw new GodwitError('MACHINE_BAD_RUN', 'a machine runs one thing: give `command`, or `run`', {
      retry: 'never',
      nextAction: 'Correct the configuration; /openapi.json has its schema.',
    });
  return {
    kind: 'process',
    command,
    env,
    ...(user !== undefined && { user }),
    ...(workingDirectory !== undefined && { workingDirectory }),
    ...(hostFolders !== undefined && { hostFolders }),
    ...(devices !== undefined && { devices }),
  };
}

export function networkOf({ network }: Pick<MachineConfig, 'network'>): MachineNetwork {
  return typeof network === 'string' ? { kind: network } : network;
}

/** The same, as everybody reads it. Throws as `runOf` does. */
export function writtenConfig(config: MachineConfig): MachineConfig {
  const { kind, ...process } = runOf(config);
  const { run, ...others } = config;
  switch (kind) {
    case 'process':
      return { ...others, ...process, network: networkOf(config).kind };
  }
}
