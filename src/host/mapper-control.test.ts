import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeMapperStatus, encodeMapperRequest } from './mapper-control.ts';

const HEADER_BYTES = 312;

test('a request names the device, its own length, and where its data begin', () => {
  const request = encodeMapperRequest('godwit-v', {
    data: Buffer.from('\0\0\0\0\0\0\0\0enable_hydration\0'),
  });
  assert.equal(request.length, HEADER_BYTES + 25);
  assert.deepEqual(
    [0, 4, 8, 12, 16, 28].map((at) => request.readUInt32LE(at)),
    [4, 0, 0, HEADER_BYTES + 25, HEADER_BYTES, 0],
  );
  assert.equal(request.toString('latin1', 48, 57), 'godwit-v\0');
  assert.equal(request.toString('latin1', HEADER_BYTES + 8), 'enable_hydration\0');
  assert.throws(() => encodeMapperRequest('x'.repeat(128), {}), /not a name/);
});

/** What Linux 6.1 fills in for a clone. */
function answerWith(text: string, targets = 1): Buffer {
  const answer = encodeMapperRequest('godwit-v', { dataBytes: 4096 });
  answer.writeUInt32LE(targets, 20);
  answer.writeBigUInt64LE(1048576n, HEADER_BYTES + 8);
  answer.write('clone', HEADER_BYTES + 24);
  answer.write(`${text}\0left over`, HEADER_BYTES + 40);
  return answer;
}

test('a status is that of the one target, to its final zero', () => {
  assert.deepEqual(decodeMapperStatus(answerWith('8 37/4096 8 100/131072 4 0 4 hydration_threshold 32')), {
    sectors: 1048576,
    target: 'clone',
    text: '8 37/4096 8 100/131072 4 0 4 hydration_threshold 32',
  });
});

test('no target, two of them, and a status that did not fit are refused', () => {
  assert.throws(() => decodeMapperStatus(answerWith('', 0)), /instead of one/);
  assert.throws(() => decodeMapperStatus(answerWith('8', 2)), /instead of one/);
  const full = answerWith('8');
  full.writeUInt32LE(1 << 8, 28);
  assert.throws(() => decodeMapperStatus(full), /instead of one/);
  const outside = answerWith('8');
  outside.writeUInt32LE(5000, 16);
  assert.throws(() => decodeMapperStatus(outside), /instead of one/);
});
