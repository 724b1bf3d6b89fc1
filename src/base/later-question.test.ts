import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError, isGodwitError } from './errors.ts';
import { isRefusedAsLater, ofEarlierProcess } from './later-question.ts';

const refusal = (code: string, values = {}) => new GodwitError(code, 'm', { values, nextAction: 'n' });

test('a refusal is one of an earlier version where the question came later, and who refuses does not know it', () => {
  const who = 'the shim m_1';
  for (const code of ['RPC_UNKNOWN_OP', 'VOLUME_UNKNOWN_OP']) {
    const told = ofEarlierProcess(refusal(code), { op: 'guest', since: '0.2.0', who });
    assert.ok(isGodwitError(told, 'RPC_EARLIER_VERSION'));
    const { message, values, retry } = told as GodwitError;
    assert.match(message, /^the shim m_1 .* guest$/);
    assert.deepEqual([values, retry], [{ op: 'guest', since: '0.2.0' }, 'never']);
  }
  for (const [error, since] of [
    [refusal('RPC_UNKNOWN_OP'), undefined],
    [refusal('VOLUME_UNKNOWN_OP', { isKnown: true }), '0.2.0'],
    [refusal('RPC_TIMEOUT'), '0.2.0'],
    [new Error('RPC_UNKNOWN_OP'), '0.2.0'],
  ] as const)
    assert.equal(ofEarlierProcess(error, { op: 'guest', since, who }), error);
  assert.equal(isRefusedAsLater(refusal('API_NO_ROUTE'), { part: 'word' }), false, 'a part of it came later');
});
