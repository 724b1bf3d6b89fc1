import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { MachineConfig } from '../../src/contract/machine-config.ts';
import { letPass, patient } from './patience.ts';

const WRITER = fileURLToPath(new URL('./writer.ts', import.meta.url));
/** Machines have a /tmp of their own, and the checkout may be below that of the host. */
const CHECKOUT = fileURLToPath(new URL('../..', import.meta.url));

/**
 * writer.ts without its types: a machine has no place where that would be kept, and each start would do it
 * again.
 */
function writerProgram(): string {
  const source = readFileSync(WRITER, 'utf8');
  const digest = createHash('sha256').update(source).digest('hex').slice(0, 16);
  const path = join(CHECKOUT, 'node_modules/.cache/writer', `${digest}.mjs`);
  if (existsSync(path)) return path;
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.${process.pid}`, stripTypeScriptTypes(source));
  renameSync(`${path}.${process.pid}`, path);
  return path;
}

/**
 * A machine that is the writer (writer.ts), with its volume at /data. `collector`: port, or host and port, of
 * who keeps its acknowledgements.
 */
export function writerConfig(volumeId: string, collector: string, name: string): MachineConfig {
  return {
    command: [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      ...[writerProgram(), '/data', collector, name],
    ],
    env: {},
    volume: { volumeId, mountPath: '/data' },
    restart: { policy: 'always', retriesMax: 10 },
    stop: { signal: 'SIGTERM', timeoutMs: letPass(10_000) },
    health: {
      kind: 'exec',
      command: ['test', '-e', '/run/ready'],
      ...{ intervalMs: 2_000, timeoutMs: Math.min(600_000, patient(20_000)), retries: 3 },
      startPeriodMs: patient(60_000),
    },
    resources: {},
    network: 'host',
    hostFolders: [CHECKOUT],
    metadata: {},
  };
}
