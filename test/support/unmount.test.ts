import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import test from 'node:test';
import { mustEndWell, until } from './patience.ts';
import { requires } from './requires.ts';
import { scratchDir } from './scratch.ts';
import { unmount } from './unmount.ts';

test('a mount is waited for while somebody holds it, and a failure tells who', {
  skip: requires('root'),
}, async (t) => {
  const dir = scratchDir(t);
  await mustEndWell('mount', ['-t', 'tmpfs', 'tmpfs', dir]);
  const sleeper = spawn('sleep', ['600'], { cwd: dir, stdio: 'ignore' });
  const ended = once(sleeper, 'exit');
  try {
    await once(sleeper, 'spawn');
    await assert.rejects(unmount(dir, 200), new RegExp(`busy.*${sleeper.pid}`, 's'));
    let free = false;
    const freed = unmount(dir).then(() => {
      free = true;
    });
    await assert.rejects(until('nothing', () => free, { patienceMs: 200 }));
    sleeper.kill('SIGKILL');
    await freed;
  } finally {
    sleeper.kill('SIGKILL');
    await ended;
    await unmount(dir, 0).catch(() => {});
  }
});
