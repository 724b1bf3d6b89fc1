import { closeSync, constants, fsyncSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { link, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { systemErrorCode } from '../base/errors.ts';

/**
 * Small files that must survive: records, keys, maps, settings. One rule for all of them:
 *
 *   1. The content goes into a new inode beside the file, never over the old content: a write-back that fails can only lose the new one.
 *   2. fsync(2) of the descriptor that wrote it is waited for and checked, before anybody can see it under its name.
 *   3. rename(2), then fsync(2) of the folder: the name too is there after a power cut.
 *
 * Whatever fails: the former file stands, what was begun is removed, and the error (Node's, with its errno)
 * is the caller's. One writer a file.
 */

export type NewFileOptions = {
  /** Default 0600: readable by the owner only. */
  mode?: number;
};

const OWNER_ONLY = 0o600;

/** Resolves when the file has this content for certain. */
export async function replaceFile(
  path: string,
  content: string | Uint8Array,
  options: NewFileOptions = {},
): Promise<void> {
  await replace(path, content, { ...options, durable: true });
  await syncFolder(dirname(path));
}

/**
 * Replaced in one step as well, and not made durable: for what means nothing after a reboot. A reader has to
 * take an empty file, which a power cut may leave, for none.
 */
export function replaceFileOfThisBoot(
  path: string,
  content: string | Uint8Array,
  options: NewFileOptions = {},
): Promise<void> {
  return replace(path, content, { ...options, durable: false });
}

/** `replaceFile` for code that cannot wait. */
export function replaceFileNow(
  path: string,
  content: string | Uint8Array,
  options: NewFileOptions = {},
): void {
  const temporary = temporaryOf(path);
  rmSync(temporary, { force: true });
  try {
    const fd = openSync(temporary, 'wx', options.mode ?? OWNER_ONLY);
    try {
      const bytes = typeof content === 'string' ? Buffer.from(content) : content;
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, done);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/**
 * Makes the file unless there is one; false: there is. Two that do this at once agree on one content. `token`
 * keeps their beginnings apart.
 */
export async function createFile(
  path: string,
  content: string | Uint8Array,
  options: NewFileOptions & { token: string },
): Promise<boolean> {
  const temporary = `${path}.new-${options.token}`;
  let made = true;
  try {
    await writeNew(temporary, content, { ...options, durable: true });
    await link(temporary, path).catch((error: unknown) => {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
      made = false;
    });
  } finally {
    await rm(temporary, { force: true });
  }
  await syncFolder(dirname(path));
  return made;
}

/** The file is gone for certain; also where there was none. */
export async function removeFile(path: string): Promise<void> {
  await rm(path, { force: true });
  await syncFolder(dirname(path));
}

/** A name that was given or moved in the folder is there after a power cut. */
export function syncFolder(folder: string): Promise<void> {
  return syncPath(folder);
}

/**
 * fsync(2) by path: of a folder, or of a file that this process has just written and closed. What another
 * process lost before is not found this way.
 */
export async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

type Durability = NewFileOptions & { durable: boolean };

async function replace(path: string, content: string | Uint8Array, options: Durability): Promise<void> {
  const temporary = temporaryOf(path);
  await rm(temporary, { force: true });
  try {
    await writeNew(temporary, content, options);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** O_EXCL: an inode of its own, so that nothing that an earlier attempt lost is in question. */
async function writeNew(path: string, content: string | Uint8Array, options: Durability): Promise<void> {
  const file = await open(path, 'wx', options.mode ?? OWNER_ONLY);
  try {
    await file.writeFile(content);
    if (options.durable) await file.sync();
  } finally {
    await file.close();
  }
}

function temporaryOf(path: string): string {
  return `${path}.new`;
}
