import { constants } from 'node:fs';
import { mkdir, open, readdir, readFile, rmdir, symlink, unlink } from 'node:fs/promises';
import type { Clock } from '../base/clock.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';

/**
 * configfs, as far as LIO needs it: objects are folders that the kernel fills, attributes are files. Paths
 * are absolute.
 */
export interface ConfigTree {
  /** Makes one object; nothing to do when it is there. */
  makeObject(path: string): Promise<void>;
  /** Removes one object; nothing to do when it is gone. */
  removeObject(path: string): Promise<void>;
  write(path: string, value: string): Promise<void>;
  read(path: string): Promise<string>;
  /** Names in a folder, sorted; none when it is gone. */
  list(path: string): Promise<string[]>;
  link(from: string, to: string): Promise<void>;
  unlink(path: string): Promise<void>;
}

const DEADLINE_MS = PATIENCE.configTree.ms;

/**
 * The host's own. Rejects with Node's errors, and `HOST_CONFIGFS_STUCK` where the kernel does not come back
 * in time: removing a target waits for its commands, and so for the device below. The call itself cannot be
 * ended; it keeps a thread of the pool until the kernel answers.
 */
export function systemConfigTree(clock: Clock, deadlineMs = DEADLINE_MS): ConfigTree {
  const inTime = <Args extends [path: string, ...rest: string[]], Value>(
    work: (...args: Args) => Promise<Value>,
  ) => {
    return async (...args: Args): Promise<Value> => {
      const late = Promise.withResolvers<never>();
      const cancel = clock.timer(deadlineMs, () => late.reject(stuckError(args[0], deadlineMs)));
      try {
        return await Promise.race([work(...args), late.promise]);
      } finally {
        cancel();
      }
    };
  };
  return {
    makeObject: inTime(async (path) => {
      await mkdir(path).catch(except('EEXIST'));
    }),
    removeObject: inTime(async (path) => {
      await rmdir(path).catch(except('ENOENT'));
    }),
    write: inTime(async (path: string, value: string) => {
      // One write with the whole value, no truncation before it; some attributes cannot be read.
      const file = await open(path, constants.O_WRONLY);
      try {
        await file.write(value);
      } finally {
        await file.close();
      }
    }),
    read: inTime(async (path) => (await readFile(path, 'utf8')).trim()),
    list: inTime(async (path) => {
      const names = await readdir(path).catch(except('ENOENT'));
      return (names ?? []).sort();
    }),
    link: inTime(async (from: string, to: string) => {
      await symlink(from, to).catch(except('EEXIST'));
    }),
    unlink: inTime(async (path) => {
      await unlink(path).catch(except('ENOENT'));
    }),
  };
}

function stuckError(path: string, deadlineMs: number): GodwitError {
  return new GodwitError(
    'HOST_CONFIGFS_STUCK',
    `the kernel did not come back from ${path} within ${deadlineMs} ms`,
    {
      values: { path, deadlineMs },
      nextAction:
        'A device below the export does not answer, or an initiator does not let go; the kernel log (dmesg) says which.',
    },
  );
}

function except(code: string): (error: unknown) => undefined {
  return (error) => {
    if (systemErrorCode(error) === code) return undefined;
    throw error;
  };
}
