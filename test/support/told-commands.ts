import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/*
 * Commands that docs, next actions of errors, and `why` tell people to type, as they stand there. Words that
 * the text fills in are `X`.
 */

const ROOT = join(import.meta.dirname, '..', '..');

/** Words that stand for something else: a sentence, a choice, or a command of the reader's own. */
const NOT_LITERAL = /[^\x20-\x7e]|[|<>[\]]|\.\.\.|COMMAND|\\n|^X /;
const VERBS = 'machine|volume|runs|drain|undrain|move|why|top|receipt|dev|doctor';
/** Where a sentence goes on after a command without marks. */
const GOES_ON = new Set([
  ...['and', 'then', 'says', 'say', 'shows', 'show', 'tells', 'gives', 'ends', 'kills', 'has', 'to', 'on'],
  ...['for', 'when', 'in', 'it', 'what', 'is', 'does', 'finds', 'shows', 'tell', '&', '\\', '+', '\\`', '#'],
]);

/** Each once, in words, with the file that has it first. */
export function toldCommands(): { file: string; words: string[] }[] {
  const files = [
    ...['README.md', 'ARCHITECTURE.md', ...globSync('docs/*.md', { cwd: ROOT })],
    ...globSync('src/**/*.ts', { cwd: ROOT }).filter((file) => !/\.test\.ts$/.test(file)),
  ];
  const found = new Map<string, { file: string; words: string[] }>();
  for (const file of files) {
    for (const words of told(file).map(wordsOf)) {
      const key = words.join(' ');
      if (words.length > 0 && !found.has(key)) found.set(key, { file, words });
    }
  }
  return [...found.values()];
}

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
    // In the middle of a sentence there are none.
    const code = text.replace(/^ *(?:\/?\*|\/\/).*$/gm, '');
    for (const match of code.matchAll(new RegExp(`(?<![\`\\\\])\\bgodwit ((?:${VERBS})\\b[^\`'"\\n]*)`, 'g')))
      found.push(...match[1]!.split(/, godwit |; godwit /));
  }
  return (
    found
      .filter((command) => !command.startsWith('${'))
      // A choice of options is left out; anything else stands for one word.
      .map((command) => command.replace(/\$\{[^}]*\?[^}]*\}/g, '').replace(/\$\{[^}]*\}/g, 'X'))
      .map((command) => command.split(/ {2,}/)[0]!.replace(/[.;:,)]+ *$/, ''))
      .filter((command) => !NOT_LITERAL.test(command))
  );
}

/** Of a line of text, the words of the command; it ends where a sentence goes on. */
function wordsOf(command: string): string[] {
  const [sentence = ''] = command.split(/[.;:,)] |[;:,)]+$/);
  const words = sentence.match(/'[^']*'|"[^"]*"|[^\s]+/g) ?? [];
  // `runs show` is a command, and `godwit why shows` none.
  const end = words.findIndex((word, at) => at > 0 && GOES_ON.has(word) && !(at === 1 && word === 'show'));
  return (end === -1 ? words : words.slice(0, end)).map((word) => word.replace(/^['"]|['")]$/g, ''));
}
