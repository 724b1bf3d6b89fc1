import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { entryPoint } from './entry-point.ts';

test('an entry point is a file of the sources, where they are', () => {
  for (const file of [
    'cli/main.ts',
    'machine/shim.ts',
    'machine/jail-init.sh',
    'volume/server.ts',
    'attach/hot-thread.ts',
  ] as const) {
    const url = entryPoint(file);
    assert.ok(existsSync(url), url.href);
    assert.ok(url.pathname.endsWith(`/src/${file}`), url.href);
  }
});
