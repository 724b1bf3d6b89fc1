import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { fstrim, parseFstrim } from './fstrim.ts';
import type { ToolOutput } from './tools.ts';

const answering = (output: Partial<ToolOutput>) => ({
  run: async () => ({ exitCode: 0, stdout: '', stderr: '', ...output }),
});

test('the bytes that were trimmed (recorded, util-linux 2.38)', async () => {
  const recorded = { stdout: '/run/m: 434.5 MiB (455573504 bytes) trimmed\n' };
  assert.equal(await fstrim(answering(recorded), '/run/m'), 455_573_504);
  assert.equal(parseFstrim('/data: 0 B (0 bytes) trimmed\n'), 0);
  assert.equal(parseFstrim('/odd: name (3 bytes): 1 KiB (1024 bytes) trimmed\n'), 1024);
});

test('a device that takes no discards, and an answer of another form', async () => {
  const refused = { exitCode: 1, stderr: 'fstrim: /data: the discard operation is not supported\n' };
  await assert.rejects(
    fstrim(answering(refused), '/data'),
    (error) => isGodwitError(error, 'HOST_TOOL_FAILED') && /not supported/.test(error.message),
  );
  await assert.rejects(fstrim(answering({ stdout: 'done\n' }), '/data'), (error) =>
    isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
  );
});
