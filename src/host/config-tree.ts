import { constants } from 'node:fs';
import { mkdir, open, readdir, readFile, rmdir, symlink, unlink } from 'node:fs/promises';
import { systemErrorCode } from '../base/errors.ts';

/** configfs, as far as LIO needs it: objects are folders that the kernel fills, attributes are files. Paths are absolute. */
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

/** The host's own. Rejects with Node's errors. */
export const systemConfigTree: ConfigTree = {
  async makeObject(path) {
    await mkdir(path).catch(except('EEXIST'));
  },
  async removeObject(path) {
    await rmdir(path).catch(except('ENOENT'));
  },
  async write(path, value) {
    // One write with the whole value, no truncation before it; some attributes cannot be read.
    const file = await open(path, constants.O_WRONLY);
    try {
      await file.write(value);
    } finally {
      await file.close();
    }
  },
  async read(path) {
    return (await readFile(path, 'utf8')).trim();
  },
  async list(path) {
    const names = await readdir(path).catch(except('ENOENT'));
    return (names ?? []).sort();
  },
  async link(from, to) {
    await symlink(from, to).catch(except('EEXIST'));
  },
  async unlink(path) {
    await unlink(path).catch(except('ENOENT'));
  },
};

function except(code: string): (error: unknown) => undefined {
  return (error) => {
    if (systemErrorCode(error) === code) return undefined;
    throw error;
  };
}
