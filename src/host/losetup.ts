import { existsSync, readdirSync, readFileSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { systemTools, type Tools } from './tools.ts';
import { boundDirtyPages } from './write-back.ts';

const DEADLINE_MS = PATIENCE.loop.ms;

export type AttachLoopOptions = {
  filePath: string;
  readonly?: boolean;
  sectorBytes?: 512 | 4096;
  /** A file that does not answer within it (its server is held up) fails the attach. */
  deadlineMs?: number;
  tools?: Tools;
};

/**
 * Puts a loop device on a file, with direct I/O (the file's server is the only cache): its path,
 * `/dev/loop7`. The file must be served by another process than this one, or be an ordinary file.
 *
 * `sectorBytes`: the logical block size, 512 or 4096. 512 is what a volume made on any disk can be mounted
 * on. With 4096 no write is smaller than the unit of validity, but XFS, LUKS and partition tables that were
 * made on 512 do not open.
 *
 * Rejects `HOST_NO_LOOP` where the loop driver is missing, `HOST_LOOP_FAILED` with what losetup said, and as
 * `Tools.run` does.
 */
export async function attachLoop(options: AttachLoopOptions): Promise<string> {
  const { filePath, readonly = false, sectorBytes = 512, deadlineMs = DEADLINE_MS } = options;
  if (!existsSync('/dev/loop-control')) {
    throw new GodwitError('HOST_NO_LOOP', 'this kernel has no loop devices: /dev/loop-control is missing', {
      nextAction: 'Load the driver (modprobe loop) or use a kernel with CONFIG_BLK_DEV_LOOP.',
    });
  }
  const { tools = systemTools() } = options;
  const { exitCode, stdout, stderr } = await tools.run(
    [
      'losetup',
      ...['--find', '--show', '--direct-io=on', '--sector-size', String(sectorBytes)],
      ...(readonly ? ['--read-only'] : []),
      filePath,
    ],
    { deadlineMs },
  );
  const device = stdout.trim();
  if (exitCode === 0 && /^\/dev\/loop\d+$/.test(device)) {
    // The kernel keeps a bound of its dirty pages from one file to the next.
    boundDirtyPages(device, null);
    return device;
  }
  throw new GodwitError('HOST_LOOP_FAILED', `no loop device for the file: ${stderr.trim() || device}`, {
    values: { filePath, exitCode },
    nextAction: 'The message of losetup says why; losetup -a lists what is attached.',
  });
}

/**
 * Detaches and waits until the kernel has let go of the file. Idempotent. A device that is still open (a
 * mount) is detached by the kernel when its last user closes it: `HOST_LOOP_BUSY` after `deadlineMs`.
 */
export async function detachLoop(
  device: string,
  options: { clock: Clock; deadlineMs?: number; tools?: Tools },
): Promise<void> {
  const { clock, deadlineMs = DEADLINE_MS, tools = systemTools() } = options;
  if (loopFile(device) === null) return;
  boundDirtyPages(device, null);
  const { stderr } = await tools.run(['losetup', '--detach', device], { deadlineMs });
  // From here on: on a slow host losetup itself may take that long, which says nothing of the device.
  const endsAtMs = clock.monotonicMs() + deadlineMs;
  while (loopFile(device) !== null) {
    if (clock.monotonicMs() >= endsAtMs) {
      throw new GodwitError(
        'HOST_LOOP_BUSY',
        `${device} cannot be detached: ${stderr.trim() || 'it is in use'}`,
        {
          values: { device },
          nextAction:
            'Unmount the filesystem on it first; /proc/mounts and /proc/*/mountinfo name the mounts.',
        },
      );
    }
    await clock.sleep(2);
  }
}

/** The loop devices on a file, by the path that the kernel has of it. Asks sysfs, not the file. */
export function findLoops(filePath: string): string[] {
  return readdirSync('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .map((name) => `/dev/${name}`)
    .filter((device) => loopFile(device) === filePath);
}

/** The file under a loop device; null when it is not attached. */
function loopFile(device: string): string | null {
  try {
    const name = device.slice('/dev/'.length);
    return readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').replace(/\n$/, '');
  } catch {
    return null;
  }
}
