import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Command, CommanderError } from 'commander';
import { toldCommands } from '../../test/support/told-commands.ts';
import { makeProgram } from './program.ts';

/**
 * Every command that docs, next actions of errors, and `why` tell people to type is one that godwit has, with
 * the options and arguments that it takes. What the ones for emergencies do is in
 * test/chaos/overrides.test.ts, and that all of them do something in a fleet in test/chaos/told-commands.test.ts.
 */

const SPOKEN_OF = new Set(
  ['missingArgument', 'optionMissingArgument', 'help', 'helpDisplayed', 'missingMandatoryOptionValue'].map(
    (code) => `commander.${code}`,
  ),
);

/** The program, whose commands do nothing. */
function parser(): Command {
  const program = makeProgram(process, '0');
  const quiet = (command: Command) => {
    command.exitOverride().configureOutput({ writeOut: () => {}, writeErr: () => {} });
    // `dev` has both an action and a command below it.
    if (command.commands.length === 0 || command.name() === 'dev') command.action(() => {});
    for (const inner of command.commands) quiet(inner);
  };
  quiet(program);
  return program;
}

test('every command that people are told to type is one that there is', async () => {
  const wrong: string[] = [];
  const commands = toldCommands();
  for (const { file, words } of commands) {
    try {
      await parser().parseAsync(words, { from: 'user' });
    } catch (error) {
      if (!(error instanceof CommanderError)) throw error;
      // A command that is spoken of, not one to type as it stands.
      const anyWord = error.code === 'commander.invalidArgument' && words.includes('X');
      if (!SPOKEN_OF.has(error.code) && !anyWord)
        wrong.push(`${file}: godwit ${words.join(' ')}: ${error.message}`);
    }
  }
  assert.deepEqual(wrong, []);
  assert.ok(commands.length > 60, `only ${commands.length} commands were found`);
});
