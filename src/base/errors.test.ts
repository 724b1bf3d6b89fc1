import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Value } from 'typebox/value';
import { GodwitError, RETRIES, type Retry, toWireError, type WireError } from './errors.ts';
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
