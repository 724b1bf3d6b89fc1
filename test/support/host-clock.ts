import { existsSync, globSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { requires } from './requires.ts';

/** Of Debian's package `faketime`. */
const [LIBRARY = '/usr/lib/faketime/libfaketimeMT.so.1'] = globSync('/usr/lib/*/faketime/libfaketimeMT.so.1');

/** Skip value of tests that set clocks. */
export const clockNeeds = requires(LIBRARY);

/** How often the processes of a host look at its clock again, in seconds. */
const LOOK_S = 1;

/**
 * The wall clock of one worker's host: of its control process, shims, volume servers and programs, and not of
 * its machines. It is set while they run. The monotonic clock stays true, as it does when a host's clock is
 * set.
 */
export class HostClock {
  readonly #file: string;

  constructor(dir: string, name: string) {
    this.#file = join(dir, `${name}.clock`);
    this.#write(0);
  }

  /** For `Fleet.start`. */
  get through(): string[] {
    return [
      'env',
      `LD_PRELOAD=${LIBRARY}`,
      `FAKETIME_TIMESTAMP_FILE=${this.#file}`,
      `FAKETIME_CACHE_DURATION=${LOOK_S}`,
      ...['FAKETIME_DONT_FAKE_MONOTONIC=1', 'DONT_FAKE_MONOTONIC=1', 'NO_FAKE_STAT=1'],
    ];
  }

  /** Away from the true time, by so much from now on. Resolves when all processes have seen it. */
  async set(offsetMs: number): Promise<void> {
    this.#write(offsetMs);
    await sleep(2 * LOOK_S * 1000);
  }

  #write(offsetMs: number): void {
    const seconds = Math.round(offsetMs / 1000);
    writeFileSync(`${this.#file}.new`, `${seconds < 0 ? '-' : '+'}${Math.abs(seconds)}\n`);
    renameSync(`${this.#file}.new`, this.#file);
  }
}

const SHARED_MEMORY = '/dev/shm';

/** After the fleet has ended: what the library leaves of processes that were killed. */
export function forgetClocks(): void {
  for (const name of readdirSync(SHARED_MEMORY)) {
    const pid = /^(?:sem\.)?faketime_(?:shm|sem)_(\d+)$/.exec(name)?.[1];
    if (pid !== undefined && !existsSync(`/proc/${pid}`)) rmSync(join(SHARED_MEMORY, name), { force: true });
  }
}
