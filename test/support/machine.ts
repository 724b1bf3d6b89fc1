import { mkdtempSync, realpathSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { readCgroupLayout } from '../../src/machine/cgroup.ts';
import type { MachineConfig } from '../../src/machine/config.ts';
import { findJailTools } from '../../src/machine/jail.ts';
import { cleanUpAfterDeadShim } from '../../src/machine/shim-cleanup.ts';
import { findShim, ShimClient } from '../../src/machine/shim-client.ts';
import { Workload } from '../../src/machine/workload.ts';
import { requires } from './requires.ts';

/** Skip value for tests that start machines. */
export const machineNeeds = requires('root', 'unshare', 'nsenter', 'setpriv', 'mount', 'tini');

/** A configuration with the defaults of the API. `script` runs in sh. */
export function machineConfig(script: string, overrides: Partial<MachineConfig> = {}): MachineConfig {
  return {
    command: ['sh', '-c', script],
    env: {},
    restart: { policy: 'no', retriesMax: 0 },
    stop: { signal: 'SIGTERM', timeoutMs: 5_000 },
    resources: {},
    network: 'host',
    metadata: {},
    ...overrides,
  };
}

/** A folder whose path is short enough for unix sockets, without symbolic links; removed afterwards. */
export function runtimeFolder(t: TestContext): string {
  const dir = realpathSync(mkdtempSync('/tmp/gw-m-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** A workload in this process; stopped afterwards, also when the test fails. */
export function testWorkload(
  t: TestContext,
  hidden: string[] = [],
): { workload: Workload; runtimeDir: string } {
  const runtimeDir = runtimeFolder(t);
  const workload = new Workload({
    runtimeDir,
    hidden,
    tools: findJailTools(),
    cgroupLayout: readCgroupLayout(),
    clock: systemClock,
    logger: silentLogger,
    onChange() {},
  });
  t.after(async () => {
    await workload.stop({ timeoutMs: 0 });
    await workload.close();
  });
  return { workload, runtimeDir };
}

/** Ends whatever shim there is in the folder after the test, living or dead. */
export function endShimAfter(t: TestContext, runtimeDir: string): void {
  t.after(async () => {
    if ((await findShim(runtimeDir)) === 'running') {
      const client = await ShimClient.connect(runtimeDir);
      await client.call('shutdown', {}).catch(() => {});
      client.close();
      await until(async () => (await findShim(runtimeDir)) !== 'running');
    }
    await cleanUpAfterDeadShim(runtimeDir, systemClock, silentLogger);
  });
}

/** Waits, generously, until it is so. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what = 'the condition',
): Promise<void> {
  for (let attempt = 0; attempt < 1_000; attempt++) {
    if (await condition()) return;
    await systemClock.sleep(20);
  }
  throw new Error(`${what} did not come true`);
}

export function fsFolder(runtimeDir: string): string {
  return join(runtimeDir, 'fs');
}
