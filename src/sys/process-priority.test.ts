import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { getPriority } from 'node:os';
import test from 'node:test';
import { sessionNice, setNice } from './process-priority.ts';

const SWITCH = '/proc/sys/kernel/sched_autogroup_enabled';
/** Of a session that began with it: those that are older, and their children, are in none. */
const groupsSessions = existsSync(SWITCH) && readFileSync(SWITCH, 'latin1').trim() === '1';

test('a process is nice to others, and so is its session where the kernel groups by sessions', async () => {
  const child = spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
  const ended = once(child, 'exit');
  try {
    await once(child, 'spawn');
    const own = sessionNice(process.pid);
    assert.equal(sessionNice(child.pid!), groupsSessions ? 0 : null);
    setNice(child.pid!, 7);
    assert.equal(getPriority(child.pid!), 7);
    assert.equal(sessionNice(child.pid!), groupsSessions ? 7 : null);
    assert.equal(sessionNice(process.pid), own);
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
  assert.throws(() => setNice(child.pid!, 7), { code: 'ERR_SYSTEM_ERROR' });
});
