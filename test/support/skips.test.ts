import assert from 'node:assert/strict';
import { test } from 'node:test';
import { requires } from './requires.ts';
import { mayLack, SKIPS } from './skips.ts';

test('what packages bring is never missing in CI, and what is on the list may be', (t) => {
  const before = process.env.GODWIT_NO_SKIP;
  t.after(() => {
    if (before === undefined) delete process.env.GODWIT_NO_SKIP;
    else process.env.GODWIT_NO_SKIP = before;
  });
  delete process.env.GODWIT_NO_SKIP;
  assert.match(
    String(requires('sh', 'no-such-program', '/no/such/file')),
    /missing: no-such-program, \/no\/such\/file/,
  );
  assert.equal(requires('sh', '/proc/self/stat'), false);
  process.env.GODWIT_NO_SKIP = '1';
  assert.equal(requires('no-such-program'), false);
  assert.equal(mayLack('freezer', true), false);
  assert.equal(mayLack('freezer', false), `no freezer: ${SKIPS.freezer}`);
  assert.throws(() => mayLack('a reason of my own' as 'freezer', false), /does not say why/);
});
