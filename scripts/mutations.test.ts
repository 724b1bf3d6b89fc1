import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mutate, mutationsOf } from './mutations.ts';

function mutants(text: string): string[] {
  return mutationsOf({ path: 'a.ts', text }).map((mutation) => mutate(text, mutation));
}

test('operators, conditions, awaits, calls, numbers and booleans are changed one at a time, types stay', () => {
  assert.deepEqual(mutants('const a: boolean = (b as number) < c;'), [
    'const a: boolean = (b as number) <= c;',
  ]);
  assert.deepEqual(mutants('if (a) f();'), ['if (true) f();', 'if (false) f();', 'if (a) ;']);
  assert.deepEqual(mutants('const a = !b;'), ['const a = b;']);
  assert.deepEqual(mutants('await f<string>(g);'), [';', 'f<string>(g);']);
  assert.deepEqual(mutants('const a = [7, true];'), ['const a = [8, true];', 'const a = [7, false];']);
  assert.deepEqual(mutants('const a = b && c;'), ['const a = b || c;']);
});

test('what only logs, and the words of an error, are left as they are', () => {
  assert.deepEqual(mutants("this.logger.warn({ a: 1 }, 'x');"), []);
  assert.deepEqual(mutants("throw new GodwitError('A', 'b', { values: { a: 1 } });"), []);
  assert.deepEqual(mutants("reject(new GodwitError('A', 'b', { values: { a: b + 1 } }));"), [';']);
  assert.deepEqual(mutants('const a = x + `y`;'), []);
});

test('a mutation knows its line and what stood there', () => {
  const [first] = mutationsOf({ path: 'a.ts', text: 'let a: string;\nlet b = c >= d;\n' });
  assert.deepEqual([first!.line, first!.was, first!.text], [2, '>=', '>']);
});
