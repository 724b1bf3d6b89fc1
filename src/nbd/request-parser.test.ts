import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { COMMAND, encodeRequest, type Request, requestPayloadBytes } from './protocol.ts';
import { RequestParser, type RequestSink } from './request-parser.ts';

type Seen = { request: Request; payload: string | null };

class Collector implements RequestSink {
  readonly seen: Seen[] = [];
  readonly buffers: Uint8Array[] = [];
  /** How often `admit` says no before it says yes. */
  refusals = 0;
  skipped = new Set<number>();

  admit(): boolean {
    if (this.refusals === 0) return true;
    this.refusals -= 1;
    return false;
  }

  skips(request: Request): boolean {
    return this.skipped.has(request.cookieLow);
  }

  payloadBuffer(payloadBytes: number): Uint8Array {
    const buffer = new Uint8Array(payloadBytes);
    this.buffers.push(buffer);
    return buffer;
  }

  request(request: Request, payload: Uint8Array | null): void {
    this.seen.push({ request, payload: payload === null ? null : Buffer.from(payload).toString('hex') });
  }
}

function stream(requests: readonly Request[], extended: boolean): { bytes: Buffer; expected: Seen[] } {
  const parts: Buffer[] = [];
  const expected: Seen[] = [];
  for (const request of requests) {
    const header = Buffer.alloc(extended ? 32 : 28);
    encodeRequest(header, 0, extended, request);
    const payload = Buffer.alloc(requestPayloadBytes(request, extended), request.cookieLow & 0xff);
    parts.push(header, payload);
    expected.push({ request, payload: payload.length === 0 ? null : payload.toString('hex') });
  }
  return { bytes: Buffer.concat(parts), expected };
}

const anyRequest: fc.Arbitrary<Request> = fc.record(
  {
    flags: fc.constantFrom(0, 1, 1 << 5),
    type: fc.constantFrom(COMMAND.read, COMMAND.write, COMMAND.flush, COMMAND.blockStatus, 99),
    cookieHigh: fc.nat({ max: 0xffffffff }),
    cookieLow: fc.nat({ max: 0xffffffff }),
    offsetBytes: fc.nat({ max: 2 ** 40 }),
    lengthBytes: fc.nat({ max: 300 }),
  },
  { noNullPrototype: true },
);

test('whatever way the stream is cut, and however often a request has to wait, the requests are the same', () => {
  fc.assert(
    fc.property(
      fc.array(anyRequest, { minLength: 1, maxLength: 12 }),
      fc.boolean(),
      fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }),
      fc.array(fc.nat({ max: 2 }), { minLength: 1 }),
      (requests, extended, cuts, refusals) => {
        const { bytes, expected } = stream(requests, extended);
        const sink = new Collector();
        const parser = new RequestParser(sink, { extended, payloadBytesMax: 1024 });
        let at = 0;
        for (let turn = 0; at < bytes.length; turn += 1) {
          const chunk = Buffer.from(bytes.subarray(at, at + cuts[turn % cuts.length]!));
          sink.refusals = refusals[turn % refusals.length]!;
          for (let taken = 0, waits = 0; ; waits += 1) {
            assert.ok(waits < 10);
            taken = parser.push(chunk, taken);
            if (taken === chunk.length) break;
          }
          at += chunk.length;
        }
        sink.refusals = 0;
        parser.push(Buffer.alloc(0), 0);
        assert.deepEqual(sink.seen, expected);
        assert.ok(parser.atBoundary);
      },
    ),
  );
});

test('a payload that arrives whole is not copied', () => {
  const { bytes } = stream(
    [{ flags: 0, type: COMMAND.write, cookieHigh: 0, cookieLow: 1, offsetBytes: 0, lengthBytes: 100 }],
    false,
  );
  const sink = new Collector();
  const payloads: Uint8Array[] = [];
  sink.request = (_request, payload) => payloads.push(payload!);
  new RequestParser(sink, { extended: false, payloadBytesMax: 1024 }).push(bytes, 0);
  assert.equal(payloads[0]!.buffer, bytes.buffer);
  assert.equal(sink.buffers.length, 0);
});

test('a skipped payload takes no buffer, and the next request is found', () => {
  const write = (cookieLow: number): Request => ({
    flags: 0,
    type: COMMAND.write,
    cookieHigh: 0,
    cookieLow,
    offsetBytes: 0,
    lengthBytes: 200,
  });
  const { bytes } = stream([write(1), write(2)], false);
  const sink = new Collector();
  sink.skipped.add(1);
  const parser = new RequestParser(sink, { extended: false, payloadBytesMax: 1024 });
  parser.push(bytes.subarray(0, 50), 0);
  parser.push(bytes.subarray(50), 0);
  assert.deepEqual(
    sink.seen.map(({ request, payload }) => [request.cookieLow, payload === null]),
    [
      [1, true],
      [2, false],
    ],
  );
  assert.equal(sink.buffers.length, 0);
});

test('a wrong magic and a payload above the limit are refused for good, before a buffer is taken', () => {
  const { bytes } = stream(
    [{ flags: 0, type: COMMAND.write, cookieHigh: 0, cookieLow: 1, offsetBytes: 0, lengthBytes: 1025 }],
    false,
  );
  for (const bad of [Buffer.alloc(28), bytes]) {
    const sink = new Collector();
    const parser = new RequestParser(sink, { extended: false, payloadBytesMax: 1024 });
    assert.throws(() => parser.push(bad, 0), { code: 'NBD_PROTOCOL' });
    assert.throws(() => parser.push(bytes, 0), { code: 'NBD_PROTOCOL' });
    assert.equal(sink.buffers.length, 0);
    assert.equal(sink.seen.length, 0);
  }
});

test('the rest of a large payload lands where it belongs, and the next request is found behind it', () => {
  const requests = [40_000, 100].map((lengthBytes, index) => ({
    flags: 0,
    type: COMMAND.write,
    cookieHigh: 0,
    cookieLow: index + 1,
    offsetBytes: 0,
    lengthBytes,
  }));
  const { bytes, expected } = stream(requests, false);
  const sink = new Collector();
  const parser = new RequestParser(sink, { extended: false, payloadBytesMax: 65_536 });
  let at = 0;
  let direct = 0;
  while (at < bytes.length) {
    const space = parser.space();
    const count = Math.min(7_000, bytes.length - at, space?.length ?? 7_000);
    const piece = Buffer.from(bytes.subarray(at, at + count));
    if (space === null) {
      parser.push(piece, 0, true);
    } else {
      space.set(piece);
      parser.landed(count);
      direct += count;
    }
    at += count;
  }
  assert.deepEqual(sink.seen, expected);
  assert.ok(direct >= 21_000);
  assert.equal(sink.buffers.length, 1);
});
