import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

/** Every module that a program loads at its start, in the order in which they are found. */
function loaded(entry: URL): { files: Set<string>; packages: Set<string> } {
  const files = new Set<string>();
  const packages = new Set<string>();
  const open = [entry];
  for (let url = open.pop(); url !== undefined; url = open.pop()) {
    if (files.has(url.href)) continue;
    files.add(url.href);
    const text = readFileSync(url, 'utf8');
    for (const [, from] of text.matchAll(
      /^(?:import(?! type\b)|export(?! type\b)[^;]*? from)\b[^;(]*?'([^']+)';/gm,
    ))
      if (from!.startsWith('.')) open.push(new URL(from!, url));
      else if (!from!.startsWith('node:')) packages.add(from!.split('/')[0]!);
  }
  return { files, packages };
}

test('a shim, of which every machine has one, loads no library of schemas', () => {
  const { files, packages } = loaded(new URL('shim.ts', import.meta.url));
  assert.ok(
    files.size > 20 && [...files].some((file) => file.endsWith('/jail/run.ts')),
    `${files.size} files`,
  );
  assert.deepEqual([...packages], []);
});
