import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { identifyProcess, isAlive, parseStat } from './process-identity.ts';

test('the line of a process with an odd name is read from its end', () => {
  assert.deepEqual(parseStat(`7 (a) R 1 (b)) S 12 ${'0 '.repeat(15)}3 0 4242 0 0`), {
    parentPid: 12,
    state: 'S',
    threads: 3,
    startTicks: 4242,
  });
  assert.equal(parseStat('nonsense'), null);
});

/** Ends its first thread, and no other: exit(2) of x86-64, not exit_group. */
const HEADLESS = `
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).syscall(60, 0)
`;

test('a process whose first thread has ended lives as long as another one of its threads', {
  skip: requires('python3'),
}, async (t) => {
  const child = spawn('python3', ['-c', HEADLESS], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  const pid = child.pid!;
  const state = () => parseStat(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.state;
  await until('the first thread to be a zombie', () => state() === 'Z');
  const identity = identifyProcess(pid);
  assert.ok(identity !== null && isAlive(identity));
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal(isAlive(identity), false);
});
