import { mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import type { MachineConfig } from '../../src/contract/machine-config.ts';
import { readCgroupLayout } from '../../src/host/cgroup.ts';
import { readMountTable } from '../../src/host/mount-table.ts';
import { runProgram } from '../../src/host/program.ts';
import { jailRuntime } from '../../src/jail/runtime.ts';
import { Workload } from '../../src/machine/workload.ts';
import { cleanUpAfterDeadShim } from '../../src/shim/cleanup.ts';
import { findShim, ShimClient } from '../../src/shim/client.ts';
import './compile-cache.ts';
import { type Ending, leaveFolder } from './failure.ts';
import { patient, until } from './patience.ts';
import { requires } from './requires.ts';

/** Skip value for tests that start machines. */
export const machineNeeds = requires('root', 'unshare', 'nsenter', 'setpriv', 'mount', 'tini');

/** A configuration with the defaults of the API. `script` runs in sh. */
export function machineConfig(script: string, overrides: Partial<MachineConfig> = {}): MachineConfig {
  return {
    command: ['sh', '-c', script],
    env: {},
    restart: { policy: 'no', retriesMax: 0 },
    stop: { signal: 'SIGTERM', timeoutMs: patient(5_000) },
    resources: {},
    network: 'host',
    // Node is in there, and the checkout may lie below /tmp, which a machine has of its own.
    hostFolders: [fileURLToPath(new URL('../..', import.meta.url))],
    metadata: {},
    ...overrides,
  };
}

/**
 * A folder whose path is short enough for unix sockets, without symbolic links. Afterwards `end` runs, what
 * is mounted below goes, and the folder too; in one hook, since node:test runs hooks in the order in which
 * they were set and stops at the first that fails.
 */
export function runtimeFolder(t: Ending, end: (dir: string) => Promise<void> = async () => {}): string {
  const dir = realpathSync(mkdtempSync(join(tmpdir(), 'gw-m-')));
  t.after(async () => {
    try {
      await end(dir);
    } finally {
      for (const { mountPoint } of readMountTable().reverse()) {
        if (mountPoint.startsWith(`${dir}/`))
          await runProgram('umount', ['-l', mountPoint], { timeoutMs: patient(10_000) });
      }
      leaveFolder(t, dir);
    }
  });
  return dir;
}

/** A workload in this process; stopped afterwards, also when the test fails. */
export function testWorkload(
  t: TestContext,
  hidden: string[] = [],
): { workload: Workload; runtimeDir: string } {
  const runtimeDir = runtimeFolder(t, async () => {
    await workload.stop({ timeoutMs: 0 });
    await workload.close();
  });
  const workload: Workload = new Workload({
    runtimeDir,
    hidden,
    runtimes: { process: jailRuntime },
    cgroupLayout: readCgroupLayout(),
    clock: systemClock,
    logger: silentLogger,
    onChange() {},
  });
  return { workload, runtimeDir };
}

/** Ends whatever shim there is at the folder, living or dead. */
export async function endShim(runtimeDir: string): Promise<void> {
  if ((await findShim(runtimeDir)) === 'running') {
    const client = await ShimClient.connect(runtimeDir, { clock: systemClock });
    await client.call('shutdown', {}).catch(() => {});
    client.close();
    await until('the shim to end', () => findShim(runtimeDir), { is: (found) => found !== 'running' });
  }
  await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
}
