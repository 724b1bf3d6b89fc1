import { existsSync, readdirSync, readFileSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import { runTool } from './tool.ts';

const TOOL_TIMEOUT_MS = 5_000;

/**
 * Puts a loop device on a file, with direct I/O (the file's server is the only cache): its path, `/dev/loop7`. The file must be
 * served by another process than this one, or be an ordinary file.
 *
 * `sectorBytes`: the logical block size, 512 or 4096. 512 is what a volume made on any disk can be mounted on. With 4096 no write
 * is smaller than the unit of validity, but XFS, LUKS and partition tables that were made on 512 do not open.
 *
 * Throws `ATTACH_NO_LOOP` where the loop driver or losetup is missing, `ATTACH_LOOP_FAILED` for the rest.
 */
export async function attachLoop(options: {
  filePath: string;
  readonly?: boolean;
  sectorBytes?: 512 | 4096;
  /** A file that does not answer within it (its server is held up) fails the attach. */
  timeoutMs?: number;
}): Promise<string> {
  const { filePath, readonly = false, sectorBytes = 512, timeoutMs = TOOL_TIMEOUT_MS } = options;
  if (!existsSync('/dev/loop-control')) {
    throw new GodwitError('ATTACH_NO_LOOP', 'this kernel has no loop devices: /dev/loop-control is missing', {
      nextAction: 'Load the driver (modprobe loop) or use a kernel with CONFIG_BLK_DEV_LOOP.',
    });
  }
  const result = await runTool(
    'losetup',
    [
      ...['--find', '--show', '--direct-io=on', '--sector-size', String(sectorBytes)],
      ...(readonly ? ['--read-only'] : []),
      filePath,
    ],
    { timeoutMs },
  );
  if (result.code === 0) return result.stdout;
  const missing = result.code === null && /ENOENT/.test(result.stderr);
  throw new GodwitError(
    missing ? 'ATTACH_NO_LOOP' : 'ATTACH_LOOP_FAILED',
    missing ? 'the program losetup is missing' : `no loop device for the file: ${result.stderr}`,
    {
      values: { filePath, exitCode: result.code },
      nextAction: missing
        ? 'Install losetup (Debian: util-linux, mount).'
        : 'The message of losetup says why; losetup -a lists what is attached.',
    },
  );
}

/**
 * Detaches and waits until the kernel has let go of the file. Idempotent. A device that is still open (a mount) is detached by the kernel when its
 * last user closes it: `ATTACH_LOOP_BUSY` after `timeoutMs`.
 */
export async function detachLoop(
  device: string,
  options: { clock: Clock; timeoutMs?: number },
): Promise<void> {
  const { clock, timeoutMs = TOOL_TIMEOUT_MS } = options;
  const deadlineMs = clock.monotonicMs() + timeoutMs;
  if (loopFile(device) === null) return;
  const result = await runTool('losetup', ['--detach', device], { timeoutMs });
  while (loopFile(device) !== null) {
    if (clock.monotonicMs() >= deadlineMs) {
      throw new GodwitError(
        'ATTACH_LOOP_BUSY',
        `${device} cannot be detached: ${result.stderr || 'it is in use'}`,
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
