/**
 * What docs/start-here.md says of the code, and the words of ARCHITECTURE.md: every file that a walk comes past
 * is there and has the names that are said of it; a walk opens one file of a room, up to where it crosses to
 * another process or host; a word has one row, and the types that it names are declared where it says.
 */
export const WALKS_PAGE = 'docs/start-here.md';
export const WORDS_PAGE = 'ARCHITECTURE.md';

/** The text of a file of the product by its path under src/; undefined: there is none. */
export type ReadSource = (path: string) => string | undefined;

const IS_FILE = /\.(?:ts|sh)$/;
const CROSSING = /^\*.*\*$/;
const DECLARED = '(?:class|interface|type|const|function)';

/**
 * Rows of a walk are `| open | what happens there | behind it |`: one file as room/file, or `*what is crossed*`
 * alone; a sentence whose names in backticks are in that file or in one behind it (or a file of another room);
 * files of the same room.
 */
export function walkProblems(page: string, read: ReadSource): string[] {
  const problems: string[] = [];
  const walks = page.split(/^## /m).filter((part) => part.startsWith('Walk '));
  if (walks.length === 0) problems.push(`${WALKS_PAGE}: there is no walk`);
  for (const walk of walks) {
    const name = walk.slice(0, walk.indexOf(':'));
    let rooms = new Set<string>();
    const opened: string[] = [];
    for (const [where = '', what = '', behind = ''] of rowsOf(walk)) {
      if (CROSSING.test(where)) {
        rooms = new Set();
        continue;
      }
      const path = namesIn(where)[0] ?? '';
      const room = path.split('/')[0]!;
      const files = [path, ...namesIn(behind).map((file) => `${room}/${file}`)];
      opened.push(path);
      if (namesIn(where).length !== 1) problems.push(`${name}: one file a row, not ${where}`);
      if (rooms.has(room)) problems.push(`${name}: ${path} is the second file of ${room} before a crossing`);
      rooms.add(room);
      const texts = files.map(read);
      for (const [index, file] of files.entries())
        if (texts[index] === undefined) problems.push(`${name}: there is no src/${file}`);
      for (const said of namesIn(what)) {
        const isThere = IS_FILE.test(said)
          ? files.includes(`${room}/${said}`) || read(said) !== undefined
          : texts.some((text) => text?.includes(said));
        if (!isThere) problems.push(`${name}: ${said} is not in ${files.join(', ')}`);
      }
    }
    if (opened.length === 0) problems.push(`${name}: it comes past no file`);
  }
  return problems;
}

/**
 * Rows of the words are `| word | meaning | in the code |`; what is in the code are names in backticks, and after
 * each or several of them the file that declares them, in brackets.
 */
export function wordProblems(page: string, read: ReadSource): string[] {
  const problems: string[] = [];
  const part = page.split(/^## /m).find((each) => each.startsWith('Words\n'));
  if (part === undefined) return [`${WORDS_PAGE}: there are no words`];
  const words = new Set<string>();
  for (const [said = '', , code = ''] of rowsOf(part)) {
    for (const word of said.split(', ')) {
      if (words.has(word)) problems.push(`${WORDS_PAGE}: ${word} has two meanings`);
      words.add(word);
    }
    let names: string[] = [];
    for (const [, name = '', path = ''] of code.matchAll(/`([^`]+)`|\(([\w/-]+\.ts)\)/g)) {
      if (name !== '') names.push(name);
      else {
        const text = read(path);
        if (text === undefined) problems.push(`${WORDS_PAGE}: ${said}: there is no src/${path}`);
        for (const type of names)
          if (text !== undefined && !new RegExp(`\\b${DECLARED} ${type}\\b`).test(text))
            problems.push(`${WORDS_PAGE}: ${said}: src/${path} declares no ${type}`);
        names = [];
      }
    }
    for (const type of names) problems.push(`${WORDS_PAGE}: ${said}: where is ${type}?`);
  }
  return problems;
}

/** The cells of a table's rows, without its head. */
function rowsOf(text: string): string[][] {
  const lines = text.split('\n').filter((line) => line.startsWith('|'));
  return lines.slice(2).map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

function namesIn(text: string): string[] {
  return [...text.matchAll(/`([^`]+)`/g)].map((match) => match[1]!);
}
