import assert from 'node:assert/strict';
import test from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import {
  decodeResize,
  decodeTaken,
  encodeFrame,
  encodeResize,
  encodeTaken,
  FRAME,
  FRAME_BYTES_MAX,
  FrameReader,
} from './exec-frames.ts';

const isBad = (error: unknown) => isGodwitError(error, 'API_BAD_FRAME');

test('frames come out as they went in, wherever the bytes are split', () => {
  const sent = [
    { kind: FRAME.input, payload: Buffer.from('some input') },
    { kind: FRAME.inputEnd, payload: Buffer.alloc(0) },
    { kind: FRAME.stdout, payload: Buffer.alloc(300, 7) },
  ];
  const wire = Buffer.concat(sent.map(({ kind, payload }) => encodeFrame(kind, payload)));
  for (let at = 0; at <= wire.length; at++) {
    const reader = new FrameReader();
    const got = [...reader.push(wire.subarray(0, at)), ...reader.push(wire.subarray(at))];
    assert.deepEqual(got, sent, `split at ${at}`);
  }
});

test('what is no frame ends in an error before its payload is waited for', () => {
  const head = (kind: number, lengthBytes: number) => {
    const bytes = Buffer.alloc(5);
    bytes[0] = kind;
    bytes.writeUInt32BE(lengthBytes, 1);
    return bytes;
  };
  for (const bytes of [
    head(0, 0),
    head(99, 0),
    head(FRAME.input, FRAME_BYTES_MAX + 1),
    head(FRAME.end, 2 ** 32 - 1),
  ])
    assert.throws(() => [...new FrameReader().push(bytes)], isBad);
  assert.deepEqual([...new FrameReader().push(head(FRAME.input, FRAME_BYTES_MAX))], []);
});

test('sizes and counts', () => {
  const payloadOf = (frame: Buffer) => [...new FrameReader().push(frame)][0]!.payload;
  assert.deepEqual(decodeResize(payloadOf(encodeResize({ columns: 65_535, rows: 1 }))), {
    columns: 65_535,
    rows: 1,
  });
  assert.equal(decodeTaken(payloadOf(encodeTaken(4_000_000_000))), 4_000_000_000);
  for (const payload of [Buffer.alloc(4), Buffer.from([0, 1, 0, 0]), Buffer.alloc(3), Buffer.alloc(5)])
    assert.throws(() => decodeResize(payload), isBad);
  assert.throws(() => decodeTaken(Buffer.alloc(3)), isBad);
});
