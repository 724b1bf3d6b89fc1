import assert from 'node:assert/strict';
import { test } from 'node:test';
import { statusOf } from './status.ts';

test('the family of a code gives its status', () => {
  const expected: Record<string, number> = {
    MACHINE_NOT_FOUND: 404,
    JOURNAL_UNKNOWN_RUN: 404,
    VOLUME_UNKNOWN: 404,
    JOURNAL_RESOURCE_BUSY: 409,
    MACHINE_NAME_EXISTS: 409,
    VOLUME_IN_USE: 409,
    VOLUME_SEALED: 409,
    CLONE_WRONG_GENERATION: 409,
    MIGRATION_REFUSED: 409,
    MIGRATION_NO_CAPACITY: 507,
    VOLUME_NO_SPACE: 507,
    API_INVALID_REQUEST: 400,
    VOLUME_BAD_SIZE: 400,
    API_UNAUTHORIZED: 401,
    RPC_TIMEOUT: 504,
    API_UNREACHABLE: 502,
    ATTACH_FUSE_MISSING: 501,
    MACHINE_RUNNING: 409,
    VOLUME_KEPT: 409,
    JOURNAL_RUN_OVER: 409,
    MIGRATION_NOTHING_TO_WAIVE: 409,
    WORKER_RECEIPT_WAIVED: 409,
    API_BAD_REPLY: 502,
    INTERNAL: 500,
    SOMETHING_ELSE: 500,
  };
  for (const [code, status] of Object.entries(expected)) assert.equal(statusOf(code), status, code);
});

test('a room whose name is like a rule is not taken for one', () => {
  assert.equal(statusOf('BUSY_THING'), 500);
});
