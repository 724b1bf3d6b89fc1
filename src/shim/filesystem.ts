import { constants } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { pauses } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { readDeviceCounters, whileDeviceMoves } from '../host/device-pace.ts';
import { isReadOnly, type MountEntry, mountAt } from '../host/mount-table.ts';
import { mustRun } from '../host/program.ts';

/** For a program that nobody ends. */
const FOR_EVER_MS = 2 ** 31 - 1;

type Call = 'mount' | 'unmount' | 'sync';

const LOOK_AGAIN = { firstMs: 1, maxMs: 50 };
/** What the mount table shows as the source of a place. */
const PLACE_SOURCE = 'godwit-place';

/**
 * The filesystem of a machine's volume at `<runtimeDir>/fs`. Every step has a timeout and is done by a thread
 * of the pool or a child process: the shim itself never touches what is mounted there, because a device that
 * hangs would take it along.
 *
 * A place is an empty, read-only, shared mount at that folder. A jail that is built before the volume is
 * mounted gets a copy of it, and what is then mounted here appears there, and goes from there, by itself
 * (propagation, mount_namespaces(7)).
 */
export class Filesystem {
  readonly directory: string;
  readonly #clock: Clock;
  #device: string | null = null;
  /**
   * Calls that the kernel has not answered; asked for again, they are waited for again instead of keeping
   * another thread.
   */
  readonly #calls = new Map<Call, Promise<void>>();

  constructor(directory: string, clock: Clock) {
    this.directory = directory;
    this.#clock = clock;
  }

  get mounted(): boolean {
    return filesystemAt(this.directory) !== undefined;
  }

  /**
   * Makes the place. Idempotent; nothing to do when the filesystem is mounted already. Rejects
   * `MACHINE_MOUNT_FAILED`.
   */
  async makePlace(): Promise<void> {
    const entry = mountAt(this.directory);
    if (entry !== undefined && !(isPlace(entry) && !entry.shared)) return;
    const { MOUNT_FLAG, mount } = await import('../sys/mount.ts');
    const { readOnly, noSuid, noDev, noExec, shared } = MOUNT_FLAG;
    const at = { source: PLACE_SOURCE, place: this.directory };
    await mkdir(this.directory, { recursive: true });
    await this.#call('MACHINE_MOUNT_FAILED', 'mount', null, async () => {
      if (entry === undefined) {
        const flags = readOnly | noSuid | noDev | noExec;
        await mount({ ...at, type: 'tmpfs', flags, data: 'size=4k,mode=755' });
      }
      await mount({ ...at, type: null, flags: shared });
    });
  }

  /** Takes the place away; the filesystem must be unmounted. Idempotent. Rejects `MACHINE_UNMOUNT_FAILED`. */
  async removePlace(): Promise<void> {
    const entry = mountAt(this.directory);
    if (entry !== undefined && isPlace(entry)) await this.#unmountTop(null);
  }

  /** Idempotent. Rejects `MACHINE_MOUNT_FAILED`. */
  async mount(device: string, filesystem: 'ext4' | 'xfs'): Promise<void> {
    if (this.mounted) return;
    await mkdir(this.directory, { recursive: true });
    const { MOUNT_FLAG, mount } = await import('../sys/mount.ts');
    await this.#call('MACHINE_MOUNT_FAILED', 'mount', device, () =>
      mount({
        source: device,
        place: this.directory,
        type: filesystem,
        flags: MOUNT_FLAG.noDev,
        // Two imports of one golden image, or a recovered copy beside its original: XFS refuses the second
        // for its uuid.
        ...(filesystem === 'xfs' && { data: 'nouuid' }),
      }),
    );
    this.#device = device;
  }

  /**
   * Mounts anew what the kernel has made read-only because of an error in it, when no process of the machine
   * runs: its journal is replayed. Where somebody has it open it stays as it is.
   */
  async renew(): Promise<void> {
    const entry = filesystemAt(this.directory);
    if (entry === undefined || !isReadOnly(entry)) return;
    // Held by somebody, or still on its way out of another namespace: what is mounted then is better than
    // nothing.
    await this.unmount().catch(() => {});
    if (!this.mounted) await this.mount(entry.source, entry.filesystem === 'xfs' ? 'xfs' : 'ext4');
  }

  /**
   * Writes all dirty pages out (syncfs(2)); nothing to do when it is not mounted. Rejects
   * `MACHINE_SYNC_FAILED`.
   */
  async sync(): Promise<void> {
    if (!this.mounted) return;
    const device = filesystemAt(this.directory)?.source ?? this.#device;
    await this.#call('MACHINE_SYNC_FAILED', 'sync', device, async () => {
      // Ends when the kernel says so: whoever waits for it looks whether the device still writes.
      await mustRun('MACHINE_SYNC_FAILED', 'sync', ['-f', this.directory], FOR_EVER_MS);
    });
  }

  /**
   * Resolves when the kernel has written everything and let go of the device, in every mount namespace.
   * Idempotent. Rejects `MACHINE_UNMOUNT_FAILED`, and `MACHINE_DEVICE_HELD` when something else on the host
   * still has it mounted.
   */
  async unmount(): Promise<void> {
    const entry = filesystemAt(this.directory);
    const device = entry?.source ?? this.#device;
    if (entry !== undefined) await this.#unmountTop(device);
    if (device?.startsWith('/dev/')) await this.#released(device);
    this.#device = null;
  }

  async #unmountTop(device: string | null): Promise<void> {
    await this.#call('MACHINE_UNMOUNT_FAILED', 'unmount', device, async () => {
      // A sync that nobody waits for any more has the filesystem open.
      await this.#calls.get('sync')?.catch(() => {});
      await this.#unmountWhenLetGo();
    });
  }

  /**
   * Who has ended is seen to be gone before the kernel has let go of the mount for him (it does so in a work
   * queue), on a busy host by seconds: EBUSY, and nobody who could be named.
   */
  async #unmountWhenLetGo(): Promise<void> {
    const { mustUnmount } = await import('../sys/unmount.ts');
    const startedMs = this.#clock.monotonicMs();
    const pause = pauses(this.#clock, LOOK_AGAIN);
    for (;;) {
      try {
        return await mustUnmount(this.directory);
      } catch (error) {
        const waitedMs = this.#clock.monotonicMs() - startedMs;
        if (errnoNameOf(error) !== 'EBUSY' || waitedMs >= PAUSE.mountLetGo.ms) throw error;
      }
      await pause();
    }
  }

  /** One system call, or the one that is under way, as long as its device does something. */
  async #call(code: string, kind: Call, device: string | null, start: () => Promise<void>): Promise<void> {
    const quietMs = PATIENCE.fileSystemCall.ms;
    const call = this.#calls.get(kind) ?? start();
    this.#calls.set(kind, call);
    const settled = call.finally(() => this.#calls.delete(kind));
    let timedOut = false;
    let cause: unknown;
    try {
      timedOut = (await whileDeviceMoves(settled, { device, quietMs, clock: this.#clock })) === 'late';
      if (!timedOut) return;
    } catch (error) {
      cause = error;
    }
    const why = timedOut ? `its device did nothing for ${quietMs} ms` : messageOf(cause);
    throw new GodwitError(code, `${kind} at ${this.directory}: ${why}`, {
      values: { place: this.directory, errno: errnoNameOf(cause), timedOut },
      ...(timedOut && { retry: 'later' as const }),
      nextAction: timedOut
        ? 'The device underneath does not answer. Where blocks are still at a source that is away, bring that back; if it never comes back, `godwit machine destroy --force` gives the machine up.'
        : 'The kernel log (dmesg) says why.',
      cause,
    });
  }

  /**
   * A mount that was copied into another mount namespace (a machine that is just starting makes one for a
   * moment) keeps the filesystem alive after umount(2). It claims its device exclusively until its last write
   * is done, so an exclusive open says when.
   */
  async #released(device: string): Promise<void> {
    let counters = readDeviceCounters(device);
    let movedMs = this.#clock.monotonicMs();
    const pause = pauses(this.#clock, LOOK_AGAIN);
    for (;;) {
      try {
        const handle = await open(device, constants.O_RDONLY | constants.O_EXCL);
        await handle.close();
        return;
      } catch (error) {
        // The device is gone altogether, or another one has its number: nobody has ours.
        if (systemErrorCode(error) !== 'EBUSY') return;
      }
      const now = readDeviceCounters(device);
      if (now !== counters) movedMs = this.#clock.monotonicMs();
      counters = now;
      if (this.#clock.monotonicMs() - movedMs >= PATIENCE.deviceRelease.ms) {
        throw new GodwitError(
          'MACHINE_DEVICE_HELD',
          `${device} is unmounted here, but something still holds it`,
          {
            values: { device },
            retry: 'never',
            nextAction: `Find the mount namespace that has it: grep -l ${device} /proc/*/mountinfo. Where none has, it is frozen, and mounted again: fsfreeze --unfreeze ${this.directory}.`,
          },
        );
      }
      await pause();
    }
  }
}

/** What is mounted at `directory`; an empty place (`makePlace`) is nothing. */
export function filesystemAt(directory: string): MountEntry | undefined {
  const entry = mountAt(directory);
  return entry !== undefined && isPlace(entry) ? undefined : entry;
}

/** True for a place (`makePlace`) without anything mounted on it. */
function isPlace(entry: MountEntry): boolean {
  return entry.filesystem === 'tmpfs' && entry.source === PLACE_SOURCE;
}

function errnoNameOf(error: unknown): string | null {
  const errno = error instanceof GodwitError ? error.values.errno : undefined;
  return typeof errno === 'string' ? errno : null;
}
