import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BufferPool } from '../base/buffer-pool.ts';
import { type ChunkSink, ChunkWriter } from '../base/chunk-writer.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { OPCODE } from './constants.ts';
import { digestOf } from './digest.ts';
import { encodeDataIn, encodeNopOut, initiatorTaskTagOf, opcodeOf } from './pdu.ts';
import { PduParser, type PduSink } from './pdu-parser.ts';
import { PduWriter } from './pdu-writer.ts';

type Seen = { opcode: number; tag: number; data: string };

class Recorder implements PduSink {
  readonly seen: Seen[] = [];
  destination(): null {
    return null;
  }
  pdu(header: Buffer, _ahs: Buffer, data: Uint8Array): void {
    this.seen.push({
      opcode: opcodeOf(header),
      tag: initiatorTaskTagOf(header),
      data: Buffer.from(data).toString('hex'),
    });
  }
}

/** A stream of PDUs with payloads of many lengths, as the writer makes it. */
function stream(digests: boolean, lengths: number[]): { bytes: Buffer; expected: Seen[] } {
  const chunks: Uint8Array[] = [];
  const sink: ChunkSink = (batch, done) => {
    for (const chunk of batch) chunks.push(Buffer.from(chunk));
    done();
  };
  const writer = new PduWriter(new ChunkWriter(sink, new BufferPool(0)));
  writer.headerDigest = digests;
  writer.dataDigest = digests;
  const random = seededRandom(7);
  const expected: Seen[] = [];
  lengths.forEach((length, tag) => {
    const data = random.bytes(length);
    encodeNopOut(writer.begin(), {
      immediate: true,
      initiatorTaskTag: tag,
      targetTransferTag: 0xffffffff,
      cmdSn: 1,
      expStatSn: 1,
    });
    if (tag % 2 === 0 && length > 0) {
      writer.inline(length).set(data);
      writer.end();
    } else {
      writer.end(data);
    }
    expected.push({ opcode: OPCODE.nopOut, tag, data: Buffer.from(data).toString('hex') });
  });
  writer.flush();
  return { bytes: Buffer.concat(chunks), expected };
}

function parser(sink: PduSink, digests: boolean): PduParser {
  const made = new PduParser(sink, { dataSegmentBytesMax: 65536 });
  made.headerDigest = digests;
  made.dataDigest = digests;
  return made;
}

const protocol = (error: unknown): boolean => isGodwitError(error, 'ISCSI_PROTOCOL');

test('CRC32C of 32 zero bytes is aa 36 91 8a on the wire (RFC 3720 B.4)', () => {
  const wire = Buffer.alloc(4);
  wire.writeUInt32LE(digestOf(new Uint8Array(32)), 0);
  assert.equal(wire.toString('hex'), 'aa36918a');
  assert.equal(digestOf(Uint8Array.of(1, 2)), digestOf(Uint8Array.of(1, 2, 0, 0)));
});

for (const digests of [false, true]) {
  test(`cut at every byte, digests ${digests ? 'on' : 'off'}`, () => {
    const { bytes, expected } = stream(digests, [0, 1, 2, 3, 4, 5, 64, 0, 127]);
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      const recorder = new Recorder();
      const it = parser(recorder, digests);
      it.push(bytes.subarray(0, cut));
      it.push(bytes.subarray(cut));
      assert.deepEqual(recorder.seen, expected, `cut at ${cut}`);
      assert.equal(it.atBoundary, true);
    }
    const recorder = new Recorder();
    const it = parser(recorder, digests);
    for (const byte of bytes) it.push(Uint8Array.of(byte));
    assert.deepEqual(recorder.seen, expected);
  });

  test(`any chunks through space and landed, digests ${digests ? 'on' : 'off'}`, () => {
    const { bytes, expected } = stream(digests, [0, 20_000, 5, 30_001, 16_384, 3, 32_768]);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 70_000 }), { minLength: 1, maxLength: 40 }), (sizes) => {
        const recorder = new Recorder();
        const it = parser(recorder, digests);
        let at = 0;
        for (let turn = 0; at < bytes.length; turn += 1) {
          const space = it.space();
          const count = Math.min(space.length, sizes[turn % sizes.length]!, bytes.length - at);
          space.set(bytes.subarray(at, at + count));
          it.landed(count);
          at += count;
        }
        assert.deepEqual(recorder.seen, expected);
      }),
      { numRuns: 60 },
    );
  });
}

test('a big payload is read straight into its destination', () => {
  const into = Buffer.alloc(40_000);
  let delivered: Uint8Array | null = null;
  const it = parser(
    {
      destination: () => into,
      pdu: (_header, _ahs, data) => {
        delivered = data;
      },
    },
    false,
  );
  const header = Buffer.alloc(48);
  encodeDataIn(header, {
    final: true,
    hasStatus: true,
    status: 0,
    initiatorTaskTag: 1,
    dataSn: 0,
    bufferOffset: 0,
    residualBytes: 0,
    statSn: 1,
    expCmdSn: 1,
    maxCmdSn: 1,
  });
  header.writeUIntBE(into.length, 5, 3);
  const first = it.space();
  first.set(header);
  it.landed(48);
  const space = it.space();
  assert.equal(space.buffer, into.buffer);
  assert.equal(space.length, into.length);
  space.fill(7);
  it.landed(space.length);
  assert.equal(delivered, into);
});

test('a data segment above the limit is refused before anything is allocated', () => {
  const header = Buffer.alloc(48);
  header.writeUIntBE(65537, 5, 3);
  let asked = false;
  const it = parser(
    {
      destination: () => {
        asked = true;
        return null;
      },
      pdu: () => {},
    },
    false,
  );
  assert.throws(() => it.push(header), protocol);
  assert.equal(asked, false);
  assert.throws(() => it.push(header), protocol);
});

test('one flipped bit anywhere is found by the digests', () => {
  const { bytes } = stream(true, [10]);
  // Behind the payload lie two bytes of padding; those are covered by the digest but not part of the data.
  const padding = new Set([48 + 4 + 10, 48 + 4 + 11]);
  for (let at = 0; at < bytes.length; at += 1) {
    if (padding.has(at)) continue;
    const broken = Buffer.from(bytes);
    broken[at]! ^= 0x10;
    const recorder = new Recorder();
    let refused = false;
    try {
      parser(recorder, true).push(broken);
    } catch (error) {
      refused = protocol(error);
    }
    assert.ok(refused || recorder.seen.length === 0, `byte ${at}`);
  }
});

test('random bytes end in PDUs or a protocol error, in bounded memory', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2_000 }), fc.boolean(), (bytes, digests) => {
      const recorder = new Recorder();
      const it = parser(recorder, digests);
      try {
        it.push(bytes);
      } catch (error) {
        assert.ok(protocol(error));
      }
    }),
    { numRuns: 500 },
  );
});
