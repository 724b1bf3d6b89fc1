import type { ProcessIdentity } from '../host/process-identity.ts';
import type { TerminalSize } from '../sys/pty.ts';

/** What a shim says of how its machine is entered (`workload.enter`). */
export type Entrance = {
  file: string;
  args: string[];
  /** PID 1 of the machine. */
  init: ProcessIdentity;
  uid: number;
  gid: number;
};

export type SessionOutput = (stream: 'stdout' | 'stderr', bytes: Buffer) => void;
export type SessionEnd = { exitCode: number | null; signal: string | null };

/**
 * A command inside a machine whose input and output somebody has in hand. Ends with the process that made it.
 */
export interface ExecSession {
  /**
   * Once, when the command has ended and all that it wrote before was handed over. Never, after `hangUp`, for
   * a command that goes on.
   */
  readonly ended: Promise<SessionEnd>;
  /**
   * Resolves when the command, or the buffer of its terminal or pipe, has them, or when nobody will take them
   * any more. One at a time.
   */
  write(bytes: Uint8Array): Promise<void>;
  /** No more input. */
  endInput(): void;
  resize(size: TerminalSize): void;
  /** No output until `resume`: then the command waits when it writes. */
  pause(): void;
  resume(): void;
  /** SIGHUP, and nobody is there any more. Idempotent. */
  hangUp(): void;
}
