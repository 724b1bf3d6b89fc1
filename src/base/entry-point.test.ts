import assert from 'node:assert/strict';
import { test } from 'node:test';
import { entryPoint } from './entry-point.ts';

test('an entry point is of the kind of the module that asks', () => {
  assert.equal(entryPoint('../a/b.ts', 'file:///x/src/c/d.ts').href, 'file:///x/src/a/b.ts');
  assert.equal(entryPoint('../a/b.ts', 'file:///x/src/c/d.js').href, 'file:///x/src/a/b.js');
});
