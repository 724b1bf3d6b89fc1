import { statusOf } from '../api/status.ts';
import { toWireError, type WireError } from '../base/errors.ts';

/**
 * Exit codes of godwit. Scripts stand on them: only ever append. Documented in docs/cli.md and in `godwit
 * --help`.
 */
export const EXIT = {
  done: 0,
  error: 1,
  usage: 2,
  /** It cannot be finished now, for reasons that were printed. */
  blocked: 3,
  unreachable: 4,
  notFound: 5,
  conflict: 6,
} as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

/** Text for the end of `--help`. */
export const EXIT_HELP = `Exit codes:
  0  done
  1  error
  2  wrong usage or invalid input
  3  blocked: it cannot be finished now, the reasons are printed
  4  a worker could not be reached
  5  not found
  6  conflict with the state of things or with another run
130  interrupted`;

/** A command that ends with another code than 0 after having printed what there is to say. */
export class ExitWith extends Error {
  readonly exitCode: number;
  constructor(exitCode: number) {
    super(`exit ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** A control group, a device, a program of the host; what is missing of a volume is another matter. */
const HOST_LACKS = /^(HOST|MACHINE|ATTACH)_(\w+_)?(MISSING|NO_FUSE|NO_LOOP|NO_RESEND|NO_DAEMON|NO_TARGET)$/;

export function exitCodeOf(error: unknown): number {
  // Also of what the system says, as a person reads it.
  const { code } = toWireError(error);
  if (/^CLI_(INVALID|AMBIGUOUS|NO_TERMINAL)(_|$)/.test(code)) return EXIT.usage;
  // The same as a drain that says so: not now.
  if (code === 'MIGRATION_NOT_MOVABLE') return EXIT.blocked;
  // A receipt that does not hold is an answer, not a wrong use of the command.
  if (code.startsWith('RECEIPT_')) return EXIT.error;
  // There is no room for it: not now.
  if (/(^|_)(NO_SPACE|DISK_FULL|NO_CAPACITY)$/.test(code)) return EXIT.blocked;
  // A host that lacks what was asked for, as a plan in which nobody has it.
  if (HOST_LACKS.test(code)) return EXIT.blocked;
  // The fleet file is wrong.
  if (code === 'API_WRONG_WORKER') return EXIT.usage;
  if (code === 'API_UNREACHABLE' || code === 'API_TLS_REFUSED') return EXIT.unreachable;
  switch (statusOf(code)) {
    case 400:
      return EXIT.usage;
    case 404:
      return EXIT.notFound;
    case 409:
      return EXIT.conflict;
    default:
      return EXIT.error;
  }
}

/** Code, sentence, next action; and that the same command ends in the same way, where that is known. */
export function describeError(error: unknown): { wire: WireError; text: string } {
  const wire = toWireError(error);
  const again = wire.retry === 'never' ? '\n  trying again does not help before that' : '';
  return { wire, text: `error ${wire.code}: ${wire.message}\n  next: ${wire.nextAction}${again}` };
}
