import { rm, writeFile } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { isDiskFull, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { makeShimRoom } from '../shim/client.ts';
import type { Condition } from './condition.ts';

/**
 * The data disk of this worker refuses to be written (`message`: with what), or does not answer (null).
 * `sinceMs`: wall clock, of when somebody looked and found it first.
 */
export type DiskTrouble = { message: string | null; sinceMs: number };

/** One write, for all who look while it lasts. `isLate`: it has had its time. */
type Probe = { ended: Promise<unknown>; sinceMs: number; isLate: boolean };

/** Of its time; a process that did not run meanwhile loses one of them, and not all of it. */
const SLICES = 4;

/**
 * Whether the data disk takes a write, for people who ask why. A filesystem that has met an error is
 * read-only from then on, and what runs on it fails one by one in ways of its own. One that is full has its
 * own word (volume/disk-room.ts). One that hangs is not waited for, and holds one thread of this process.
 */
export class DiskLook {
  readonly #path: string;
  readonly #clock: Clock;
  readonly #write: (path: string) => Promise<void>;
  #sinceMs: number | null = null;
  #probe: Probe | null = null;

  /** `path`: of a file that nobody else has, on that disk. */
  constructor(path: string, clock: Clock, write: (path: string) => Promise<void> = writeAndRemove) {
    this.#path = path;
    this.#clock = clock;
    this.#write = write;
  }

  /** Null: it takes it, or is full. Never rejects. */
  async look(): Promise<DiskTrouble | null> {
    this.#probe ??= this.#begin();
    const probe = this.#probe;
    for (let slice = 0; slice < SLICES && !probe.isLate && this.#probe === probe; slice++) {
      const late = Promise.withResolvers<void>();
      const cancel = this.#clock.timer(PATIENCE.diskLook.ms / SLICES, late.resolve);
      await Promise.race([probe.ended, late.promise]).finally(cancel);
    }
    if (this.#probe === probe) {
      probe.isLate = true;
      return { message: null, sinceMs: probe.sinceMs };
    }
    const error = await probe.ended;
    if (error === null || isDiskFull(error)) {
      this.#sinceMs = null;
      return null;
    }
    this.#sinceMs ??= this.#clock.wallMs();
    return { message: messageOf(error), sinceMs: this.#sinceMs };
  }

  /** `ended` is of null, or of why it was not written. */
  #begin(): Probe {
    const over = (error: unknown) => {
      this.#probe = null;
      return error;
    };
    const ended = this.#write(this.#path).then(() => over(null), over);
    return { ended, sinceMs: this.#clock.wallMs(), isLate: false };
  }
}

/** Whatever else is the matter of what is on it: nothing of it can be changed. */
export function diskConditions(
  trouble: DiskTrouble | null,
  { name: worker, dataDir }: { name: string; dataDir: string },
): Condition[] {
  if (trouble === null) return [];
  if (trouble.message === null) {
    return [
      {
        code: 'disk-silent',
        holdsUp: `all of ${worker}`,
        message: `the data disk of ${worker} does not answer: a write of one byte has not ended`,
        sinceMs: trouble.sinceMs,
        whoCanClearIt: 'an operator of the worker',
        nextAction: `Look at it (dmesg; a disk on the network: whether its server is there). One that somebody froze: fsfreeze --unfreeze "$(findmnt -n -o TARGET --target ${dataDir})". All goes on by itself when it answers.`,
      },
    ];
  }
  return [
    {
      code: 'disk-unwritable',
      holdsUp: `all of ${worker}`,
      message: `the data disk of ${worker} cannot be written: ${trouble.message}`,
      sinceMs: trouble.sinceMs,
      whoCanClearIt: 'an operator of the worker',
      nextAction:
        'Look at it (dmesg: a filesystem that has met an error is often read-only from then on), mend and remount it (one that fails as before is the old one, kept by a copy in another mount namespace: grep its folder in /proc/*/mountinfo), and restart the worker; then start what has ended meanwhile.',
    },
  ];
}

/** `full`: why nothing more goes into the folder of the shims (shim/client.ts). */
export function runtimeConditions(runtimeRoot: string, full: string | null): Condition[] {
  if (full === null) return [];
  return [
    {
      code: 'runtime-full',
      holdsUp: 'starts, arrivals and moves of machines',
      message: `there is no room in ${runtimeRoot} for the files of shims: ${full}; what runs goes on, and its output is not kept`,
      sinceMs: null,
      whoCanClearIt: 'an operator of the worker',
      nextAction: makeShimRoom(runtimeRoot),
    },
  ];
}

async function writeAndRemove(path: string): Promise<void> {
  await writeFile(path, 'x');
  // Somebody else who looks just now may have removed it.
  await rm(path, { force: true });
}
