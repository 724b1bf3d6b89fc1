import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assemble, orderOf, type PartTable } from './part.ts';

type Given = { log: string[] };
type Made = { roof: string; walls: string; ground: string };

const note =
  (what: string) =>
  (made: string, { log }: Given) =>
    log.push(`${what} ${made}`);
const HOUSE: PartTable<Given, Made> = {
  roof: {
    needs: ['walls'],
    make: ({ walls }) => `roof on ${walls}`,
    start: note('start'),
    close: note('close'),
  },
  walls: { needs: ['ground'], make: async ({ ground }) => `walls on ${ground}`, close: note('close') },
  ground: { needs: [], make: () => 'ground', start: note('start'), close: note('close') },
};

test('parts are made after what they need, started in that order, and closed in the opposite one, once', async () => {
  const log: string[] = [];
  const { parts, close } = await assemble(HOUSE, { log });
  assert.equal(parts.roof, 'roof on walls on ground');
  assert.deepEqual(log, ['start ground', 'start roof on walls on ground']);
  await Promise.all([close(), close()]);
  assert.deepEqual(log.slice(2), ['close roof on walls on ground', 'close walls on ground', 'close ground']);
});

test('all rest before the first is closed', async () => {
  const log: string[] = [];
  const ground = { ...HOUSE.ground, rest: (made: string) => void log.push(`rest ${made}`) };
  const { close } = await assemble({ ...HOUSE, ground }, { log });
  log.length = 0;
  await close();
  assert.equal(log[0], 'rest ground');
  assert.equal(log.length, 4);
});

test('what fails, in the making or at the start, closes what was made and is told', async () => {
  for (const fault of ['make', 'start'] as const) {
    const log: string[] = [];
    const walls = {
      ...HOUSE.walls,
      [fault]: () => {
        throw new Error('no bricks');
      },
    };
    await assert.rejects(assemble({ ...HOUSE, walls }, { log }), /no bricks/);
    assert.equal(log.at(-1), 'close ground');
    assert.equal(log.filter((line) => line.startsWith('close')).length, fault === 'make' ? 1 : 3);
  }
});

test('one that cannot be closed keeps no other open', async () => {
  const log: string[] = [];
  const walls = { ...HOUSE.walls, close: () => Promise.reject(new Error('stuck')) };
  const { close } = await assemble({ ...HOUSE, walls }, { log });
  await assert.rejects(close(), /stuck/);
  assert.equal(log.at(-1), 'close ground');
});

test('what is reached for before it is made is an error that says where it belongs; later it is there, in a circle too', async () => {
  const early = { ...HOUSE, ground: { needs: [], make: ({ roof }: Made) => roof } };
  await assert.rejects(assemble(early, { log: [] }), /roof is not made yet/);
  const calls: (() => string)[] = [];
  const later = {
    ...HOUSE,
    ground: {
      needs: [],
      make: (parts: Made) => {
        calls.push(() => parts.roof);
        return 'ground';
      },
    },
  };
  await assemble(later, { log: [] });
  assert.equal(calls[0]!(), 'roof on walls on ground');
});

test('circles and parts that are not there have names', () => {
  const part = (...needs: string[]) => ({ needs });
  assert.deepEqual(orderOf({ c: part('b'), a: part(), b: part('a', 'given') }, { given: 1 }), [
    'a',
    'b',
    'c',
  ]);
  assert.throws(() => orderOf({ a: part('b'), b: part('a') }, {}), /circle: a, b, a/);
  assert.throws(
    () => orderOf({ a: part('b'), b: part('x') }, {}),
    /no part x, which is needed by b, which is needed by a/,
  );
});

test('one is closed when the one before it is closed, however long that takes', async () => {
  const log: string[] = [];
  const roof = {
    ...HOUSE.roof,
    close: async () => {
      await new Promise((resolve) => setImmediate(resolve));
      log.push('roof is off');
    },
  };
  const { close } = await assemble({ ...HOUSE, roof }, { log });
  log.length = 0;
  await close();
  assert.deepEqual(log, ['roof is off', 'close walls on ground', 'close ground']);
});
