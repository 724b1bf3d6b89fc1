import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { GodwitError } from '../base/errors.ts';

/**
 * Holds on until its descriptor 3 is closed, which the kernel does however this process ends. Then the
 * terminal is as it was, unless somebody else (the shell that waits for us) has changed it since.
 */
const KEEPER = `
trap '' HUP INT QUIT TERM
saved=$(stty -g) || exit 1
stty raw -echo || exit 1
raw=$(stty -g)
echo raw
read -r _ <&3
[ "$(stty -g)" != "$raw" ] || stty "$saved"
`;

/**
 * The terminal at standard input, in raw mode: each key goes to whoever runs at the other end, Ctrl-C too,
 * and output comes as that one makes it. By stty and not by Node, which leaves output processing on (a line
 * feed would begin a new line). A process of its own, in a session of its own, puts the terminal back, so
 * that neither a crash of this one nor SIGKILL leaves it raw.
 */
export class RawTerminal {
  readonly #keeper: ChildProcess;
  readonly #ended: Promise<unknown>;

  private constructor(keeper: ChildProcess) {
    this.#keeper = keeper;
    this.#ended = once(keeper, 'close').catch(() => {});
  }

  /** Throws `CLI_NO_TERMINAL`. */
  static async enter(): Promise<RawTerminal> {
    const keeper = spawn('sh', ['-c', KEEPER], {
      stdio: ['inherit', 'pipe', 'ignore', 'pipe'],
      detached: true,
    });
    const terminal = new RawTerminal(keeper);
    const isRaw = await new Promise<boolean>((resolve) => {
      keeper.stdout!.once('data', () => resolve(true));
      keeper.once('error', () => resolve(false));
      keeper.once('close', () => resolve(false));
    });
    if (isRaw) return terminal;
    throw noTerminal('the terminal cannot be switched to raw mode by stty');
  }

  /** Resolves when the terminal is as it was. Idempotent. */
  async leave(): Promise<void> {
    (this.#keeper.stdio[3] as Writable).end();
    await this.#ended;
  }
}

export function noTerminal(message: string): GodwitError {
  return new GodwitError('CLI_NO_TERMINAL', message, {
    nextAction: 'Run it in a terminal, or without -t (-i passes a pipe on).',
  });
}
