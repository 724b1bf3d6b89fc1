import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { startError, startProgram } from './start-program.ts';

/** A process that has used up its descriptors, and goes on: `body` is run in it, and prints JSON. */
function withoutDescriptors(body: string): unknown {
  const url = (path: string) => new URL(path, import.meta.url).href;
  const script = `
    import { closeSync, openSync } from 'node:fs';
    import { once } from 'node:events';
    import { startProgram } from '${url('./start-program.ts')}';
    import { runProgram } from '${url('../host/program.ts')}';
    import { systemTools } from '${url('../host/tools.ts')}';
    import { ExecKeyProvider } from '${url('../crypt/key-provider.ts')}';
    import { startSession } from '${url('../jail/exec-session.ts')}';
    import { identifyProcess, isAlive } from '${url('../host/process-identity.ts')}';
    import { systemClock as clock } from '${url('../base/clock.ts')}';
    await runProgram('true', [], { timeoutMs: 60_000 });
    const init = identifyProcess(process.pid);
    let last;
    try { for (;;) last = openSync('/dev/null'); } catch {}
    const codeOf = (promise) => promise.then(() => 'none', (error) => error.code + ' ' + error.retry);
    ${body}`;
  const text = execFileSync(
    'sh',
    [
      '-c',
      'ulimit -n 64; exec "$0" "$@"',
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      '--input-type=module',
      '-e',
      script,
    ],
    { encoding: 'utf8' },
  );
  return JSON.parse(text);
}

test('without a descriptor no program is started, everybody hears why, and the process goes on', () => {
  const said = withoutDescriptors(`
    const said = [];
    const key = new ExecKeyProvider({ argv: ['true'] });
    const look = () => {
      try {
        return isAlive(init);
      } catch (error) {
        return error.code;
      }
    };
    const session = async () => startSession(
      { file: 'true', args: [], init, uid: 0, gid: 0 },
      { size: null, clock, onOutput: (stream, bytes) => said.push(stream + ': ' + bytes) },
    ).ended;
    const blind = await codeOf(session());
    // One is left for the look whether the machine lives, and none for the command.
    closeSync(last);
    const { exitCode } = await session();
    last = openSync('/dev/null');
    console.log(JSON.stringify({
      program: await codeOf(runProgram('true', [], { timeoutMs: 60_000 })),
      tool: await codeOf(systemTools().run(['true'])),
      key: await codeOf(key.keyOf({ volumeId: 'v_1', generation: 1, keyGeneration: 1 })),
      alive: look(),
      blind,
      session: exitCode,
      said: said.join(''),
    }));`) as Record<string, string | number>;
  for (const who of ['program', 'tool', 'key'] as const)
    assert.equal(said[who], 'HOST_NO_DESCRIPTORS unknown', who);
  assert.equal(said.alive, 'EMFILE', 'nobody is dead because he cannot be seen');
  assert.match(String(said.blind), /^EMFILE/);
  assert.equal(said.session, 127);
  assert.match(String(said.said), /^stderr: godwit: process \d+ may open no more files/);
});

test('the streams that were asked for are there, and closed, in the places where they were asked for', () => {
  const said = withoutDescriptors(`
    const child = startProgram('true', [], { stdio: ['ignore', 'pipe', 'ignore', 'pipe'] });
    const closing = once(child.stdio[3], 'close').then(() => true);
    const [error] = await once(child, 'error');
    const closed = await closing;
    console.log(JSON.stringify({
      code: error.code, closed, stdin: child.stdin, same: child.stdout === child.stdio[1], stderr: child.stderr,
    }));`);
  assert.deepEqual(said, { code: 'EMFILE', closed: true, stdin: null, same: true, stderr: null });
});

test('a program that is not there is no fault of the host', async () => {
  const child = startProgram('godwit-no-such-program', [], { stdio: 'ignore' });
  const error = await new Promise<Error>((resolve) => child.once('error', resolve));
  assert.equal(startError(error), null);
  assert.throws(() => startProgram('true', [], { stdio: ['no such kind' as 'pipe'] }));
});
