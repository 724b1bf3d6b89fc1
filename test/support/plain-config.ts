import type { MachineConfig } from '../../src/contract/machine-config.ts';

/** A machine that is told nothing and is killed when it shall stop, with its volume, where it has one, at /data. */
export function plainConfig(volumeId: string | null, ...command: string[]): MachineConfig {
  return {
    command,
    env: {},
    ...(volumeId !== null && { volume: { volumeId, mountPath: '/data' } }),
    restart: { policy: 'always', retriesMax: 10 },
    stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
    resources: {},
    network: 'host',
    metadata: {},
  };
}
