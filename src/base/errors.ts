/**
 * The one error class of godwit. An error carries a stable code (scripts match on it), the values that
 * matter (so that a log line needs no parsing) and the next action for the person who reads it.
 *
 * Codes are UPPER_SNAKE, prefixed by their room (`CLONE_WRONG_GENERATION`); docs/errors.md lists them all and
 * a test keeps that page complete.
 */
import { retryOfEarlier } from './earlier-errors.ts';

/** Values that explain an error. JSON-able, never a secret. */
export type ErrorValues = Readonly<Record<string, string | number | boolean | null>>;

/**
 * Whether trying the same again can help. `never`: it ends in the same way until a person changes something,
 * so an attempt that meets it is over at once. `later`: something did not answer, or takes long, which says
 * nothing of what is in the way. `unknown`: worth some tries.
 */
export const RETRIES = ['never', 'later', 'unknown'] as const;
export type Retry = (typeof RETRIES)[number];

/** An error in the form in which it crosses a process border (API, shim socket, journal). */
export type WireError = {
  code: string;
  message: string;
  values: ErrorValues;
  /** What the reader can do now. A sentence, with the command where there is one. */
  nextAction: string;
  /** Left out by versions that do not know it. */
  retry?: Retry;
};

const BRAND: unique symbol = Symbol.for('godwit.error');

export class GodwitError extends Error {
  readonly code: string;
  readonly values: ErrorValues;
  readonly nextAction: string;
  readonly retry: Retry;

  /** `retry`: default `unknown`. */
  constructor(
    code: string,
    message: string,
    options: { values?: ErrorValues; nextAction: string; retry?: Retry; cause?: unknown },
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'GodwitError';
    this.code = code;
    this.values = options.values ?? {};
    this.nextAction = options.nextAction;
    this.retry = options.retry ?? 'unknown';
  }

  get [BRAND](): true {
    return true;
  }

  /**
   * One of another copy of this module is one as well: the command line starts a worker that is a program
   * file of its own (scripts/bundle).
   */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && BRAND in value;
  }

  toWire(): WireError {
    const { code, message, values, nextAction, retry } = this;
    return { code, message, values, nextAction, retry };
  }

  /** Rebuilds an error that another process sent, or an earlier one of this host wrote down. */
  static fromWire(wire: WireError): GodwitError {
    const { code, message, values, nextAction } = wire;
    return new GodwitError(code, message, { values, nextAction, retry: retryOfWire(wire) });
  }
}

/** What a newer version may say besides is `unknown`. Pure. */
function retryOfWire({ retry, code, values }: WireError): Retry {
  if (retry === undefined) return retryOfEarlier(code, values);
  return RETRIES.includes(retry) ? retry : 'unknown';
}

/** True for a GodwitError, of the given code where one is given. */
export function isGodwitError(error: unknown, code?: string): error is GodwitError {
  return error instanceof GodwitError && (code === undefined || error.code === code);
}

/** Any thrown thing as a WireError; foreign errors keep their message under the code `INTERNAL`. */
export function toWireError(error: unknown): WireError {
  if (error instanceof GodwitError) return error.toWire();
  const message = error instanceof Error ? error.message : String(error);
  const systemCode = systemErrorCode(error);
  if (isDiskFull(error)) {
    // SQLite says the same of a write to a full disk and to one that has become read-only.
    const isAmbiguous = systemCode === 'ERR_SQLITE_ERROR' && (error as { errcode?: number }).errcode !== 13;
    return {
      code: 'DISK_FULL',
      message: `no space is left on the disk of the worker's data${isAmbiguous ? ', or it fails' : ''}: ${message}`,
      values: { systemCode: systemCode ?? null },
      nextAction: `Free space there, or add some${isAmbiguous ? ' (df); where there is room, look at the disk (dmesg)' : ''}; then do it again. What runs goes on, but for writes that need room.`,
      retry: 'unknown',
    };
  }
  if (isDiskBroken(error)) {
    return {
      code: 'DISK_FAILED',
      message: `a disk of this host fails, or may only be read: ${message}`,
      values: { systemCode: systemCode ?? null },
      nextAction:
        'Look at it (dmesg; a filesystem that has met an error is often read-only from then on), mend and remount it, and restart the worker. Machines run on as far as their disks let them.',
      retry: 'unknown',
    };
  }
  if (systemCode === 'EMFILE' || systemCode === 'ENFILE') {
    return {
      code: 'HOST_NO_DESCRIPTORS',
      message: `${systemCode === 'EMFILE' ? 'this process' : 'this host'} may open no more files: ${message}`,
      values: { systemCode },
      nextAction:
        'Raise the limit (LimitNOFILE of the service, ulimit -n; fs.file-max), and restart the worker.',
      retry: 'unknown',
    };
  }
  if (systemCode === 'EPERM' || systemCode === 'EACCES') {
    return {
      code: 'HOST_NOT_PERMITTED',
      message: `this host does not permit that: ${message}`,
      values: { systemCode },
      nextAction:
        'Look at that file or folder (lsattr: immutable), at the user that the worker runs as, and at what confines its service.',
      retry: 'unknown',
    };
  }
  return {
    code: 'INTERNAL',
    message,
    values: systemCode === undefined ? {} : { systemCode },
    nextAction: 'This is unexpected; look at the log of the worker for the stack and report it.',
    retry: 'unknown',
  };
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

/** Of the system or of SQLite: the disk is damaged, or has been made read-only for that. */
function isDiskBroken(error: unknown): boolean {
  const code = systemErrorCode(error);
  if (code === 'ERR_SQLITE_ERROR')
    return SQLITE_BROKEN.has(((error as { errcode?: number }).errcode ?? 0) & 0xff);
  return code !== undefined && DISK_BROKEN.has(code);
}

/** Of the system or of SQLite: it could not be written for want of room. */
export function isDiskFull(error: unknown): boolean {
  const code = systemErrorCode(error);
  if (code === 'ERR_SQLITE_ERROR') return SQLITE_NO_ROOM.has((error as { errcode?: number }).errcode ?? 0);
  return code === 'ENOSPC' || code === 'EDQUOT';
}

/** The errno name (`ENOSPC`, `ECONNREFUSED`…) of a Node system error, else undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** Message of any thrown thing. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
