import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Value } from 'typebox/value';
import { GodwitError, isGodwitError, RETRIES, type Retry, toWireError, type WireError } from './errors.ts';
import { RetrySchema, WireErrorSchema } from './wire-error-schema.ts';

test('whether trying again can help goes over the wire and back', () => {
  for (const retry of RETRIES) {
    const error = new GodwitError('TEST_FAILED', 'it failed', { values: { n: 1 }, nextAction: 'x', retry });
    const wire = JSON.parse(JSON.stringify(toWireError(error))) as WireError;
    assert.equal(wire.retry, retry);
    assert.ok(Value.Check(WireErrorSchema, wire));
    assert.deepEqual(GodwitError.fromWire(wire).toWire(), wire);
  }
  assert.deepEqual([...RETRIES].sort(), RetrySchema.anyOf.map((each) => each.const).sort());
  assert.equal(toWireError(new Error('of nobody knows what')).retry, 'unknown');
});

test('an error of another copy of the module is one too, with its code and what to do', async () => {
  const copy = './errors.ts?another-copy';
  const { GodwitError: Another } = (await import(copy)) as typeof import('./errors.ts');
  assert.notEqual(Another, GodwitError);
  const error = new Another('TEST_FAILED', 'it failed', { nextAction: 'x', retry: 'never' });
  assert.ok(isGodwitError(error, 'TEST_FAILED'));
  assert.deepEqual(toWireError(error), error.toWire());
  for (const other of [new Error('x'), { code: 'TEST_FAILED' }, null, 'x']) assert.ok(!isGodwitError(other));
});

test('an error of a version that does not say it is judged by the codes of that version', () => {
  const ofEarlier = (code: string, values: WireError['values'] = {}): Retry =>
    GodwitError.fromWire({ code, message: 'm', values, nextAction: 'x' }).retry;
  assert.equal(ofEarlier('MACHINE_CGROUP_MISSING'), 'never');
  assert.equal(ofEarlier('CRYPT_WRONG_KEY'), 'never');
  assert.equal(ofEarlier('PLANE_METADATA_WRONG'), 'never');
  assert.equal(ofEarlier('API_UNREACHABLE'), 'later');
  assert.equal(ofEarlier('MACHINE_UNMOUNT_FAILED', { timedOut: true }), 'later');
  assert.equal(ofEarlier('MACHINE_UNMOUNT_FAILED', { timedOut: false }), 'unknown');
  // What it says goes before its code, and what only a newer one understands is not guessed at.
  const said = { code: 'MACHINE_CGROUP_MISSING', message: 'm', values: {}, nextAction: 'x' };
  assert.equal(GodwitError.fromWire({ ...said, retry: 'unknown' }).retry, 'unknown');
  assert.equal(GodwitError.fromWire({ ...said, retry: 'at full moon' as Retry }).retry, 'unknown');
});

test('what the system says of disks, files, processes and addresses is not "unexpected": it has a code, and what to do', () => {
  const codeOf = (code: string, more: object = {}) =>
    toWireError(Object.assign(new Error(`${code}: it`), { code, ...more })).code;
  assert.deepEqual(
    [
      'ENOSPC',
      'EDQUOT',
      'EIO',
      'EROFS',
      'Unknown system error -117',
      'EMFILE',
      'ENFILE',
      'EPERM',
      'ECHILD',
    ].map((code) => codeOf(code)),
    [
      ...['DISK_FULL', 'DISK_FULL', 'DISK_FAILED', 'DISK_FAILED', 'DISK_FAILED'],
      ...['HOST_NO_DESCRIPTORS', 'HOST_NO_DESCRIPTORS', 'HOST_NOT_PERMITTED', 'INTERNAL'],
    ],
  );
  // Of a process that is started, a limit; elsewhere (a read, a lock) something to wait for.
  assert.equal(codeOf('EAGAIN', { syscall: 'spawn mkfs.ext4' }), 'HOST_NO_PROCESSES');
  assert.equal(codeOf('ENOMEM', { syscall: 'spawn' }), 'HOST_NO_PROCESSES');
  assert.equal(codeOf('EAGAIN', { syscall: 'read' }), 'INTERNAL');
  assert.equal(codeOf('EADDRINUSE', { syscall: 'listen' }), 'HOST_ADDRESS_TAKEN');
  assert.equal(codeOf('EADDRNOTAVAIL', { syscall: 'listen' }), 'HOST_ADDRESS_ABSENT');
  const sqlite = (errcode: number) => codeOf('ERR_SQLITE_ERROR', { errcode });
  // SQLITE_FULL, _IOERR_WRITE; _READONLY_ROLLBACK, _IOERR_READ, _CORRUPT, _NOTADB; _BUSY.
  assert.deepEqual([13, 778, 776, 266, 11, 26, 5].map(sqlite), [
    'DISK_FULL',
    'DISK_FULL',
    'DISK_FAILED',
    'DISK_FAILED',
    'DISK_FAILED',
    'DISK_FAILED',
    'INTERNAL',
  ]);
});
