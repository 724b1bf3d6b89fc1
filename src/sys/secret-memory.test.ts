import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { mayLack } from '../../test/support/skips.ts';

const MODULE = new URL('./secret-memory.ts', import.meta.url).href;
/** The name of a file in the working directory; a program that takes dumps would have to be asked. */
const plainCores = /^core[^/|]*$/.test(readFileSync('/proc/sys/kernel/core_pattern', 'utf8').trim());

test('a process that asked for it leaves no core, and its threads do not either', {
  skip: mayLack('core dumps in the working directory', plainCores),
}, (t) => {
  const die = (protect: string) => {
    const cwd = scratchDir(t);
    const script = `const { keepOutOfDumps } = await import('${MODULE}'); ${protect}
      const { Worker } = await import('node:worker_threads');
      new Worker("process.kill(process.pid, 'SIGSEGV'); setInterval(() => {}, 1000)", { eval: true });`;
    // A start of a core is one.
    const words = ['-c', 'ulimit -c 1024 && exec "$0" --input-type=module -e "$1"', process.execPath, script];
    const { signal } = spawnSync('bash', words, { cwd, timeout: patient(60_000) });
    assert.equal(signal, 'SIGSEGV');
    return readdirSync(cwd);
  };
  assert.equal(die('').length, 1);
  assert.deepEqual(die('keepOutOfDumps();'), []);
});
