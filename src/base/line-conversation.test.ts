import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from './errors.ts';
import { type LineAnswers, performLine, row } from './line-conversation.ts';
import { anyObject, integer, list, nullable, object, oneOf, ownName, text } from './shape.ts';

const patience = 'alive';
const TABLE = {
  add: row({
    summary: 's',
    args: object({ id: ownName, of: object({ count: integer(1, 9) }) }, { tags: list(text, 2) }),
    patience,
  })<{ sum: number }>(),
  kind: row({
    summary: 's',
    args: object({ kind: oneOf('a', 'b'), spec: anyObject(), by: nullable(text) }),
    patience,
  })<void>(),
};
const asked: unknown[] = [];
const answers: LineAnswers<typeof TABLE> = {
  async add(args) {
    asked.push(args);
    return { sum: args.of.count + (args.tags?.length ?? 0) };
  },
  async kind() {},
};
const perform = (op: string, args: unknown) => performLine(TABLE, answers, op, args);

test('an operation is answered as its row says, with all that came along', async () => {
  const args = { id: 'm_1', of: { count: 2, later: true }, tags: ['x'], more: 1 };
  assert.deepEqual(await perform('add', args), { sum: 3 });
  assert.deepEqual(asked.pop(), args, 'what another version says beside it stays');
  assert.deepEqual(
    await perform('kind', { kind: 'b', spec: {}, by: null }),
    {},
    'nothing is an empty object',
  );
});

test('what does not fit is refused with its place, before anything is done', async () => {
  const good = { id: 'm_1', of: { count: 2 } };
  for (const [op, args, code, words] of [
    ['sub', {}, 'RPC_UNKNOWN_OP', /sub/],
    ['constructor', {}, 'RPC_UNKNOWN_OP', /constructor/],
    ['add', { ...good, id: '../x' }, 'RPC_BAD_NAME', /no id/],
    ['add', { ...good, id: undefined }, 'RPC_BAD_NAME', /no id/],
    ['add', { ...good, of: { count: 10 } }, 'RPC_BAD_ARGUMENTS', /^add\.of\.count is not a whole number/],
    ['add', { ...good, of: { count: 1.5 } }, 'RPC_BAD_ARGUMENTS', /count/],
    ['add', { ...good, tags: ['a', 'b', 'c'] }, 'RPC_BAD_ARGUMENTS', /^add\.tags is not a list of at most 2/],
    ['add', { ...good, tags: ['a', 1] }, 'RPC_BAD_ARGUMENTS', /^add\.tags\[1\] is not a text/],
    ['add', [], 'RPC_BAD_ARGUMENTS', /^add is not an object/],
    ['kind', { kind: 'c', spec: {}, by: null }, 'RPC_BAD_ARGUMENTS', /kind\.kind is not one of a, b/],
    ['kind', { kind: 'a', spec: null, by: null }, 'RPC_BAD_ARGUMENTS', /kind\.spec is not an object/],
    ['kind', { kind: 'a', spec: {}, by: 1 }, 'RPC_BAD_ARGUMENTS', /kind\.by is not a text/],
    ['kind', { kind: 'a', spec: {} }, 'RPC_BAD_ARGUMENTS', /kind\.by/],
  ] as const)
    await assert.rejects(perform(op, args), (error: Error) => {
      assert.ok(isGodwitError(error, code), `${op}: ${error}`);
      assert.match(error.message, words);
      return true;
    });
  assert.equal(asked.length, 0);
});
