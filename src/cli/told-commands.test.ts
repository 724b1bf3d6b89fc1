import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Command, CommanderError } from 'commander';
import { makeProgram } from './program.ts';

/**
 * Every command that docs, next actions of errors, and `why` tell people to type is one that godwit has, with
 * the options and arguments that it takes. What the ones for emergencies do is in
 * test/chaos/overrides.test.ts, at three workers.
 */

const ROOT = join(import.meta.dirname, '..', '..');

/** Words that stand for something else: a sentence, a choice, or a command of the reader's own. */
const NOT_LITERAL = /[^\x20-\x7e]|[|<>[\]]|\.\.\.|COMMAND|\\n|^X /;

const SPOKEN_OF = new Set(
  ['missingArgument', 'optionMissingArgument', 'help', 'helpDisplayed', 'missingMandatoryOptionValue'].map(
    (code) => `commander.${code}`,
  ),
);

function told(file: string): string[] {
  const text = readFileSync(join(ROOT, file), 'utf8');
  const found: string[] = [];
  const take = (pattern: RegExp) => {
    for (const match of text.matchAll(pattern)) found.push(match[1]!);
  };
  if (file.endsWith('.md')) {
    take(/`godwit ([^`\n]+)`/g);
    take(/^ {4}(?:\$ )?godwit ([^\n]*?)(?: {2,}#.*| # .*)?$/gm);
  } else {
    // In a template string the marks are escaped.
    take(/\\`godwit ((?:[^`\\])+)\\`/g);
    take(/(?<!\\)`godwit ([^`\n]+?)(?<!\\)`/g);
    take(/nextAction:?\s*['"]godwit ([^'"\n]+)['"]/g);
  }
  return (
    found
      .filter((command) => !command.startsWith('${'))
      // A choice of options is left out; anything else stands for one word.
      .map((command) => command.replace(/\$\{[^}]*\?[^}]*\}/g, '').replace(/\$\{[^}]*\}/g, 'X'))
      .map((command) => command.split(/ {2,}/)[0]!.replace(/[.;:,]? *$/, ''))
      .filter((command) => !NOT_LITERAL.test(command))
  );
}

/** Of a line of text, the words of the command; it ends where a sentence goes on. */
function wordsOf(command: string): string[] {
  const words = command.match(/'[^']*'|"[^"]*"|[^\s]+/g) ?? [];
  const end = words.findIndex(
    (word) => ['and', 'then', 'says', 'shows', 'to', '&', '\\', 'on'].includes(word) || /[;:,)]$/.test(word),
  );
  return (end === -1 ? words : words.slice(0, end)).map((word) => word.replace(/^['"]|['"]$/g, ''));
}

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
  const files = [
    ...['README.md', 'ARCHITECTURE.md', ...globSync('docs/*.md', { cwd: ROOT })],
    ...globSync('src/**/*.ts', { cwd: ROOT }).filter((file) => !/\.test\.ts$/.test(file)),
  ];
  const wrong: string[] = [];
  const tried = new Set<string>();
  for (const file of files) {
    for (const command of told(file)) {
      const words = wordsOf(command);
      if (words.length === 0 || tried.has(words.join(' '))) continue;
      tried.add(words.join(' '));
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
  }
  assert.deepEqual(wrong, []);
  assert.ok(tried.size > 60, `only ${tried.size} commands were found`);
});
