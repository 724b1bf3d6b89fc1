import type { WireError } from './errors.ts';

/*
 * What the system says of its disks, files, processes and addresses, for people: a code, and what to do.
 * Foreign errors that are none of these are `INTERNAL`.
 */

/** The errno name (`ENOSPC`, `ECONNREFUSED`…) of a Node system error, else undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** SQLITE_FULL, and SQLITE_IOERR_SHMSIZE and _WRITE, which a full disk is behind (sqlite3.h). */
const SQLITE_NO_ROOM = new Set([13, 4874, 778]);

/**
 * SQLITE_READONLY, SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_CANTOPEN, SQLITE_NOTADB: the last byte of their
 * extended codes.
 */
const SQLITE_BROKEN = new Set([8, 10, 11, 14, 26]);
/** EUCLEAN and EBADMSG, with which filesystems say that they are damaged, have no name in libuv. */
const DISK_BROKEN = new Set(['EIO', 'EROFS', 'Unknown system error -117', 'Unknown system error -74']);

/** Of the system or of SQLite: it could not be written for want of room. */
export function isDiskFull(error: unknown): boolean {
  const code = systemErrorCode(error);
  if (code === 'ERR_SQLITE_ERROR') return SQLITE_NO_ROOM.has(sqliteCode(error));
  return code === 'ENOSPC' || code === 'EDQUOT';
}

/** Of the system or of SQLite: the disk is damaged, or has been made read-only for that. */
function isDiskBroken(error: unknown): boolean {
  const code = systemErrorCode(error);
  if (code === 'ERR_SQLITE_ERROR') return SQLITE_BROKEN.has(sqliteCode(error) & 0xff);
  return code !== undefined && DISK_BROKEN.has(code);
}

function sqliteCode(error: unknown): number {
  return (error as { errcode?: number }).errcode ?? 0;
}

/** SQLite says the same of a write to a full disk and to one that has become read-only. */
function isAmbiguous(error: unknown): boolean {
  return systemErrorCode(error) === 'ERR_SQLITE_ERROR' && sqliteCode(error) !== 13;
}

const isOneOf =
  (...codes: string[]) =>
  (error: unknown) =>
    codes.includes(systemErrorCode(error) ?? '');

/** A process that could not be made. Elsewhere these are answers to be waited for. */
function isOfStart(error: unknown): boolean {
  return /^spawn\b/.test(String((error as { syscall?: unknown } | null)?.syscall));
}

type Row = {
  code: string;
  is: (error: unknown) => boolean;
  /** What goes before its own message. */
  what: (error: unknown) => string;
  nextAction: (error: unknown) => string;
};

/** The first that fits counts. */
const ROWS: readonly Row[] = [
  {
    code: 'DISK_FULL',
    is: isDiskFull,
    what: (error) =>
      `no space is left on the disk of the worker's data${isAmbiguous(error) ? ', or it fails' : ''}`,
    nextAction: (error) =>
      `Free space there, or add some${isAmbiguous(error) ? ' (df); where there is room, look at the disk (dmesg)' : ''}; then do it again. What runs goes on, but for writes that need room.`,
  },
  {
    code: 'DISK_FAILED',
    is: isDiskBroken,
    what: () => 'a disk of this host fails, or may only be read',
    nextAction: () =>
      'Look at it (dmesg; a filesystem that has met an error is often read-only from then on), mend and remount it (one that fails as before is the old one, kept by a copy in another mount namespace: grep its folder in /proc/*/mountinfo), and restart the worker. Machines run on as far as their disks let them.',
  },
  {
    code: 'HOST_NO_DESCRIPTORS',
    is: isOneOf('EMFILE', 'ENFILE'),
    what: (error) =>
      `${systemErrorCode(error) === 'EMFILE' ? `process ${process.pid}` : 'this host'} may open no more files`,
    nextAction: (error) =>
      systemErrorCode(error) === 'EMFILE'
        ? `\`prlimit --pid ${process.pid} --nofile=65536\` raises its limit at once; LimitNOFILE of the service (ulimit -n) that of what is started later.`
        : 'Raise fs.file-max (sysctl), or end what has so many files open.',
  },
  {
    code: 'HOST_NO_PROCESSES',
    is: (error) => isOneOf('EAGAIN', 'ENOMEM')(error) && isOfStart(error),
    what: () => 'this host starts no more processes for the worker',
    nextAction: () =>
      'Raise what limits it (TasksMax and MemoryMax of the service, pids.max and the memory of its control group, ulimit -u), or end what takes it up; then do it again. What runs goes on.',
  },
  {
    code: 'HOST_ADDRESS_TAKEN',
    is: isOneOf('EADDRINUSE'),
    what: () => 'another process listens there already',
    nextAction: () =>
      'Give another address or port, or end who has it: `ss -lntp` names the process. One worker is enough for one data folder.',
  },
  {
    code: 'HOST_ADDRESS_ABSENT',
    is: isOneOf('EADDRNOTAVAIL'),
    what: () => 'this host has no such address',
    nextAction: () => 'Give one that `ip addr` shows here, or 0.0.0.0 for all of them.',
  },
  {
    code: 'HOST_NOT_PERMITTED',
    is: isOneOf('EPERM', 'EACCES'),
    what: () => 'this host does not permit that',
    nextAction: () =>
      'Look at that file or folder (lsattr: immutable), at the user that the worker runs as, and at what confines its service.',
  },
];

/** Null: the system says nothing in it that a person could do something about. */
export function wireOfSystem(error: unknown): WireError | null {
  const row = ROWS.find(({ is }) => is(error));
  if (!row) return null;
  const message = error instanceof Error ? error.message : String(error);
  return {
    code: row.code,
    message: `${row.what(error)}: ${message}`,
    values: { systemCode: systemErrorCode(error) ?? null },
    nextAction: row.nextAction(error),
    retry: 'unknown',
  };
}
