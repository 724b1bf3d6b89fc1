import { constants } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { mountAt } from './mount-table.ts';
import { mustRun } from './program.ts';

/** A clone may have to fetch what the mount reads (superblock, journal) from a slow source. */
const MOUNT_TIMEOUT_MS = 120_000;
/** Dirty pages of a whole host may have to be written. */
const SYNC_TIMEOUT_MS = 600_000;
const UNMOUNT_TIMEOUT_MS = 120_000;
/** For another namespace to let go of its copy of the mount. */
const RELEASE_TIMEOUT_MS = 10_000;

/**
 * The filesystem of a machine's volume at `<runtimeDir>/fs`. Every step is a child process with a timeout: the shim itself never
 * touches what is mounted there, because a device that hangs would take it along.
 */
export class Filesystem {
  readonly directory: string;
  readonly #clock: Clock;
  #device: string | null = null;

  constructor(directory: string, clock: Clock) {
    this.directory = directory;
    this.#clock = clock;
  }

  get mounted(): boolean {
    return mountAt(this.directory) !== undefined;
  }

  /** Idempotent. Rejects `MACHINE_MOUNT_FAILED`. */
  async mount(device: string, filesystem: 'ext4' | 'xfs'): Promise<void> {
    if (this.mounted) return;
    await mkdir(this.directory, { recursive: true });
    const args = ['-n', '-t', filesystem, '-o', 'nodev', device, this.directory];
    await mustRun('MACHINE_MOUNT_FAILED', 'mount', args, MOUNT_TIMEOUT_MS);
    this.#device = device;
  }

  /** Writes all dirty pages out (syncfs(2)); nothing to do when it is not mounted. Rejects `MACHINE_SYNC_FAILED`. */
  async sync(): Promise<void> {
    if (!this.mounted) return;
    await mustRun('MACHINE_SYNC_FAILED', 'sync', ['-f', this.directory], SYNC_TIMEOUT_MS);
  }

  /**
   * Resolves when the kernel has written everything and let go of the device, in every mount namespace. Idempotent.
   * Rejects `MACHINE_UNMOUNT_FAILED`, and `MACHINE_DEVICE_HELD` when something else on the host still has it mounted.
   */
  async unmount(): Promise<void> {
    const entry = mountAt(this.directory);
    const device = entry?.source ?? this.#device;
    if (entry !== undefined) {
      await mustRun('MACHINE_UNMOUNT_FAILED', 'umount', ['-n', this.directory], UNMOUNT_TIMEOUT_MS);
    }
    if (device?.startsWith('/dev/')) await this.#released(device);
    this.#device = null;
  }

  /**
   * A mount that was copied into another mount namespace (a machine that is just starting makes one for a moment) keeps the
   * filesystem alive after umount(2). It claims its device exclusively until its last write is done, so an exclusive open says when.
   */
  async #released(device: string): Promise<void> {
    const deadlineMs = this.#clock.monotonicMs() + RELEASE_TIMEOUT_MS;
    for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, 50)) {
      try {
        const handle = await open(device, constants.O_RDONLY | constants.O_EXCL);
        await handle.close();
        return;
      } catch (error) {
        // The device is gone altogether, or another one has its number: nobody has ours.
        if (systemErrorCode(error) !== 'EBUSY') return;
      }
      if (this.#clock.monotonicMs() >= deadlineMs) {
        throw new GodwitError(
          'MACHINE_DEVICE_HELD',
          `${device} is unmounted here, but something still holds it`,
          {
            values: { device },
            nextAction: `Find the mount namespace that has it: grep -l ${device} /proc/*/mountinfo`,
          },
        );
      }
      await this.#clock.sleep(pauseMs);
    }
  }
}
