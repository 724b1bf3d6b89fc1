import assert from 'node:assert/strict';
import { test } from 'node:test';
import { floors, type House, roomsTable, wallProblems, withTable } from './house.ts';

const HOUSE: House = {
  roof: { for: 'keeps the rain out', imports: ['hall'], face: [] },
  base: { for: 'stands', imports: [], face: ['stone.ts'] },
  hall: { for: 'lets people in', imports: [], face: ['door.ts'] },
};
const files = (texts: Record<string, string>) =>
  Object.entries(texts).map(([path, text]) => ({ path, text }));
const GOOD = {
  'src/base/stone.ts': '',
  'src/hall/door.ts': "import { a } from '../base/stone.ts';",
  'src/roof/tile.ts': "import type { b } from '../hall/door.ts';\nawait import('../base/stone.ts');",
};

test('each room comes after those it stands on, and none stands on itself', () => {
  assert.deepEqual(floors(HOUSE), ['base', 'hall', 'roof']);
  const circle = { ...HOUSE, hall: { ...HOUSE.hall!, imports: ['roof'] } };
  assert.throws(() => floors(circle), /hall, roof, hall/);
});

test('what a file imports its room says, and what a room says a file does', () => {
  assert.deepEqual(wallProblems(HOUSE, files(GOOD)), []);
  const bad = {
    ...GOOD,
    'src/hall/window.ts': "import '../roof/tile.ts';",
    'src/roof/tile.ts': "import '../hall/door.ts';\nimport '../hall/window.ts';\nimport '../../test/x.ts';",
    'src/shed/tool.ts': '',
  };
  assert.deepEqual(wallProblems(HOUSE, files(bad)), [
    'src/roof/tile.ts: src/hall/window.ts is not in the face of its room (src/hall/room.json)',
    'src/roof/tile.ts: product code imports test/x.ts',
    'src/hall/window.ts: hall may not import from roof (src/hall/room.json)',
    'src/hall/window.ts: src/roof/tile.ts is not in the face of its room (src/roof/room.json)',
    'src/shed/tool.ts: src/shed has no room.json',
  ]);
  const { 'src/roof/tile.ts': _, ...less } = GOOD;
  assert.deepEqual(wallProblems(HOUSE, files(less)), [
    'src/roof/room.json: nothing in roof imports from hall',
    'src/hall/room.json: no other room imports door.ts',
  ]);
});

test('the table stands between its marks', () => {
  const page = `a\n<!-- rooms: made by \`npm run pages\` from src/*/room.json -->\nold\n<!-- /rooms -->\nb\n`;
  const made = withTable(page, HOUSE);
  assert.ok(
    made.includes(roomsTable(HOUSE)) && made.startsWith('a\n') && made.endsWith('<!-- /rooms -->\nb\n'),
  );
  assert.equal(withTable(made, HOUSE), made);
  assert.throws(() => withTable('nothing', HOUSE), /has no/);
});
