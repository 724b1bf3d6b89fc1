import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { patient } from '../../test/support/patience.ts';
import { THREADS } from './thread-pool.ts';

const module = fileURLToPath(new URL('./thread-pool.ts', import.meta.url));

/** How many of 64 calls for the pool are under way at once: each has its thread, which stays. */
function threadsOfPool(env: NodeJS.ProcessEnv): number {
  const script = `
    await import(${JSON.stringify(module)});
    const { readdirSync } = await import('node:fs');
    const { pbkdf2 } = await import('node:crypto');
    const tasks = () => readdirSync('/proc/self/task').length;
    const before = tasks();
    await Promise.all(Array.from({ length: 64 }, () => new Promise((done) => pbkdf2('a', 'b', 1000, 32, 'sha256', done))));
    console.log(tasks() - before);`;
  const args = ['--input-type=module', '--eval', script];
  return Number(execFileSync(process.execPath, args, { env, encoding: 'utf8', timeout: patient(60_000) }));
}

test('the pool has the threads that were asked for, whoever asked first', () => {
  const { UV_THREADPOOL_SIZE: _, ...env } = process.env;
  assert.equal(threadsOfPool(env), THREADS);
  assert.equal(threadsOfPool({ ...env, UV_THREADPOOL_SIZE: '6' }), 6);
});
