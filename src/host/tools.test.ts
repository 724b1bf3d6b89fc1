import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { mustRun, systemTools } from './tools.ts';

test('exit code, both streams and standard input', async () => {
  const output = await systemTools().run(['sh', '-c', 'cat; echo wrong >&2; exit 3'], { input: 'hello' });
  assert.deepEqual(output, { exitCode: 3, stdout: 'hello', stderr: 'wrong\n' });
});

test('no shell looks at the arguments', async () => {
  assert.equal(await mustRun(systemTools(), ['echo', '$HOME; false']), '$HOME; false\n');
});

test('a program that hangs is killed with what it started', async () => {
  await assert.rejects(systemTools().run(['sh', '-c', 'sleep 600 & wait'], { deadlineMs: 50 }), (error) =>
    isGodwitError(error, 'HOST_TOOL_STUCK'),
  );
});

test('a program that is not there, and one that fails', async () => {
  await assert.rejects(systemTools().run(['godwit-no-such-program']), (error) =>
    isGodwitError(error, 'HOST_TOOL_MISSING'),
  );
  await assert.rejects(mustRun(systemTools(), ['sh', '-c', 'echo because >&2; exit 1']), (error) => {
    assert.ok(isGodwitError(error, 'HOST_TOOL_FAILED'));
    assert.match(error.message, /because/);
    return true;
  });
});
