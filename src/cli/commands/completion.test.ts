import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeProgram } from '../program.ts';
import { complete } from './completion.ts';

const names = async (placeholder: string) =>
  ({ MACHINE: ['pg', 'web'], VOLUME: ['pgdata'], WORKER: ['worker-1', 'worker-2'], RUN: ['01J'] })[
    placeholder
  ] ?? [];

const at = (...words: string[]) => complete(makeProgram(process, '0.0.0'), words, names);

test('commands and subcommands', async () => {
  const top = await at('');
  for (const word of ['drain', 'undrain', 'machine', 'volume', 'why', 'top', 'dev'])
    assert.ok(top.includes(word));
  assert.ok(!top.includes('complete'), 'the hidden command stays hidden');
  assert.deepEqual(await at('dr'), ['drain']);
  assert.deepEqual(await at('volume', ''), [
    'accept-loss',
    'create',
    'destroy',
    'import',
    'list',
    'move',
    'recover',
    'serve',
    'show',
  ]);
});

test('options, those of the program too', async () => {
  assert.deepEqual(await at('drain', '--d'), ['--detach', '--dry-run']);
  assert.deepEqual(await at('machine', 'run', '--fl'), ['--fleet']);
});

test('values of options and arguments', async () => {
  assert.deepEqual(await at('drain', ''), ['worker-1', 'worker-2']);
  assert.deepEqual(await at('drain', 'worker-1', ''), []);
  assert.deepEqual(await at('drain', '--to', ''), ['worker-1', 'worker-2']);
  assert.deepEqual(await at('--fleet', 'x', 'machine', 'stop', 'p'), ['pg']);
  assert.deepEqual(await at('machine', 'destroy', 'pg', 'w'), ['web']);
  assert.deepEqual(await at('machine', 'run', '--network', ''), ['host', 'none']);
  assert.deepEqual(await at('completion', ''), ['bash', 'fish', 'zsh']);
  assert.deepEqual(await at('machine', 'exec', 'pg', '--', 'l'), []);
});
