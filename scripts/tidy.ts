/**
 * House rules that no linter knows: import direction, a test that keeps docs/errors.md complete, forbidden
 * content.
 */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { CONDITIONS_PAGE, conditionsPage } from './conditions-page.ts';
import { ENDPOINTS_PAGE, endpointsPage } from './endpoints-page.ts';
import { EVENTS_PAGE, eventsPage } from './events-page.ts';
import { importsOf, wallProblems } from './house.ts';
import { HOUSE_PAGE, housePage, MEASURES_FILE, readHouse } from './house-page.ts';
import { findings, type Measures } from './measures.ts';
import { METRICS_PAGE, metricsPage } from './metrics-page.ts';
import { PATIENCE_PAGE, patiencePage } from './patience-page.ts';
import { portProblems } from './ports.ts';
import { WALKS_PAGE, WORDS_PAGE, walkProblems, wordProblems } from './walks.ts';

const problems: string[] = [];
const sources = globSync('{src,test,bench,demo,lab,scripts}/**/*.ts').sort();

const read = (path: string) => ({ path, text: readFileSync(path, 'utf8') });
const all = sources.map(read);
const isProduct = ({ path }: { path: string }) => path.startsWith('src/') && !path.endsWith('.test.ts');
const product = all.filter(isProduct);
problems.push(...wallProblems(readHouse(), product), ...portProblems(product));
for (const file of all) {
  for (const imported of importsOf(file))
    if (!imported.endsWith('.ts')) problems.push(`${file.path}: import ${imported} without its .ts`);
  if (/\bTODO\b|\bFIXME\b|\bXXX\b/.test(file.text) && file.path !== 'scripts/tidy.ts')
    problems.push(`${file.path}: leftover reminder`);
}

/** What may only become less. */
const FINDINGS_SHOWN = 5;
const others = all.filter((file) => !isProduct(file));
const measured = findings(product, others);
const limits = JSON.parse(readFileSync(MEASURES_FILE, 'utf8')) as Measures;
for (const measure of Object.keys(measured) as (keyof Measures)[]) {
  const { length } = measured[measure];
  if (length <= limits[measure]) continue;
  problems.push(...measured[measure].slice(-FINDINGS_SHOWN));
  problems.push(
    `${measure}: ${length}, at most ${limits[measure]} (scripts/measures.json); all: npm run measures`,
  );
}

/**
 * A test is left out for what it needs (requires.ts) or for a reason on the list (skips.ts), and the list has
 * no other reasons.
 */
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

/** Files that a page names are there. */
const paths = new Set(globSync('{src,test,bench,demo,lab,scripts}/**/*.{ts,sh,py}'));
const names = new Set([...paths].map((path) => basename(path)));
for (const page of globSync('{*,docs/*}.md')) {
  for (const [, name] of readFileSync(page, 'utf8').matchAll(/`([\w./-]+\.(?:ts|sh|py))`/g))
    if (!(name!.startsWith('src/') ? paths.has(name!) : names.has(basename(name!))))
      problems.push(`${page}: there is no ${name}`);
}

/** So are those of the walks, with what is said of them, and the types of the words. */
const sourceOf = (path: string) =>
  path !== '' && existsSync(`src/${path}`) ? readFileSync(`src/${path}`, 'utf8') : undefined;
problems.push(
  ...walkProblems(readFileSync(WALKS_PAGE, 'utf8'), sourceOf),
  ...wordProblems(readFileSync(WORDS_PAGE, 'utf8'), sourceOf),
);

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

/**
 * Every time that the control path waits for is in one table, and the page that is made from it is that
 * table.
 */
const WAITING_ROOMS = [
  'base',
  'host',
  'crypt',
  'journal',
  'kernel',
  'migration',
  'shim',
  'jail',
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
  'src/base/client-account.ts': 'limits of connections of clients (docs/iscsi.md, docs/nbd.md)',
  'src/base/doorkeeper.ts':
    'the same of connections that have shown nothing yet (docs/iscsi.md, docs/nbd.md)',
  'src/base/histogram.ts': 'a unit',
  'src/contract/machine-config.ts': "a machine's own times",
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
  [METRICS_PAGE, metricsPage(), 'src/worker/metric-rows.ts'],
  [CONDITIONS_PAGE, conditionsPage(), 'src/worker/condition.ts'],
  [EVENTS_PAGE, eventsPage(), 'src/worker/event.ts'],
  [HOUSE_PAGE, housePage(), 'src/*/room.json'],
] as const) {
  const found = existsSync(page) ? readFileSync(page, 'utf8') : '';
  if (found !== text) problems.push(`${page} is not what ${source} says: npm run pages`);
}

for (const problem of problems) console.error(problem);
process.exitCode = problems.length === 0 ? 0 : 1;
