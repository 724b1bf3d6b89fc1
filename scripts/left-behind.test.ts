import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'node:test';
import { RUN_VARIABLE } from '../test/support/patience.ts';
import { requires } from '../test/support/requires.ts';
import { scratchDir } from '../test/support/scratch.ts';
import { describeLeftBehind, endLeftBehind, isNothing, leftBehind } from './left-behind.ts';

it('what a run of tests left is found by its mark, told and ended; what is of another run stays', async (t) => {
  const run = `a-run-of-${process.pid}`;
  const folder = realpathSync(scratchDir(t));
  const start = async (mark: string) => {
    const child = spawn('sleep', ['1000'], {
      stdio: 'ignore',
      env: { ...process.env, [RUN_VARIABLE]: mark },
    });
    t.after(() => child.kill('SIGKILL'));
    await once(child, 'spawn');
    return child;
  };
  assert.ok(isNothing(leftBehind(run, folder)));
  const mine = await start(run);
  const others = await start(`${run}-not`);
  const left = leftBehind(run, folder);
  assert.deepEqual(left, { processes: [mine.pid], mounts: [], loops: [] });
  assert.deepEqual(describeLeftBehind(left), [`process ${mine.pid}: sleep 1000`]);
  const ended = once(mine, 'exit');
  // It looks until nothing is left, and a zombie of this process is none of it: it has no environment any
  // more.
  assert.ok(isNothing(endLeftBehind(run, folder)));
  assert.deepEqual(await ended, [null, 'SIGKILL']);
  assert.equal(others.exitCode ?? others.signalCode, null);
});

it('a loop device whose file has no path any more is found by what is mounted of it, and goes', {
  skip: requires('root', '/dev/loop-control', 'mkfs.ext4', 'mount', 'umount', 'losetup', 'truncate'),
}, (t) => {
  const run = `a-run-of-${process.pid}`;
  const folder = realpathSync(scratchDir(t));
  t.after(() => endLeftBehind(run, folder));
  const tool = (program: string, ...words: string[]) => execFileSync(program, words, { encoding: 'utf8' });
  const [under, place] = ['under', 'place'].map((name) => join(folder, name)) as [string, string];
  for (const dir of [under, place]) mkdirSync(dir);
  tool('mount', '-t', 'tmpfs', 'tmpfs', under);
  const file = join(under, 'disk-of-a-test');
  tool('truncate', '-s', '16M', file);
  tool('mkfs.ext4', '-q', '-F', file);
  const loop = tool('losetup', '--find', '--show', file).trim();
  tool('mount', loop, place);
  tool('umount', '--lazy', under);
  const left = leftBehind(run, folder);
  assert.deepEqual(left, { processes: [], mounts: [place], loops: [loop] });
  assert.ok(isNothing(endLeftBehind(run, folder)));
  assert.doesNotMatch(tool('losetup', '--list', '--noheadings'), /disk-of-a-test/);
});
