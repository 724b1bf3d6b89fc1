import { type ChildProcess, spawn } from 'node:child_process';
import { constants } from 'node:os';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { Ending } from './failure.ts';
import { NotWorthWaiting, NotYet, until } from './patience.ts';
import { findProgram } from './requires.ts';

const PROGRAM = fileURLToPath(new URL('terminal.py', import.meta.url));

export type TerminalModes = {
  echo: boolean;
  canonical: boolean;
  signals: boolean;
  outputProcessing: boolean;
};

/**
 * A command on a terminal of another program (python3's pty), of 100 columns and 30 rows. Ends with the test.
 */
export class Terminal {
  output = '';
  exitStatus: number | null = null;
  readonly #child: ChildProcess;
  readonly #modes: ((modes: TerminalModes) => void)[] = [];

  constructor(t: Ending, command: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.#child = spawn(findProgram('python3')!, [PROGRAM, ...command], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env,
    });
    this.#child.stdin!.on('error', () => {});
    createInterface({ input: this.#child.stdout! }).on('line', (line) => this.#heard(JSON.parse(line)));
    t.after(async () => {
      this.#child.stdin!.end();
      await this.gone();
    });
  }

  type(text: string): void {
    this.#say({ write: text });
  }

  resize(columns: number, rows: number): void {
    this.#say({ resize: [rows, columns] });
  }

  signal(name: NodeJS.Signals): void {
    this.#say({ signal: constants.signals[name] });
  }

  /** As when its window is closed. */
  close(): void {
    this.#say({ close: true });
  }

  /** Resolves when the command on a terminal that was closed has ended too. */
  async gone(): Promise<void> {
    await until('the terminal to end', () => this.#isGone);
  }

  modes(): Promise<TerminalModes> {
    return new Promise((resolve, reject) => {
      if (this.#isGone) reject(new Error('the terminal is gone'));
      this.#child.once('close', () => reject(new Error('the terminal is gone')));
      this.#modes.push(resolve);
      this.#say({ modes: true });
    });
  }

  get #isGone(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** Resolves with what the pattern matches in the output since the last `says`, which is then behind us. */
  async says(pattern: RegExp): Promise<RegExpExecArray> {
    const found = await until(`the terminal to show ${pattern}`, () => {
      const match = pattern.exec(this.output);
      if (match === null && this.#isGone) throw new NotWorthWaiting(`the terminal is gone: ${this.output}`);
      return match ?? new NotYet(this.output);
    });
    this.output = this.output.slice(found.index + found[0].length);
    return found;
  }

  /** Exit code, or the negative number of the signal, of the command. */
  async ended(): Promise<number> {
    const status = await until('the command to end', () =>
      this.exitStatus === null ? new NotYet(this.output) : { status: this.exitStatus },
    );
    return (status.status & 0x7f) === 0 ? status.status >> 8 : -(status.status & 0x7f);
  }

  #say(what: object): void {
    this.#child.stdin!.write(`${JSON.stringify(what)}\n`);
  }

  #heard(what: { output?: string; exit?: number; modes?: [boolean, boolean, boolean, boolean] }): void {
    if (what.output !== undefined) this.output += Buffer.from(what.output, 'base64').toString('utf8');
    if (what.exit !== undefined) this.exitStatus = what.exit;
    if (what.modes !== undefined) {
      const [echo, canonical, signals, outputProcessing] = what.modes;
      this.#modes.shift()?.({ echo, canonical, signals, outputProcessing });
    }
  }
}
