import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError } from '../base/errors.ts';
import { describeError, EXIT, EXIT_HELP, exitCodeOf } from './exit.ts';

test('the family of an error gives the exit code', () => {
  const expected: Record<string, number> = {
    API_UNREACHABLE: 4,
    CLI_INVALID_SIZE: 2,
    CLI_AMBIGUOUS_REF: 2,
    API_INVALID_REQUEST: 2,
    CLI_MACHINE_NOT_FOUND: 5,
    CLI_FLEET_NOT_FOUND: 5,
    JOURNAL_BUSY: 6,
    MACHINE_NAME_EXISTS: 6,
    CLI_DEV_ALREADY_RUNNING: 6,
    MIGRATION_NO_CAPACITY: 3,
    DISK_FULL: 3,
    VOLUME_DISK_FULL: 3,
    WORKER_IMPORT_NO_SPACE: 3,
    MACHINE_CGROUP_MISSING: 3,
    HOST_TOOL_MISSING: 3,
    ATTACH_NO_FUSE: 3,
    HOST_ISCSI_NO_DAEMON: 3,
    PLANE_METADATA_MISSING: 1,
    API_WRONG_WORKER: 2,
    INTERNAL: 1,
  };
  for (const [code, exitCode] of Object.entries(expected)) {
    assert.equal(exitCodeOf(new GodwitError(code, 'x', { nextAction: 'y' })), exitCode, code);
  }
  assert.equal(exitCodeOf(new TypeError('x')), 1);
  // What the system says has the exit code of the words that are read.
  const system = (code: string) => exitCodeOf(Object.assign(new Error(code), { code, syscall: 'listen' }));
  assert.deepEqual(['ENOSPC', 'EADDRINUSE', 'EADDRNOTAVAIL', 'EMFILE'].map(system), [3, 6, 1, 1]);
});

test('an error is a code, a sentence and a next action', () => {
  const error = new GodwitError('CLI_X', 'it does not go', { nextAction: 'do this' });
  assert.equal(describeError(error).text, 'error CLI_X: it does not go\n  next: do this');
});

test('the help names every exit code', () => {
  for (const code of Object.values(EXIT)) assert.match(EXIT_HELP, new RegExp(`^ *${code}  \\S`, 'm'));
});
