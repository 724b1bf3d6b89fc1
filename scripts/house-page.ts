/**
 * The table of rooms in ARCHITECTURE.md, and the measures that may only fall. `npm run pages` writes both;
 * scripts/tidy.ts compares.
 */
import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { type House, type Room, withTable } from './house.ts';
import { findings, type Measures } from './measures.ts';

export const HOUSE_PAGE = 'ARCHITECTURE.md';
export const MEASURES_FILE = 'scripts/measures.json';

export function readHouse(): House {
  return Object.fromEntries(
    globSync('src/*/room.json').map((path) => [
      path.split('/')[1]!,
      JSON.parse(readFileSync(path, 'utf8')) as Room,
    ]),
  );
}

export function housePage(): string {
  return withTable(readFileSync(HOUSE_PAGE, 'utf8'), readHouse());
}

function measured(): ReturnType<typeof findings> {
  const sources = globSync('{src,test,bench,demo,lab,scripts}/**/*.ts').sort();
  const isProduct = (path: string) => path.startsWith('src/') && !path.endsWith('.test.ts');
  const read = (path: string) => ({ path, text: readFileSync(path, 'utf8') });
  return findings(sources.filter(isProduct).map(read), sources.filter((path) => !isProduct(path)).map(read));
}

if (import.meta.filename === process.argv[1]) {
  const found = measured();
  if (process.argv[2] === '--measures') {
    for (const lines of Object.values(found)) for (const line of lines) console.log(line);
  } else {
    writeFileSync(HOUSE_PAGE, housePage());
    const counts: Measures = {
      longFunctions: found.longFunctions.length,
      longComments: found.longComments.length,
      unusedExports: found.unusedExports.length,
    };
    writeFileSync(MEASURES_FILE, `${JSON.stringify(counts, null, 2)}\n`);
  }
}
