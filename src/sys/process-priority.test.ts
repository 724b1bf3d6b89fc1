import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { getPriority } from 'node:os';
import test from 'node:test';
import { sessionNice, setNice } from './process-priority.ts';

test('a process is nice to others, and so is its session where the kernel groups by sessions', async () => {
  const child = spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
  const ended = once(child, 'exit');
  try {
    await once(child, 'spawn');
    const own = sessionNice(process.pid);
    setNice(child.pid!, 7);
    assert.equal(getPriority(child.pid!), 7);
    assert.equal(sessionNice(child.pid!), own === null ? null : 7);
    assert.equal(sessionNice(process.pid), own);
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
  assert.throws(() => setNice(child.pid!, 7), { code: 'ERR_SYSTEM_ERROR' });
});
