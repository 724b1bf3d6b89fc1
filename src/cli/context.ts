import type { GodwitError } from '../base/errors.ts';
import { FleetClient, isAway } from './fleet-client.ts';
import { type Fleet, type FleetOptions, findFleet } from './fleet-file.ts';
import { type Style, style, wantsColour } from './style.ts';
import { printable } from './table.ts';

export type GlobalOptions = FleetOptions & { json?: boolean };

/** What a command works with: the process's streams and environment, and the fleet it was told about. */
export class Context {
  readonly options: GlobalOptions;
  readonly env: NodeJS.ProcessEnv;
  readonly cwd: string;
  readonly stdout: NodeJS.WriteStream;
  readonly stderr: NodeJS.WriteStream;
  readonly json: boolean;
  readonly style: Style;
  #fleet: FleetClient | undefined;

  constructor(options: GlobalOptions, host: NodeJS.Process) {
    this.options = options;
    this.env = host.env;
    this.cwd = host.cwd();
    this.stdout = host.stdout;
    this.stderr = host.stderr;
    this.json = options.json === true;
    this.style = style(wantsColour(host.stdout, host.env));
  }

  fleetDescription(): Fleet {
    return findFleet(this.options, this.env, this.cwd);
  }

  fleet(): FleetClient {
    this.#fleet ??= new FleetClient(this.fleetDescription());
    return this.#fleet;
  }

  print(text: string): void {
    this.stdout.write(`${text}\n`);
  }

  /** For people only; never among the JSON. */
  note(text: string): void {
    this.stderr.write(`${text}\n`);
  }

  /** With --json the value, else the text. */
  result(value: unknown, text: () => string): void {
    this.print(this.json ? JSON.stringify(value, null, 2) : text());
  }

  /** Says on stderr which workers did not answer. */
  noteUnreachable(unreachable: readonly { worker: string; error: GodwitError }[]): void {
    for (const { worker, error } of unreachable) {
      // Another CA is for the reader to give; a worker that is down is not there to be helped from here.
      const hint = error.code === 'API_UNREACHABLE' ? '' : `\n  next: ${error.nextAction}`;
      const how = isAway(error.code) ? 'does not answer' : 'has no answer';
      this.note(`warning: ${worker} ${how} (${printable(error.message)})${hint}`);
    }
  }

  /** What is said when the command is cut off; null: nothing goes on without it. */
  get goesOn(): string | null {
    const workers = this.#fleet?.workers.filter(({ client }) => client.isChanging) ?? [];
    if (workers.length === 0) return null;
    const names = workers.map(({ name }) => name).join(', ');
    return `Interrupted. What was asked of ${names} may go on there: godwit why ${workers[0]!.name}, and godwit machine list.`;
  }

  close(): void {
    this.#fleet?.close();
  }
}
