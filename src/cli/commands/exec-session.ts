import { once } from 'node:events';
import type { ExecStream } from '../../api/exec-client.ts';
import { GodwitError } from '../../base/errors.ts';
import { TERM_PATTERN } from '../../contract/exec-frames.ts';
import type { ExecStart } from '../../contract/schemas.ts';
import type { Context } from '../context.ts';
import { ExitWith } from '../exit.ts';
import { interruption } from '../interruption.ts';
import { noTerminal, RawTerminal } from '../raw-terminal.ts';

/** For a terminal that says nothing of itself, or nothing that a machine would understand. */
const USUAL = { columns: 80, rows: 24, term: 'xterm' } as const;
const TERM = new RegExp(TERM_PATTERN);

/**
 * `machine exec -i` and `-t`: a command in a machine that has our input, and a terminal where it is asked
 * for.
 */
export async function execSession(
  context: Context,
  ref: string,
  command: string[],
  withTerminal: boolean,
): Promise<void> {
  const { stdin } = process;
  const { stdout, stderr } = context;
  if (context.json) {
    throw new GodwitError('CLI_INVALID_OPTIONS', '--json does not go with -i or -t', {
      nextAction: 'See godwit machine exec --help.',
    });
  }
  if (withTerminal && !(stdin.isTTY && stdout.isTTY))
    throw noTerminal(`-t needs a terminal, and standard ${stdin.isTTY ? 'output' : 'input'} is none`);
  const { worker, machine } = await context.fleet().machine(ref);
  const interrupt = interruption();
  let raw: RawTerminal | null = null;
  /** Nothing is shown before: a prompt would be answered on a terminal that is not raw yet. */
  const shows = Promise.withResolvers<void>();
  let stream: ExecStream | null = null;
  const sizeOf = () => ({ columns: stdout.columns || USUAL.columns, rows: stdout.rows || USUAL.rows });
  const onResize = () => stream?.resize(sizeOf());
  try {
    const term = TERM.test(context.env.TERM ?? '') ? context.env.TERM! : USUAL.term;
    const start: ExecStart = { command, terminal: withTerminal ? { ...sizeOf(), term } : null };
    const opened = await worker.client.execStream(machine.id, start, {
      signal: interrupt.signal,
      onOutput: async (name, bytes) => {
        await shows.promise;
        const output = name === 'stdout' ? stdout : stderr;
        if (!output.write(bytes)) await once(output, 'drain', { signal: interrupt.signal });
      },
    });
    stream = opened;
    interrupt.signal.addEventListener('abort', () => opened.close(interrupt.signal.reason), { once: true });
    if (interrupt.signal.aborted) opened.close(interrupt.signal.reason);
    if (withTerminal) {
      raw = await RawTerminal.enter();
      stdout.on('resize', onResize);
      // It may have changed since it was read.
      onResize();
    }
    shows.resolve();
    void passInput(stdin, opened, withTerminal);
    const { exitCode } = await opened.ended;
    if (exitCode !== 0) throw new ExitWith(exitCode ?? 125);
  } finally {
    shows.resolve();
    stream?.close(new Error('over'));
    stdout.off('resize', onResize);
    await raw?.leave();
    interrupt.dispose();
    // A read that is under way would keep this process.
    stdin.destroy();
  }
}

/**
 * As much as the other side takes, and its end. A terminal that ends was closed: nobody is there any more.
 */
async function passInput(stdin: NodeJS.ReadStream, stream: ExecStream, isTerminal: boolean): Promise<void> {
  try {
    for await (const bytes of stdin as AsyncIterable<Buffer>) await stream.write(bytes);
  } catch {
    // It is destroyed when the command has ended.
  }
  if (isTerminal) stream.close(new ExitWith(125));
  else stream.endInput();
}
