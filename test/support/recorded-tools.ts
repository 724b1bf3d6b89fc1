import { deepStrictEqual } from 'node:assert';
import type { ToolOptions, ToolOutput, Tools } from '../../src/host/tools.ts';

/** One run of a program as it was on a real host: what was asked, what it answered. */
export type RecordedRun = {
  argv: readonly [string, ...string[]];
  input?: string;
  exitCode?: number;
  stdout?: string;
  stderr?: string;
};

/** Answers exactly these runs, in this order; anything else throws. For tests. */
export class RecordedTools implements Tools {
  readonly #left: RecordedRun[];

  constructor(runs: readonly RecordedRun[]) {
    this.#left = [...runs];
  }

  /** Runs that nobody has asked for yet. */
  get left(): readonly RecordedRun[] {
    return this.#left;
  }

  async run(argv: readonly [string, ...string[]], options: ToolOptions = {}): Promise<ToolOutput> {
    const next = this.#left.shift();
    deepStrictEqual({ argv, input: options.input }, { argv: next?.argv, input: next?.input });
    return { exitCode: next?.exitCode ?? 0, stdout: next?.stdout ?? '', stderr: next?.stderr ?? '' };
  }
}
