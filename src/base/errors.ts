/**
 * The one error class of godwit. An error carries a stable code (scripts match on it), the values that
 * matter (so that a log line needs no parsing) and the next action for the person who reads it.
 *
 * Codes are UPPER_SNAKE, prefixed by their room (`CLONE_WRONG_GENERATION`); docs/errors.md lists them all and
 * a test keeps that page complete.
 */
import { retryOfEarlier } from './earlier-errors.ts';
import { isDiskFull, systemErrorCode, wireOfSystem } from './system-errors.ts';

export { isDiskFull, systemErrorCode };

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
  const known = wireOfSystem(error);
  if (known !== null) return known;
  const systemCode = systemErrorCode(error);
  return {
    code: 'INTERNAL',
    message: messageOf(error),
    values: systemCode === undefined ? {} : { systemCode },
    nextAction: 'This is unexpected; look at the log of the worker for the stack and report it.',
    retry: 'unknown',
  };
}

/** Message of any thrown thing. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
