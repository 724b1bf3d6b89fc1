/** The table of rooms in ARCHITECTURE.md, and the measures that may only fall. `npm run pages` writes both; scripts/tidy.ts compares. */
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

function measures(): Measures {
  const sources = globSync('{src,test,bench,demo,lab,scripts}/**/*.ts').sort();
  const isProduct = (path: string) => path.startsWith('src/') && !path.endsWith('.test.ts');
  const read = (path: string) => ({ path, text: readFileSync(path, 'utf8') });
  const found = findings(
    sources.filter(isProduct).map(read),
    sources.filter((path) => !isProduct(path)).map(read),
  );
  return {
    longFunctions: found.longFunctions.length,
    longComments: found.longComments.length,
    unusedExports: found.unusedExports.length,
  };
}

if (import.meta.filename === process.argv[1]) {
  writeFileSync(HOUSE_PAGE, housePage());
  writeFileSync(MEASURES_FILE, `${JSON.stringify(measures(), null, 2)}\n`);
}
