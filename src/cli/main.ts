import { readFileSync } from 'node:fs';
import { CommanderError } from 'commander';
import { describeError, EXIT, ExitWith, exitCodeOf } from './exit.ts';
import { Interrupted } from './interruption.ts';
import { makeProgram } from './program.ts';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

/** The exit code of the command line. Sets no exit before what was printed is written. */
async function main(argv: string[]): Promise<number> {
  const program = makeProgram(process, version);
  const throwing = (command: typeof program): void => {
    command.exitOverride();
    for (const child of command.commands) throwing(child);
  };
  throwing(program);
  try {
    await program.parseAsync(argv);
    return EXIT.done;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
    if (error instanceof ExitWith || error instanceof Interrupted) return error.exitCode;
    const { wire, text } = describeError(error);
    const ours = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv;
    if (ours.includes('--json')) process.stdout.write(`${JSON.stringify({ error: wire }, null, 2)}\n`);
    process.stderr.write(`${text}\n`);
    return exitCodeOf(error);
  }
}

// The reader of a pipe has left (`godwit … | head`): nothing more to say to anybody.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(EXIT.error);
  throw error;
});

void main(process.argv).then((exitCode) => {
  process.exitCode = exitCode;
});
