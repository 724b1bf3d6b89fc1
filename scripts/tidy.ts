/** House rules that no linter knows: import direction, a test that keeps docs/errors.md complete, forbidden content. */
import { globSync, readFileSync } from 'node:fs';
import { dirname, normalize, relative } from 'node:path';

/** The house from the ground to the roof. A file imports from its own room or from rooms below it. */
const ROOMS = [
  'base',
  'sys',
  'host',
  'block',
  'crypt',
  'freemap',
  'receipt',
  'clone',
  'iscsi',
  'nbd',
  'attach',
  'journal',
  'volume',
  'plane',
  'machine',
  'migration',
  'api',
  'worker',
  'cli',
];

const problems: string[] = [];
const sources = globSync('{src,test,bench,demo,lab,scripts}/**/*.ts').sort();

for (const file of sources) {
  const text = readFileSync(file, 'utf8');
  const room = file.startsWith('src/') ? file.split('/')[1]! : null;
  if (room !== null && !ROOMS.includes(room)) problems.push(`${file}: ${room} is not a room of the house`);
  for (const match of text.matchAll(/(?:from\s+|import\s*\(\s*|import\s+)'(\.{1,2}\/[^']+)'/g)) {
    const imported = relative('.', normalize(`${dirname(file)}/${match[1]}`));
    if (!imported.endsWith('.ts')) problems.push(`${file}: import ${match[1]} without its .ts`);
    if (room === null || file.endsWith('.test.ts')) continue;
    if (!imported.startsWith('src/')) {
      problems.push(`${file}: product code imports ${imported}`);
      continue;
    }
    const importedRoom = imported.split('/')[1]!;
    if (ROOMS.indexOf(importedRoom) > ROOMS.indexOf(room)) {
      problems.push(`${file}: ${room} imports upwards from ${importedRoom}`);
    }
  }
  if (/\bTODO\b|\bFIXME\b|\bXXX\b/.test(text) && file !== 'scripts/tidy.ts')
    problems.push(`${file}: leftover reminder`);
}

/** A test is left out for what it needs (requires.ts) or for a reason on the list (skips.ts), and the list has no other reasons. */
const reasons = new Set<string>();
for (const file of sources.filter((name) => name.endsWith('.test.ts'))) {
  const text = readFileSync(file, 'utf8');
  for (const match of text.matchAll(/\bmayLack\(\s*'([^']+)'/g)) reasons.add(match[1]!);
  for (const match of text.matchAll(/(?:\.skip\(|\bskip:)[^;\n]*['"`][^\n]*/g))
    if (!/\b(?:mayLack|requires)\(/.test(match[0]))
      problems.push(`${file}: left out without the list: ${match[0]}`);
}
for (const match of readFileSync('test/support/skips.ts', 'utf8').matchAll(/^ {2}(?:'([^']+)'|(\w+)): '/gm)) {
  const reason = match[1] ?? match[2]!;
  if (!reasons.has(reason)) problems.push(`test/support/skips.ts: no test lacks ${reason} any more`);
}

/** Every code that the product can show a person is explained in docs/errors.md. */
const documented = new Set(
  [...readFileSync('docs/errors.md', 'utf8').matchAll(/`([A-Z][A-Z0-9]*_[A-Z0-9_]+)`/g)].map(
    (match) => match[1]!,
  ),
);
const used = new Map<string, string>();
for (const file of sources.filter((name) => name.startsWith('src/') && !name.endsWith('.test.ts'))) {
  for (const match of readFileSync(file, 'utf8').matchAll(
    /'((?:BASE|RPC|SYS|HOST|BLOCK|CRYPT|FREEMAP|CLONE|ISCSI|NBD|ATTACH|JOURNAL|VOLUME|PLANE|MACHINE|MIGRATION|API|WORKER|CLI|RECEIPT)_[A-Z0-9_]+)'/g,
  )) {
    used.set(match[1]!, file);
  }
}
for (const [code, file] of used) {
  if (!documented.has(code)) problems.push(`${file}: error code ${code} is missing in docs/errors.md`);
}

for (const problem of problems) console.error(problem);
process.exitCode = problems.length === 0 ? 0 : 1;
