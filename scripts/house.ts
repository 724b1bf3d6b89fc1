import { dirname, normalize, relative } from 'node:path';

/** What a room says of itself in `src/ROOM/room.json`. */
export type Room = {
  /** One line: what it is for. */
  for: string;
  /** The rooms that it may import from, beside `base`. */
  imports: string[];
  /** Its files that other rooms may import. */
  face: string[];
};
export type House = Readonly<Record<string, Room>>;
export type ProductFile = { path: string; text: string };

const IMPORT = /(?:from\s+|import\s*\(\s*|import\s+)'(\.{1,2}\/[^']+)'/g;
/** Every room may import from it. */
const GROUND = 'base';

/** The files that one imports by path, relative to the checkout. */
export function importsOf({ path, text }: ProductFile): string[] {
  return [...text.matchAll(IMPORT)].map((match) => relative('.', normalize(`${dirname(path)}/${match[1]}`)));
}

function roomOf(path: string): string | null {
  return path.startsWith('src/') ? path.split('/')[1]! : null;
}

/**
 * From the ground to the roof: each room after all that it may import from. Throws where rooms go round in a
 * circle.
 */
export function floors(house: House): string[] {
  const order: string[] = [];
  const climb = (name: string, from: readonly string[]): void => {
    if (order.includes(name)) return;
    if (from.includes(name)) throw new Error(`rooms import in a circle: ${[...from, name].join(', ')}`);
    for (const below of [...(house[name]?.imports ?? [])].sort()) climb(below, [...from, name]);
    order.push(name);
  };
  climb(GROUND, []);
  for (const name of Object.keys(house).sort()) climb(name, []);
  return order;
}

/** What product files do that their rooms do not say, and what rooms say that no file does. */
export function wallProblems(house: House, files: readonly ProductFile[]): string[] {
  const problems: string[] = [];
  const usedImports = new Set<string>();
  const usedFaces = new Set<string>();
  for (const file of files) {
    const room = roomOf(file.path)!;
    if (house[room] === undefined) {
      problems.push(`${file.path}: src/${room} has no room.json`);
      continue;
    }
    for (const imported of importsOf(file)) {
      const other = roomOf(imported);
      if (other === null) problems.push(`${file.path}: product code imports ${imported}`);
      if (other === null || other === room) continue;
      usedImports.add(`${room} ${other}`);
      usedFaces.add(imported);
      if (other !== GROUND && !house[room].imports.includes(other))
        problems.push(`${file.path}: ${room} may not import from ${other} (src/${room}/room.json)`);
      const face = imported.slice(`src/${other}/`.length);
      if (house[other]?.face.includes(face) === false)
        problems.push(`${file.path}: ${imported} is not in the face of its room (src/${other}/room.json)`);
    }
  }
  for (const [name, { imports, face }] of Object.entries(house)) {
    for (const other of imports)
      if (!usedImports.has(`${name} ${other}`))
        problems.push(`src/${name}/room.json: nothing in ${name} imports from ${other}`);
    for (const file of face)
      if (!usedFaces.has(`src/${name}/${file}`))
        problems.push(`src/${name}/room.json: no other room imports ${file}`);
  }
  return problems;
}

/** The table of ARCHITECTURE.md. */
export function roomsTable(house: House): string {
  const order = floors(house);
  const lines = order.map((name) => {
    const { for: purpose, imports, face } = house[name]!;
    const below = [...imports].sort((left, right) => order.indexOf(left) - order.indexOf(right));
    return `| \`${name}\` | ${purpose} | ${below.join(', ')} | ${face.length} |`;
  });
  return [
    '| room | for | imports from (and base) | files that others import |',
    '|---|---|---|---|',
    ...lines,
  ].join('\n');
}

const BEGIN = '<!-- rooms: made by `npm run pages` from src/*/room.json -->';
const END = '<!-- /rooms -->';

/** `page` with the table between its marks. Throws where it has none. */
export function withTable(page: string, house: House): string {
  const begin = page.indexOf(BEGIN);
  const end = page.indexOf(END);
  if (begin === -1 || end < begin) throw new Error(`the page has no ${BEGIN} … ${END}`);
  return `${page.slice(0, begin)}${BEGIN}\n${roomsTable(house)}\n${page.slice(end)}`;
}
