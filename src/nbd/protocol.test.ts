import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isGodwitError } from '../base/errors.ts';
import * as protocol from './protocol.ts';

/** Objects as the decoders make them: with a prototype. */
const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> =>
  fc.record(model, { noNullPrototype: true }) as fc.Arbitrary<T>;

const uint32 = fc.nat({ max: 0xffffffff });
const uint16 = fc.nat({ max: 0xffff });
const uint53 = fc.nat({ max: Number.MAX_SAFE_INTEGER });
const text = fc.string({ unit: 'grapheme', maxLength: 40 }).filter((string) => !string.includes('\0'));

test('requests come back as they were sent, in both header styles', () => {
  const request = record({
    flags: uint16,
    type: uint16,
    cookieHigh: uint32,
    cookieLow: uint32,
    offsetBytes: uint53,
    lengthBytes: uint32,
  });
  fc.assert(
    fc.property(request, fc.boolean(), (value, extended) => {
      const bytes = Buffer.alloc(40);
      const end = protocol.encodeRequest(bytes, 3, extended, value);
      assert.equal(end - 3, extended ? protocol.EXTENDED_REQUEST_BYTES : protocol.REQUEST_BYTES);
      assert.deepEqual(protocol.decodeRequest(bytes, 3, extended), value);
    }),
  );
});

test('a request has the bytes of the protocol document', () => {
  const bytes = Buffer.alloc(28);
  protocol.encodeRequest(bytes, 0, false, {
    flags: 1,
    type: protocol.COMMAND.write,
    cookieHigh: 0x01020304,
    cookieLow: 0x05060708,
    offsetBytes: 2 ** 40,
    lengthBytes: 4096,
  });
  assert.equal(
    bytes.toString('hex'),
    `25609513${'0001'}${'0001'}${'0102030405060708'}${'0000010000000000'}00001000`,
  );
});

test('the greeting and an option have the bytes of the protocol document', () => {
  assert.equal(protocol.encodeGreeting(3).toString('latin1'), 'NBDMAGICIHAVEOPT\x00\x03');
  assert.equal(
    protocol.encodeOption(7, Buffer.from('x')).toString('latin1'),
    'IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x01x',
  );
  assert.equal(
    protocol.encodeOptionReply(7, protocol.OPTION_REPLY.errorUnknown).toString('hex'),
    '0003e889045565a9000000078000000600000000',
  );
  assert.equal(protocol.encodeExportNameReply({ lengthBytes: 512, transmissionFlags: 1 }, true).length, 134);
});

test('options and their replies come back as they were sent', () => {
  fc.assert(
    fc.property(text, fc.array(uint16, { maxLength: 20 }), (exportName, types) => {
      assert.deepEqual(protocol.decodeInfoRequest(protocol.encodeInfoRequest(exportName, types)), {
        exportName,
        types,
      });
    }),
  );
  fc.assert(
    fc.property(text, fc.array(text, { maxLength: 10 }), (exportName, queries) => {
      const data = protocol.encodeMetaContextRequest(exportName, queries);
      assert.deepEqual(protocol.decodeMetaContextRequest(data), { exportName, queries });
    }),
  );
  fc.assert(
    fc.property(text, text, uint32, (name, description, id) => {
      assert.deepEqual(protocol.decodeListed(protocol.encodeListed(name, description)), {
        name,
        description,
      });
      assert.deepEqual(protocol.decodeMetaContext(protocol.encodeMetaContext({ id, name })), { id, name });
    }),
  );
  const info: fc.Arbitrary<protocol.ExportInfo> = fc.oneof(
    record({ type: fc.constant('export' as const), lengthBytes: uint53, transmissionFlags: uint16 }),
    record({ type: fc.constant('name' as const), name: text }),
    record({ type: fc.constant('description' as const), description: text }),
    record({
      type: fc.constant('blockSize' as const),
      minimumBytes: uint32,
      preferredBytes: uint32,
      maximumBytes: uint32,
    }),
  );
  fc.assert(
    fc.property(info, (value) => assert.deepEqual(protocol.decodeInfo(protocol.encodeInfo(value)), value)),
  );
});

test('replies and chunks come back as they were sent', () => {
  const chunk = record({
    flags: uint16,
    type: uint16,
    cookieHigh: uint32,
    cookieLow: uint32,
    offsetBytes: uint53,
    payloadBytes: uint32,
  });
  fc.assert(
    fc.property(chunk, fc.boolean(), (value, extended) => {
      const bytes = Buffer.alloc(32);
      protocol.encodeChunkHeader(bytes, 0, extended, value);
      const offsetBytes = extended ? value.offsetBytes : 0;
      assert.deepEqual(protocol.decodeChunkHeader(bytes, 0, extended), { ...value, offsetBytes });
    }),
  );
  const extents = fc.array(record({ lengthBytes: fc.integer({ min: 1, max: 2 ** 32 - 1 }), state: uint32 }), {
    minLength: 1,
    maxLength: 20,
  });
  fc.assert(
    fc.property(extents, uint32, fc.boolean(), (value, contextId, extended) => {
      const type = extended ? protocol.CHUNK.blockStatusExtended : protocol.CHUNK.blockStatus;
      const payload = protocol.encodeBlockStatus(extended, contextId, value);
      assert.deepEqual(protocol.decodeBlockStatus(type, payload), { contextId, extents: value });
    }),
  );
  fc.assert(
    fc.property(uint32, text, fc.option(uint53), (error, message, offsetBytes) => {
      const type = offsetBytes === null ? protocol.CHUNK.error : protocol.CHUNK.errorOffset;
      const payload = protocol.encodeErrorChunk(error, message, offsetBytes);
      assert.deepEqual(protocol.decodeErrorChunk(type, payload), { error, message, offsetBytes });
    }),
  );
  fc.assert(
    fc.property(
      uint53,
      uint32,
      fc.array(uint32, { maxLength: 5 }),
      (offsetBytes, lengthBytes, contextIds) => {
        const hole = Buffer.alloc(protocol.OFFSET_HOLE_BYTES);
        protocol.encodeHole(hole, 0, offsetBytes, lengthBytes);
        assert.deepEqual(protocol.decodeHole(hole), { offsetBytes, lengthBytes });
        const payload = protocol.encodeBlockStatusPayload(offsetBytes, contextIds);
        assert.deepEqual(protocol.decodeBlockStatusPayload(payload), {
          lengthBytes: offsetBytes,
          contextIds,
        });
      },
    ),
  );
});

test('foreign bytes end in a value or in a protocol error', () => {
  const decoders: ((bytes: Buffer) => unknown)[] = [
    protocol.decodeInfoRequest,
    protocol.decodeInfo,
    protocol.decodeListed,
    protocol.decodeMetaContextRequest,
    protocol.decodeMetaContext,
    protocol.decodeHole,
    (bytes) => protocol.decodeErrorChunk(protocol.CHUNK.error, bytes),
    (bytes) => protocol.decodeErrorChunk(protocol.CHUNK.errorOffset, bytes),
    (bytes) => protocol.decodeBlockStatus(protocol.CHUNK.blockStatus, bytes),
    (bytes) => protocol.decodeBlockStatus(protocol.CHUNK.blockStatusExtended, bytes),
    protocol.decodeBlockStatusPayload,
    protocol.decodeString,
  ];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.constantFrom(...decoders), (bytes, decode) => {
      try {
        decode(Buffer.from(bytes));
      } catch (error) {
        assert.ok(isGodwitError(error, 'NBD_PROTOCOL'), String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

test('strings that are too long, not UTF-8 or with a NUL are refused', () => {
  for (const bytes of [Buffer.alloc(4097, 'a'), Buffer.from([0xff]), Buffer.from('a\0b')]) {
    assert.throws(() => protocol.decodeString(bytes), { code: 'NBD_PROTOCOL' });
  }
});
