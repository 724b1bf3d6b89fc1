import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  fstatSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmdirSync,
  rmSync,
  type Stats,
  statSync,
  unlinkSync,
} from 'node:fs';
import { connect } from 'node:net';
import { basename, dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { OWN_NAME } from '../base/own-name.ts';
import { replaceFileNow } from './durable-file.ts';

/*
 * Paths that somebody named, on a command line, in a request or in a record: what godwit reads, makes and
 * removes there, mostly as root, goes through here.
 *
 * Nothing is removed but a socket of ours that nobody listens on, and the folder of a worker that says so
 * itself. Nothing is written into the data folder of a worker, whichever one, nor where somebody else could
 * put another thing in its place: then what was looked at is what is used.
 */

/** The file by which the data folder of a worker is known. */
export const DATA_FOLDER_MARK = 'worker.lock';

/** Where the kernel shows itself; nothing of ours belongs there. /dev/shm is memory like any other. */
const KERNEL_FOLDERS = ['/proc', '/sys', '/dev'];
const MEMORY_FOLDER = '/dev/shm';
/** Of a folder: who may write into it removes only what is their own (inode(7), S_ISVTX). */
const STICKY = 0o1000;

export type NamedPathOptions = {
  /** Folders that are closed besides the data folders of workers, which are found by themselves. */
  closed?: readonly string[];
  /**
   * It is godwit itself that named the path, in a data folder: only what is there is looked at. Default
   * false.
   */
  own?: boolean;
};

/** A place for something new: its folder is there, real (no link in it) and safe. */
export type NamedPlace = { folder: string; name: string; path: string };

/** Looks at a place where something of ours shall be. Throws `SYS_PATH_REFUSED`. Makes nothing. */
export function namedPlace(path: string, options: NamedPathOptions = {}): NamedPlace {
  if (!isAbsolute(path) || path.includes('\0')) throw refused(path, 'it is not an absolute path');
  const name = basename(path);
  if (path.endsWith('/') || name === '' || name === '.' || name === '..')
    throw refused(path, 'it names a folder');
  const folder = realFolder(path, dirname(path));
  if (options.own !== true) {
    checkClosed(path, folder, options.closed ?? []);
    checkUnchangeable(path, folder);
  }
  return { folder, name, path: join(folder, name) };
}

/**
 * The real path of a folder that is made where it is missing, with `mode`. `isData`: it may be the data
 * folder of a worker itself. Throws `SYS_PATH_REFUSED`, and errors of mkdir(2).
 */
export function namedFolder(
  path: string,
  mode: number,
  options: { closed?: readonly string[]; isData?: boolean } = {},
): string {
  const whole = resolve(path);
  // Looked at first as far as it is there: nothing is made in a closed folder.
  let there = whole;
  while (!existsSync(there) && there !== dirname(there)) there = dirname(there);
  const real = realFolder(path, there);
  // The data folder of a worker lies in none of another.
  checkClosed(path, options.isData === true && there === whole ? dirname(real) : real, options.closed ?? []);
  checkUnchangeable(path, real);
  mkdirSync(whole, { recursive: true, mode });
  return realFolder(path, whole);
}

/**
 * Makes a folder that only this user may look into, where it is missing: also where others may make things,
 * such as /dev/shm. Throws `SYS_PATH_REFUSED` when somebody else was there before, and errors of mkdir(2).
 */
export function ownFolder(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const found = lstatSync(path);
  if (!found.isDirectory()) throw refused(path, `there is ${kindOf(found)}`);
  if (found.uid !== (process.geteuid?.() ?? 0)) throw refused(path, `it belongs to user ${found.uid}`);
  if (othersMayChange(found)) throw refused(path, 'others may change what is in it');
}

/**
 * Something of ours in a folder of ours, by a name that came from elsewhere: an id in a record or in the
 * request of another worker. Throws `SYS_PATH_REFUSED`. Pure.
 */
export function ownPath(folder: string, name: string): string {
  if (!OWN_NAME.test(name)) throw refused(name.slice(0, 200), 'it is not the name of one thing');
  return join(folder, name);
}

/**
 * Removes the data folder of a worker, and only such a one: its mark is in it. A folder that is not there is
 * no error. Throws `SYS_PATH_REFUSED`. What was in a folder with no mark stays.
 */
export function removeDataFolder(path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isDirectory()) throw refused(path, `there is ${kindOf(found)}, not the folder of a worker`);
  if (!existsSync(join(path, DATA_FOLDER_MARK))) throw refused(path, 'no worker had its data in it');
  rmSync(path, { recursive: true, force: true });
}

/**
 * Opens a regular file for reading, whatever hides behind its name meanwhile: the open file is what is looked
 * at. Its descriptor is the caller's. Throws `SYS_PATH_REFUSED` and errors of open(2). Never waits: a FIFO is
 * refused.
 */
export function openNamedFile(
  path: string,
  options: NamedPathOptions = {},
): { fd: number; path: string; lengthBytes: number } {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  try {
    const found = fstatSync(fd);
    if (!found.isFile()) throw refused(path, `it is ${kindOf(found)}, not a file`);
    const real = readlinkSync(descriptorPath(fd));
    if (options.own !== true) checkClosed(path, dirname(real), options.closed ?? []);
    return { fd, path: real, lengthBytes: found.size };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * Writes a file whole and durable; one that is there is replaced, anything else that is there stays. Throws
 * `SYS_PATH_REFUSED` and system errors.
 */
export function writeNamedFile(path: string, text: string, mode: number): void {
  const place = namedPlace(resolve(path));
  const there = lstatSync(place.path, { throwIfNoEntry: false });
  if (there !== undefined && !there.isFile()) throw refused(path, `there is ${kindOf(there)}`);
  replaceFileNow(place.path, text, { mode });
}

/** A unix socket at a path, as `listenAt` left it. */
export type NamedSocket = {
  path: string;
  /** Takes the socket away, if it is still the one that was made. Idempotent. */
  remove: () => void;
};

/**
 * Makes a unix socket at `path`, with mode 0600 and its owner from the first moment. `listen` listens where
 * it is told, in a folder that is closed to all others; then the socket gets its name, if that is free. What
 * is there already is removed only when it is a socket of `owner` or of this process that nobody listens on.
 * Rejects `SYS_PATH_REFUSED`, `SYS_SOCKET_IN_USE`, and what `listen` rejects.
 */
export async function listenAt(
  path: string,
  options: NamedPathOptions & { owner?: { uid: number; gid: number } },
  listen: (path: string) => Promise<void>,
): Promise<NamedSocket> {
  const place = namedPlace(path, options);
  // Everything goes through the open folder: what the name of the folder says later does not matter, and the
  // path is short enough for a socket.
  const folderFd = openSync(place.folder, constants.O_RDONLY | constants.O_DIRECTORY);
  const folder = descriptorPath(folderFd);
  const target = join(folder, place.name);
  let scratch: string | null = null;
  try {
    await removeDeadSocket(path, folder, place.name, options.owner?.uid);
    scratch = mkdtempSync(join(folder, '.godwit-'));
    const made = join(scratch, 's');
    await listen(made);
    chmodSync(made, 0o600);
    if (options.owner !== undefined) lchownSync(made, options.owner.uid, options.owner.gid);
    const { dev, ino } = lstatSync(made);
    try {
      linkSync(made, target);
    } catch (error) {
      if (systemErrorCode(error) === 'EEXIST') throw inUse(path);
      throw error;
    }
    unlinkSync(made);
    return {
      path: place.path,
      remove: () => {
        const now = lstatSync(place.path, { throwIfNoEntry: false });
        if (now?.dev === dev && now.ino === ino) rmSync(place.path, { force: true });
      },
    };
  } finally {
    if (scratch !== null) {
      rmSync(join(scratch, 's'), { force: true });
      rmdirSync(scratch);
    }
    closeSync(folderFd);
  }
}

async function removeDeadSocket(path: string, folder: string, name: string, ownerUid = -1): Promise<void> {
  const target = join(folder, name);
  const found = lstatSync(target, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw refused(path, `there is ${kindOf(found)}`);
  if (found.uid !== process.geteuid?.() && found.uid !== ownerUid)
    throw refused(path, `there is a socket of user ${found.uid}`);
  if (await hasListener(target)) throw inUse(path);
  // Aside first, so that nothing that came meanwhile is removed.
  const aside = join(folder, `.godwit-${randomName()}`);
  renameSync(target, aside);
  const { dev, ino } = lstatSync(aside);
  if (dev === found.dev && ino === found.ino) {
    unlinkSync(aside);
    return;
  }
  linkSync(aside, target);
  unlinkSync(aside);
  throw inUse(path);
}

/** True unless the kernel says that nobody listens there. */
function hasListener(path: string): Promise<boolean> {
  return new Promise((found) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      found(true);
    });
    socket.once('error', (error) => found(systemErrorCode(error) !== 'ECONNREFUSED'));
  });
}

function realFolder(path: string, folder: string): string {
  let real: string;
  try {
    real = realpathSync(folder);
  } catch (error) {
    throw refused(path, `${folder} is not there (${systemErrorCode(error) ?? 'unknown'})`);
  }
  if (!statSync(real).isDirectory()) throw refused(path, `${folder} is not a folder`);
  return real;
}

function checkClosed(path: string, folder: string, closed: readonly string[]): void {
  for (const kernel of KERNEL_FOLDERS) {
    if (isWithin(folder, kernel) && !isWithin(folder, MEMORY_FOLDER))
      throw refused(path, `${kernel} is the kernel's`);
  }
  for (const one of closed) {
    const real = existsSync(one) ? realpathSync(one) : one;
    if (isWithin(folder, real))
      throw refused(path, 'the folder is closed: it is one of godwit, or a machine sees it');
  }
  for (const one of upwards(folder)) {
    if (existsSync(join(one, DATA_FOLDER_MARK))) throw refused(path, `${one} is the data folder of a worker`);
  }
}

/** On the whole way nobody but root and this user may put something else in the place of a folder. */
function checkUnchangeable(path: string, folder: string): void {
  const own = process.geteuid?.() ?? 0;
  for (const one of upwards(folder)) {
    const found = statSync(one);
    if (found.uid !== 0 && found.uid !== own) throw refused(path, `${one} belongs to user ${found.uid}`);
    if (othersMayChange(found)) throw refused(path, `others may change what is in ${one}`);
  }
}

/** Put other things into the place of what is in a folder. */
function othersMayChange({ mode }: Stats): boolean {
  return (mode & 0o022) !== 0 && (mode & STICKY) === 0;
}

function upwards(folder: string): string[] {
  const all = [folder];
  for (let one = folder; dirname(one) !== one; ) {
    one = dirname(one);
    all.push(one);
  }
  return all;
}

function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
}

/** proc_pid_fd(5): the open file itself, whatever its name leads to now. */
function descriptorPath(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

function randomName(): string {
  return randomBytes(6).toString('hex');
}

function kindOf(found: Stats): string {
  if (found.isSymbolicLink()) return 'a symbolic link';
  if (found.isDirectory()) return 'a folder';
  if (found.isFile()) return 'a file';
  if (found.isSocket()) return 'a socket';
  if (found.isFIFO()) return 'a FIFO';
  return 'a device';
}

function refused(path: string, reason: string): GodwitError {
  return new GodwitError('SYS_PATH_REFUSED', `${path} is not touched: ${reason}`, {
    values: { path, reason },
    nextAction:
      'Name another path: in a folder of root that only root can change, where there is nothing yet.',
  });
}

function inUse(path: string): GodwitError {
  return new GodwitError('SYS_SOCKET_IN_USE', `somebody listens at ${path} already`, {
    values: { path },
    nextAction: 'End what listens there (`ss -xlp` names it), or choose another path.',
  });
}
