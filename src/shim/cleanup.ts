import { existsSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { abortFuseConnection } from '../attach/fuse-mount.ts';
import { FILE_NAME } from '../attach/fuse-protocol.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { Cgroup, readCgroupLayout } from '../host/cgroup.ts';
import { whileDeviceMoves } from '../host/device-pace.ts';
import { detachLoop, findLoops } from '../host/losetup.ts';
import { mountAt } from '../host/mount-table.ts';
import { isAlive, type ProcessIdentity } from '../host/process-identity.ts';
import { runProgram } from '../host/program.ts';
import { KERNEL_STATE_FILE } from '../kernel/names.ts';
import { cgroupName } from './cgroup-name.ts';
import { isShimLocked } from './lock.ts';
import { SHIM_FILES } from './protocol.ts';
import { readShimState } from './state.ts';

/** For a program that is ended by its signal only. */
const FOR_EVER_MS = 2 ** 31 - 1;

/**
 * Ends everything that a dead shim has left on this host: the machine's processes, the mounted filesystem,
 * the loop device, the FUSE mount, the volume server; in this order, so that as long as the volume server
 * lives the filesystem is unmounted in good order. Idempotent; goes by the host's own tables and takes
 * `shim.json` only for what those do not say. The logs stay. Rejects `MACHINE_SHIM_ALIVE`,
 * `MACHINE_KILL_STUCK`, `MACHINE_CLEAN_UP_FAILED` (something could not be ended; ask again).
 */
export async function cleanUpAfterDeadShim(folder: string, clock: Clock, logger: Logger): Promise<void> {
  // The kernel's tables have the paths without symbolic links.
  const runtimeDir = existsSync(folder) ? realpathSync(folder) : folder;
  await refuseLivingShim(runtimeDir, clock);
  const state = readShimState(runtimeDir);
  const cgroup = new Cgroup(cgroupName(runtimeDir), { layout: readCgroupLayout(), clock });
  const filesystem = join(runtimeDir, SHIM_FILES.filesystem);
  const fuse = join(runtimeDir, SHIM_FILES.fuse);
  const abort = abortOf(runtimeDir, clock, logger);

  await withAbort(abort, () => cgroup.killAll(PATIENCE.kill.ms).then(() => true));
  await unmount(filesystem, abort, clock);
  // What the filesystem was mounted on, where the machine came by a move.
  await unmount(filesystem, abort, clock);
  if (existsSync(join(runtimeDir, KERNEL_STATE_FILE)))
    await (await import('../kernel/left.ts')).cleanUpKernelPlane(runtimeDir, clock);
  for (const device of findLoops(join(fuse, FILE_NAME))) {
    await withAbort(abort, () =>
      detachLoop(device, { clock, deadlineMs: PATIENCE.cleanUpStep.ms }).then(() => true),
    );
  }
  await unmount(fuse, abort, clock);
  if (state?.volumeServer) await endProcess(state.volumeServer, clock);
  await cgroup.remove();

  const left = [filesystem, fuse].filter((place) => mountAt(place) !== undefined);
  left.push(...findLoops(join(fuse, FILE_NAME)));
  if (left.length > 0) {
    throw new GodwitError('MACHINE_CLEAN_UP_FAILED', `still there after the clean-up: ${left.join(', ')}`, {
      values: { left: left.join(',') },
      nextAction: 'Something on the host uses it; end that, and the worker tries again.',
    });
  }
  for (const name of [SHIM_FILES.socket, SHIM_FILES.state]) await rm(join(runtimeDir, name), { force: true });
  logger.info({ runtimeDir }, 'cleaned up after a dead shim');
}

/**
 * Rejects `MACHINE_SHIM_ALIVE`, also for one that has just been started, and for one whose files are gone:
 * what is there is its own. One that ends has removed its files a moment before it lets go of the lock.
 */
async function refuseLivingShim(runtimeDir: string, clock: Clock): Promise<void> {
  const deadlineMs = clock.monotonicMs() + PAUSE.shimEnds.ms;
  for (;;) {
    const shim = readShimState(runtimeDir)?.shim;
    const pid = shim !== undefined && isAlive(shim) ? shim.pid : null;
    if (pid === null && !(await isShimLocked(runtimeDir))) return;
    if (pid !== null || clock.monotonicMs() >= deadlineMs) {
      throw new GodwitError(
        'MACHINE_SHIM_ALIVE',
        `the shim of ${runtimeDir} is alive${pid === null ? '' : ` (pid ${pid})`}`,
        {
          values: { runtimeDir, pid },
          nextAction: 'Shut it down instead of cleaning up after it.',
        },
      );
    }
    await clock.sleep(PAUSE.processLook.ms);
  }
}

async function unmount(place: string, abort: Abort, clock: Clock): Promise<void> {
  if (mountAt(place) === undefined) return;
  if (await withAbort(abort, () => succeeds(place, clock, ['-n', place]))) return;
  // Somebody's working directory, most likely: gone from view now, and for good when they leave.
  await succeeds(place, clock, ['-n', '-l', place]);
}

/** Ends in errors what nobody will answer any more. False: there is nothing that could be waited for. */
type Abort = () => Promise<boolean>;

function abortOf(runtimeDir: string, clock: Clock, logger: Logger): Abort {
  const fuse = join(runtimeDir, SHIM_FILES.fuse);
  return async () => {
    const connection = mountAt(fuse)?.device.split(':')[1];
    if (connection !== undefined) {
      logger.warn({ fuse, connection }, 'aborting a FUSE connection that holds up the clean-up');
      await abortFuseConnection(Number(connection));
      return true;
    }
    if (!existsSync(join(runtimeDir, KERNEL_STATE_FILE))) return false;
    logger.warn({ runtimeDir }, 'logging out of a source that holds up the clean-up');
    await (await import('../kernel/left.ts')).giveUpKernelSource(runtimeDir, clock);
    return true;
  };
}

/** Does a step; when it does not go, aborts what it waits for and does it again. */
async function withAbort(abort: Abort, step: () => Promise<boolean>): Promise<boolean> {
  let failure: unknown;
  const done = await step().catch((error: unknown) => {
    failure = error;
    return false;
  });
  if (done) return true;
  if (await abort()) return step();
  if (failure !== undefined) throw failure;
  return false;
}

/**
 * An `umount` that ends well; false too when its device does nothing for too long: the program is killed
 * then.
 */
async function succeeds(place: string, clock: Clock, args: string[]): Promise<boolean> {
  const giveUp = new AbortController();
  const unmounting = runProgram('umount', args, { timeoutMs: FOR_EVER_MS, signal: giveUp.signal });
  const device = mountAt(place)?.source ?? null;
  const end = await whileDeviceMoves(unmounting, { device, quietMs: PATIENCE.cleanUpStep.ms, clock });
  if (end === 'late') giveUp.abort();
  return (await unmounting).exitCode === 0;
}

async function endProcess(identity: ProcessIdentity, clock: Clock): Promise<void> {
  const deadlineMs = clock.monotonicMs() + PATIENCE.cleanUpStep.ms;
  while (isAlive(identity) && clock.monotonicMs() < deadlineMs) {
    try {
      process.kill(identity.pid, 'SIGKILL');
    } catch {
      return;
    }
    await clock.sleep(5);
  }
}
