import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { entryPoint, PROGRAM_FILES } from './entry-point.ts';

test('an entry point is a file of the sources, where they are', () => {
  for (const file of PROGRAM_FILES) {
    const url = entryPoint(file);
    assert.ok(existsSync(url), url.href);
    assert.ok(url.pathname.endsWith(`/src/${file}`), url.href);
  }
});
