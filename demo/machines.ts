import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CreateMachineRequest, CreateVolumeRequest } from '../src/contract/schemas.ts';
import { letPass, patient } from '../test/support/patience.ts';

const HERE = dirname(fileURLToPath(import.meta.url));
const CHECKOUT = dirname(HERE);
const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** Where Debian's package puts the server. */
export const POSTGRES_BIN = '/usr/lib/postgresql/15/bin';

export type DemoMachine = {
  volume: CreateVolumeRequest;
  machine: (volumeId: string) => CreateMachineRequest;
};

type Ports = { postgres: number; ledger: number; files: number; archive: number };

function config(
  volumeId: string,
  command: string[],
  more: Partial<CreateMachineRequest['config']>,
): CreateMachineRequest['config'] {
  return {
    command,
    env: {},
    volume: { volumeId, mountPath: '/data' },
    restart: { policy: 'always', retriesMax: 10 },
    stop: { signal: 'SIGTERM', timeoutMs: letPass(10_000) },
    resources: { memoryBytes: 512 * MIB },
    network: 'host',
    // The checkout may lie below /tmp, which a machine has of its own.
    hostFolders: [CHECKOUT],
    metadata: {},
    ...more,
  };
}

function health(check: { kind: 'exec'; command: string[] } | { kind: 'http'; url: string }) {
  return {
    ...check,
    intervalMs: 2_000,
    timeoutMs: patient(2_000),
    retries: 3,
    startPeriodMs: patient(60_000),
  };
}

/** The four machines of the demo. */
export function demoMachines(ports: Ports): Record<'postgres' | 'ledger' | 'files' | 'archive', DemoMachine> {
  const nodeMachine = (name: string, lengthBytes: number, port: number, args: string[]): DemoMachine => ({
    volume: { name: `${name}-data`, lengthBytes, filesystem: 'ext4' },
    machine: (volumeId) => ({
      name,
      start: true,
      config: config(volumeId, [process.execPath, '--disable-warning=ExperimentalWarning', ...args], {
        health: health({ kind: 'http', url: `http://127.0.0.1:${port}/` }),
      }),
    }),
  });
  return {
    postgres: postgresMachine('postgres', 10 * GIB, ports.postgres),
    ledger: nodeMachine('ledger', GIB, ports.ledger, [
      join(HERE, 'machines/ledger.ts'),
      '/data',
      `${ports.ledger}`,
    ]),
    files: nodeMachine('files', 4 * GIB, ports.files, [
      join(HERE, 'machines/files.ts'),
      '/data',
      `${ports.files}`,
      '300',
      `${MIB}`,
    ]),
    archive: nodeMachine('archive', 100 * GIB, ports.archive, [
      join(HERE, 'machines/files.ts'),
      '/data',
      `${ports.archive}`,
      '4',
      '65536',
    ]),
  };
}

/**
 * A machine that runs a PostgreSQL cluster; also what the interruption bench moves, with volumes of several
 * sizes.
 */
export function postgresMachine(name: string, lengthBytes: number, port: number): DemoMachine {
  return {
    volume: { name: `${name}-data`, lengthBytes, filesystem: 'ext4' },
    machine: (volumeId) => ({
      name,
      start: true,
      config: config(volumeId, [join(HERE, 'machines/postgres.sh'), '/data', `${port}`, POSTGRES_BIN], {
        stop: { signal: 'SIGINT', timeoutMs: patient(30_000) },
        health: health({
          kind: 'exec',
          command: [join(POSTGRES_BIN, 'pg_isready'), '-q', '-h', '/tmp', '-p', `${port}`],
        }),
      }),
    }),
  };
}
