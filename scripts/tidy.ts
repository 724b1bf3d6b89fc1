/** House rules that no linter knows: import direction, a test that keeps docs/errors.md complete, forbidden content. */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, normalize, relative } from 'node:path';
import { ENDPOINTS_PAGE, endpointsPage } from './endpoints-page.ts';
import { PATIENCE_PAGE, patiencePage } from './patience-page.ts';

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
  'contract',
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

/** What the code says of trying again, docs/errors.md says too. */
const again = { never: new Set<string>(), later: new Set<string>() };
for (const file of sources.filter((name) => name.startsWith('src/') && !name.endsWith('.test.ts'))) {
  for (const match of readFileSync(file, 'utf8').matchAll(
    /new GodwitError\(\s*'([A-Z0-9_]+)'((?:(?!new GodwitError\()[\s\S])*?\bretry: '(never|later)')?/g,
  )) {
    if (match[3] === 'never' || match[3] === 'later') again[match[3]].add(match[1]!);
  }
}
for (const [retry, codes] of Object.entries(again)) {
  const line =
    new RegExp(`^\\| \`${retry}\` \\|.*$`, 'm').exec(readFileSync('docs/errors.md', 'utf8'))?.[0] ?? '';
  const told = new Set([...line.matchAll(/`([A-Z][A-Z0-9_]+)`/g)].map((match) => match[1]!));
  for (const code of codes)
    if (!told.has(code)) problems.push(`docs/errors.md: ${code} is missing at retry ${retry}`);
  for (const code of told)
    if (!codes.has(code)) problems.push(`docs/errors.md: no ${code} says retry ${retry}`);
}

/** Every time that the control path waits for is in one table, and the page that is made from it is that table. */
const WAITING_ROOMS = [
  'base',
  'host',
  'crypt',
  'journal',
  'plane',
  'migration',
  'machine',
  'contract',
  'api',
  'worker',
];
const WAITING_FILES = [
  'src/volume/fence.ts',
  'src/volume/import-source.ts',
  'src/volume/clone-layer.ts',
  'src/attach/volume-supervisor.ts',
  'src/attach/fuse-mount.ts',
];
const RAW_WAITS = [
  /\b[A-Z_]*(?:TIMEOUT|DEADLINE|PATIENCE|GRACE|SLACK|QUIET|WAIT|WITHIN)[A-Z_]*_MS\b[^=\n]*= *[\d(]/,
  /\b(?:timeout|deadline|quiet|grace|patience|budget)Ms\??(?:: number)? *[:=] *\d[\d_]{2,}/,
  /AbortSignal\.timeout\( *\d/,
  /\btimer\( *\d[\d_]{3,}/,
];
/** Defaults and bounds of what people configure, and numbers that are no waiting; each with its reason. */
const NOT_WAITING: Readonly<Record<string, string>> = {
  'src/base/patience.ts': 'the table itself',
  'src/base/peer-account.ts': 'limits of connections of foreign peers (docs/iscsi.md, docs/nbd.md)',
  'src/base/doorkeeper.ts':
    'the same of connections that have shown nothing yet (docs/iscsi.md, docs/nbd.md)',
  'src/base/histogram.ts': 'a unit',
  'src/machine/config.ts': "a machine's own times",
  'src/machine/restart-policy.ts': 'the restart policy of machines (docs/machines.md)',
  'src/contract/schemas.ts': 'bounds and defaults of requests',
  'src/migration/plan.ts': 'a prediction',
};
for (const file of sources) {
  const inRoom = WAITING_ROOMS.includes(file.split('/')[1] ?? '') && file.startsWith('src/');
  if (!(inRoom || WAITING_FILES.includes(file)) || file.endsWith('.test.ts') || file in NOT_WAITING) continue;
  for (const [index, line] of readFileSync(file, 'utf8').split('\n').entries()) {
    if (RAW_WAITS.some((pattern) => pattern.test(line)))
      problems.push(
        `${file}:${index + 1}: a time to wait belongs in the table of src/base/patience.ts (then: npm run pages)`,
      );
  }
}
for (const [page, text, source] of [
  [PATIENCE_PAGE, patiencePage(), 'src/base/patience.ts'],
  [ENDPOINTS_PAGE, endpointsPage(), 'src/contract'],
] as const) {
  const found = existsSync(page) ? readFileSync(page, 'utf8') : '';
  if (found !== text) problems.push(`${page} is not what ${source} says: npm run pages`);
}

for (const problem of problems) console.error(problem);
process.exitCode = problems.length === 0 ? 0 : 1;
