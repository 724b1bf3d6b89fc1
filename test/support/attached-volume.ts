import { mkdirSync, mkdtempSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type FuseMount, mountFuse, unmountFuse } from '../../src/attach/fuse-mount.ts';
import { VOLUME_SERVER_NODE_FLAGS, VolumeSupervisor } from '../../src/attach/volume-supervisor.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { attachLoop, detachLoop } from '../../src/host/losetup.ts';
import { systemTools } from '../../src/host/tools.ts';
import type { Access } from '../../src/opening/spec.ts';
import './compile-cache.ts';
import { leaveFolder } from './failure.ts';
import { patient } from './patience.ts';

export type AttachedVolume = {
  mount: FuseMount;
  supervisor: VolumeSupervisor;
  /** `/dev/loopN` */
  loop: string;
  detach(): Promise<void>;
};

/**
 * A plain file of `lengthBytes` (which must exist) as a loop device, served by plain-volume-server.ts under a
 * supervisor.
 */
export async function attachPlainVolume(options: {
  dir: string;
  filePath: string;
  lengthBytes: number;
  access?: Access;
  sectorBytes?: 512 | 4096;
  env?: NodeJS.ProcessEnv;
}): Promise<AttachedVolume> {
  const { dir, filePath, lengthBytes, access = 'writable', sectorBytes = 512 } = options;
  const fuseDir = join(dir, 'fuse');
  mkdirSync(fuseDir, { recursive: true });
  const mount = await mountFuse({ dir: fuseDir, name: 'godwit-test' });
  const supervisor = new VolumeSupervisor({
    command: [
      process.execPath,
      ...VOLUME_SERVER_NODE_FLAGS,
      new URL('./plain-volume-server.ts', import.meta.url).pathname,
    ],
    env: { ...process.env, ...options.env },
    spec: {
      kind: 'own',
      volumeId: 'plain',
      generation: 1,
      lengthBytes,
      volumeDir: filePath,
      access,
    },
    fuseFd: mount.fd,
    logPath: join(dir, 'server.log'),
    clock: systemClock,
    logger: silentLogger,
  });
  let loop: string | null = null;
  const detach = async () => {
    // Each step has its own timeout; a later one is tried even when an earlier one failed.
    const steps = [
      async () => {
        if (loop !== null) await detachLoop(loop, { clock: systemClock });
      },
      () => supervisor.stop(),
      () => unmountFuse(mount, silentLogger),
    ];
    const errors: unknown[] = [];
    for (const step of steps) await step().catch((error: unknown) => errors.push(error));
    if (errors.length > 0) throw new AggregateError(errors, 'the volume did not detach cleanly');
  };
  try {
    await supervisor.start();
    loop = await attachLoop({ filePath: mount.filePath, sectorBytes });
    return { mount, supervisor, loop, detach };
  } catch (error) {
    await detach().catch(() => {});
    throw error;
  }
}

/**
 * The same on a new sparse file in a folder of its own, which all goes when the test ends, whatever its
 * outcome. `mountPoint` may be mounted on by the test; it is unmounted first, after the steps of
 * `beforeDetach` (node:test runs its own hooks in the order of their registration).
 */
export async function attachedVolume(
  t: TestContext,
  options: { lengthBytes: number; access?: Access; sectorBytes?: 512 | 4096; env?: NodeJS.ProcessEnv },
): Promise<
  AttachedVolume & { dir: string; filePath: string; mountPoint: string; beforeDetach(step: () => void): void }
> {
  const dir = mkdtempSync(join(tmpdir(), 'gw-attach-'));
  const filePath = join(dir, 'data.raw');
  const mountPoint = join(dir, 'mnt');
  mkdirSync(mountPoint);
  writeFileSync(filePath, '');
  truncateSync(filePath, options.lengthBytes);
  let volume: AttachedVolume | null = null;
  const steps: (() => void)[] = [];
  t.after(async () => {
    for (const step of steps) step();
    await systemTools().run(['umount', mountPoint], { deadlineMs: patient(10_000) });
    await volume?.detach();
    leaveFolder(t, dir);
  });
  volume = await attachPlainVolume({ ...options, dir, filePath });
  return { ...volume, dir, filePath, mountPoint, beforeDetach: (step) => steps.push(step) };
}
