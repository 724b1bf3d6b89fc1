import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';

const PROGRAM = `
  const { interruption } = await import(${JSON.stringify(join(import.meta.dirname, 'interruption.ts'))});
  const { signal } = interruption();
  signal.addEventListener('abort', () => {
    console.log(signal.reason.message);
    process.exit(signal.reason.exitCode);
  });
  setInterval(() => {}, 1000);
  console.log('ready');
`;

for (const [signal, exitCode] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  test(`${signal} ends a command in order, and a shell sees by what`, async (t: TestContext) => {
    const args = ['--input-type=module', '-e', PROGRAM];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => child.kill('SIGKILL'));
    const exit = once(child, 'exit');
    const said: string[] = [];
    for await (const line of createInterface(child.stdout!)) {
      said.push(line);
      if (line === 'ready') child.kill(signal);
    }
    assert.deepEqual([...said, ...(await exit)], ['ready', `interrupted by ${signal}`, exitCode, null]);
  });
}
