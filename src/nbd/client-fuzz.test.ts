import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { assertInBatches } from '../../test/support/fuzz.ts';
import { patient } from '../../test/support/patience.ts';
import { testSeed } from '../../test/support/seed.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { GodwitError } from '../base/errors.ts';
import { NO_BYTES, RemoteRequest } from '../remote/request.ts';
import { HandshakeDriver, list, negotiate, type RemoteExport } from './client-handshake.ts';
import { NBD, type NbdCommand, type NbdFailure, NbdSession } from './client-session.ts';
import {
  CHUNK,
  COMMAND,
  encodeBlockStatus,
  encodeChunkHeader,
  encodeErrorChunk,
  encodeExportNameReply,
  encodeGreeting,
  encodeHole,
  encodeInfo,
  encodeListed,
  encodeMetaContext,
  encodeOptionReply,
  encodeSimpleReply,
  OPTION,
  OPTION_REPLY,
} from './protocol.ts';
import { RequestWriter } from './request-writer.ts';

/**
 * Hostile servers against both phases of the client: what a correct server would send, with fields that lie,
 * chunks left out, repeated, swapped, cut and flipped, and cut into reads at random places. Every input ends
 * in answers or in one typed error, no byte lands outside of the buffer that was asked for, and a read that
 * succeeds has every byte that the server sent for it.
 */
const RUNS = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;
const SEED = testSeed();
console.log(`seed ${SEED} (GODWIT_SEED), ${RUNS} inputs`);
const parameters = (share: number) => ({ numRuns: Math.ceil(RUNS * share), seed: SEED });

const EXPORT: RemoteExport = {
  lengthBytes: 1024 * 1024,
  transmissionFlags: 0,
  name: '',
  description: '',
  minimumBlockBytes: 1,
  preferredBlockBytes: 4096,
  maximumBlockBytes: 1024 * 1024,
  replyStyle: 'structured',
  allocationContextId: 7,
};
const CANARY = 0xa5;
const CANARIES = Buffer.alloc(4096, CANARY);

type Outcome = { failure: NbdFailure | null } | null;

/** Requests of a session as an attacker sees them. */
function world(replyStyle: RemoteExport['replyStyle']) {
  let over: GodwitError | null = null;
  const pool = new BufferPool(0);
  const session = new NbdSession({
    export: { ...EXPORT, replyStyle },
    writer: new RequestWriter(new ChunkWriter(() => {}, pool)),
    clock: new FakeClock(),
    keepAliveIntervalMs: patient(1000),
    keepAliveTimeoutMs: patient(1000),
    requestTimeoutMs: patient(1000),
    onRoom: () => {},
    onAnswered: (request, failure) => {
      const index = requests.indexOf(request);
      assert.equal(outcomes[index], null, 'answered once');
      outcomes[index] = { failure };
    },
    onSent: () => assert.fail('nothing is written'),
    onOver: (error) => {
      assert.equal(over, null, 'over once');
      over = error;
    },
  });
  const arena = Buffer.alloc(3 * 4096, CANARY);
  const buffer = arena.subarray(4096, 8192);
  const outcomes: Outcome[] = [null, null, null];
  const never = () => assert.fail('a session settles nothing');
  const request = (command: NbdCommand, offsetBytes: number, lengthBytes: number, into: Uint8Array) =>
    new RemoteRequest(command, offsetBytes, lengthBytes, into, 0, never, never);
  const status: NbdCommand = { counts: null, type: COMMAND.blockStatus, flags: 0, extents: null };
  const requests = [
    request(NBD.read, 8192, 4096, buffer),
    request(status, 0, 1024 * 1024, NO_BYTES),
    request(NBD.flush, 0, 0, NO_BYTES),
  ];
  for (const each of requests) {
    if (!(replyStyle === 'simple' && each.command === status)) session.send(each);
  }
  return { session, arena, buffer, outcomes, over: () => over };
}

/** 4096 bytes that tell where they belong. */
const CONTENT = Buffer.from(Array.from({ length: 4096 }, (_, index) => (index * 31 + (index >> 8)) & 0xff));

const lyingNumber = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(0, 1, 7, 8, 512, 4096, 4097, 8192, 12288) },
  { weight: 1, arbitrary: fc.nat({ max: 0xffffffff }) },
  { weight: 1, arbitrary: fc.constantFrom(0xffffffff, 0x80000000, 2 ** 53) },
);
const slot = fc.constantFrom(0, 0, 0, 0, 1, 1, 2, 2, 3, 999);
const sequence = fc.constantFrom(1, 1, 1, 1, 1, 1, 1, 0, 2);
const uint32 = (value: number) => Math.min(value, 0xffffffff);

const simpleReply = fc
  .record({ slot, sequence, error: fc.constantFrom(0, 0, 5, 28), data: fc.boolean() })
  .map(({ slot, sequence, error, data }) => {
    const bytes = Buffer.alloc(16);
    encodeSimpleReply(bytes, 0, { error, cookieHigh: sequence, cookieLow: slot });
    const isRead = slot === 0 && error === 0;
    return { bytes: data ? Buffer.concat([bytes, CONTENT]) : bytes, isHonest: isRead === data };
  });

const payload = fc.oneof(
  fc.constant({ type: CHUNK.none as number, bytes: Buffer.alloc(0), isRandom: false }),
  fc
    .tuple(fc.constantFrom(0, 0, 1024, 2048, 3072), fc.constantFrom(4096, 1024, 2048, 1))
    .map(([start, length]) => {
      const bytes = Buffer.alloc(8);
      bytes.writeUInt32BE(8192 + start, 4);
      return {
        type: CHUNK.offsetData as number,
        bytes: Buffer.concat([bytes, CONTENT.subarray(start, start + length)]),
        isRandom: false,
      };
    }),
  fc.tuple(lyingNumber, lyingNumber).map(([offset, length]) => {
    const bytes = Buffer.alloc(12);
    encodeHole(bytes, 0, offset, uint32(length));
    return { type: CHUNK.offsetHole as number, bytes, isRandom: false };
  }),
  fc
    .tuple(fc.boolean(), fc.constantFrom(7, 7, 8), fc.array(lyingNumber, { maxLength: 5 }))
    .map(([extended, id, lengths]) => ({
      type: (extended ? CHUNK.blockStatusExtended : CHUNK.blockStatus) as number,
      bytes: encodeBlockStatus(
        extended,
        id,
        lengths.map((lengthBytes) => ({ lengthBytes: uint32(lengthBytes), state: 3 })),
      ),
      isRandom: false,
    })),
  fc.tuple(fc.constantFrom(0, 5, 28), fc.string({ maxLength: 20 })).map(([error, message]) => ({
    type: CHUNK.error as number,
    bytes: encodeErrorChunk(error, message),
    isRandom: false,
  })),
  fc.tuple(fc.nat({ max: 0xffff }), fc.uint8Array({ maxLength: 40 })).map(([type, bytes]) => ({
    type,
    bytes: Buffer.from(bytes),
    isRandom: true,
  })),
);

const chunk = (extended: boolean) =>
  fc
    .record({
      slot,
      sequence,
      payload,
      done: fc.boolean(),
      lie: fc.option(lyingNumber, { freq: 12 }),
      offset: fc.constantFrom(8192, 8192, 0),
    })
    .map(({ slot, sequence, payload, done, lie, offset }) => {
      const header = Buffer.alloc(extended ? 32 : 20);
      const payloadBytes = lie ?? payload.bytes.length;
      encodeChunkHeader(header, 0, extended, {
        flags: done ? 1 : 0,
        type: payload.type,
        cookieHigh: sequence,
        cookieLow: slot,
        offsetBytes: slot === 0 ? offset : 0,
        payloadBytes: extended ? payloadBytes : uint32(payloadBytes),
      });
      return { bytes: Buffer.concat([header, payload.bytes]), isHonest: lie === null && !payload.isRandom };
    });

/** A whole and right answer to the read: pieces of it in any order, data or hole, the last one marked. */
const wholeRead = (extended: boolean) =>
  fc
    .tuple(
      fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4, maxLength: 4 }),
      fc.array(fc.boolean(), { minLength: 4, maxLength: 4 }),
    )
    .map(([order, holes]) =>
      order.map((piece, index) => {
        const isHole = holes[index]!;
        const start = 1024 * piece;
        const bytes = Buffer.alloc(isHole ? 12 : 8);
        if (isHole) encodeHole(bytes, 0, 8192 + start, 1024);
        else bytes.writeUInt32BE(8192 + start, 4);
        const data = isHole ? Buffer.alloc(0) : CONTENT.subarray(start, start + 1024);
        const header = Buffer.alloc(extended ? 32 : 20);
        encodeChunkHeader(header, 0, extended, {
          flags: index === 3 ? 1 : 0,
          type: isHole ? CHUNK.offsetHole : CHUNK.offsetData,
          cookieHigh: 1,
          cookieLow: 0,
          offsetBytes: 8192,
          payloadBytes: bytes.length + data.length,
        });
        return { bytes: Buffer.concat([header, bytes, data]), isHonest: true };
      }),
    );

const damage = fc.record({
  flips: fc.array(fc.tuple(fc.nat(), fc.nat({ max: 255 })), { maxLength: 3 }),
  isDamaged: fc.constantFrom(false, false, true),
  cutTo: fc.option(fc.nat({ max: 5000 }), { freq: 6 }),
});

function damaged(
  bytes: Buffer,
  how: { flips: [number, number][]; isDamaged: boolean; cutTo: number | null },
): Buffer {
  const copy = Buffer.from(bytes);
  if (how.isDamaged && copy.length > 0) for (const [at, value] of how.flips) copy[at % copy.length] = value;
  return how.cutTo === null ? copy : copy.subarray(0, how.cutTo);
}

for (const style of ['simple', 'structured', 'extended'] as const) {
  const messages = {
    simple: fc.oneof({ weight: 4, arbitrary: simpleReply }, { weight: 1, arbitrary: chunk(false) }),
    structured: fc.oneof({ weight: 5, arbitrary: chunk(false) }, { weight: 2, arbitrary: simpleReply }),
    extended: fc.oneof({ weight: 8, arbitrary: chunk(true) }, { weight: 1, arbitrary: chunk(false) }),
  }[style];
  test(`hostile ${style} replies end in answers or a typed error`, async () => {
    let whole = 0;
    await assertInBatches(
      fc.property(
        fc.oneof(
          { weight: 6, arbitrary: fc.array(messages, { maxLength: 6 }) },
          ...(style === 'simple'
            ? []
            : [
                {
                  weight: 3,
                  arbitrary: fc
                    .tuple(
                      wholeRead(style === 'extended'),
                      fc.array(messages, { maxLength: 2 }),
                      fc.nat({ max: 4 }),
                    )
                    .map(([answer, others, at]) => answer.toSpliced(at, 0, ...others)),
                },
              ]),
          {
            weight: 1,
            arbitrary: fc
              .uint8Array({ maxLength: 200 })
              .map((bytes) => [{ bytes: Buffer.from(bytes), isHonest: false }]),
          },
        ),
        damage,
        fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 5 }),
        (parts, how, cuts) => {
          const { session, arena, buffer, outcomes, over } = world(style);
          const bytes = damaged(Buffer.concat(parts.map((part) => part.bytes)), how);
          for (let at = 0, turn = 0; at < bytes.length && over() === null; turn += 1) {
            let count = Math.min(cuts[turn % cuts.length]!, bytes.length - at);
            // As sockets of either kind hand their bytes on.
            if (cuts.length > 1) session.push(bytes.subarray(at, at + count));
            else {
              const space = session.space();
              count = Math.min(count, space.length);
              space.set(bytes.subarray(at, at + count));
              session.landed(count);
            }
            at += count;
          }
          const error = over();
          assert.ok(error === null || error.code === 'NBD_PROTOCOL', String(error));
          assert.ok(arena.subarray(0, 4096).equals(CANARIES), 'before the buffer');
          assert.ok(arena.subarray(8192).equals(CANARIES), 'behind the buffer');
          if (outcomes[0]?.failure === null && !how.isDamaged && parts.every(({ isHonest }) => isHonest)) {
            whole += 1;
            // Each byte is what the server sends for its place, or zero where it said that there is a hole.
            for (let index = 0; index < 4096; index += 1) {
              const byte = buffer[index];
              if (byte !== CONTENT[index] && byte !== 0) assert.fail(`byte ${index} is ${byte}`);
            }
          }
          session.fail(new GodwitError('NBD_PROTOCOL', 'over', { nextAction: '' }));
        },
      ),
      parameters(0.25),
    );
    assert.ok(whole > RUNS * 0.0002, `some reads must succeed: ${whole}`);
  });
}

const optionReply = fc
  .record({
    option: fc.constantFrom(...Object.values(OPTION)),
    type: fc.oneof(fc.constantFrom(...Object.values(OPTION_REPLY)), fc.nat({ max: 0xffffffff })),
    data: fc.oneof(
      fc.constant(Buffer.alloc(0)),
      fc
        .tuple(fc.constantFrom(0, 512, 4096, 2 ** 40, 2 ** 53), fc.nat({ max: 0xffff }))
        .map(([lengthBytes, transmissionFlags]) =>
          encodeInfo({ type: 'export', lengthBytes, transmissionFlags }),
        ),
      fc.tuple(lyingNumber, lyingNumber, lyingNumber).map(([minimumBytes, preferredBytes, maximumBytes]) =>
        encodeInfo({
          type: 'blockSize',
          minimumBytes: uint32(minimumBytes),
          preferredBytes: uint32(preferredBytes),
          maximumBytes: uint32(maximumBytes),
        }),
      ),
      fc.string().map((description) => encodeInfo({ type: 'description', description })),
      fc.string().map((name) => encodeMetaContext({ id: 1, name })),
      fc.tuple(fc.string(), fc.string()).map(([name, description]) => encodeListed(name, description)),
      fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes)),
    ),
    lie: fc.option(lyingNumber, { freq: 12 }),
  })
  .map(({ option, type, data, lie }) => {
    const bytes = encodeOptionReply(option, type, data);
    if (lie !== null) bytes.writeUInt32BE(uint32(lie), 16);
    return bytes;
  });

/** What a server would send, option by option, with something else in some places. */
const conversation = fc
  .record({
    flags: fc.constantFrom(1, 3, 3, 3, 0, 0xffff),
    style: fc.constantFrom(OPTION_REPLY.ack, OPTION_REPLY.errorUnsupported),
    go: fc.boolean(),
    wrong: fc.array(fc.tuple(fc.nat({ max: 8 }), optionReply), { maxLength: 2 }),
  })
  .map(({ flags, style, go, wrong }) => {
    const info = { lengthBytes: 4096, transmissionFlags: 1 };
    const parts = [
      encodeGreeting(flags),
      encodeOptionReply(OPTION.extendedHeaders, OPTION_REPLY.errorUnsupported),
      encodeOptionReply(OPTION.structuredReply, style),
      ...(style === OPTION_REPLY.ack
        ? [
            encodeOptionReply(
              OPTION.setMetaContext,
              OPTION_REPLY.metaContext,
              encodeMetaContext({ id: 1, name: 'base:allocation' }),
            ),
            encodeOptionReply(OPTION.setMetaContext, OPTION_REPLY.ack),
          ]
        : []),
      ...(go
        ? [
            encodeOptionReply(OPTION.go, OPTION_REPLY.info, encodeInfo({ type: 'export', ...info })),
            encodeOptionReply(OPTION.go, OPTION_REPLY.ack),
          ]
        : [
            encodeOptionReply(OPTION.go, OPTION_REPLY.errorUnsupported),
            encodeExportNameReply(info, (flags & 2) === 0),
          ]),
    ];
    for (const [at, bytes] of wrong) parts.splice(at, 1, bytes);
    return Buffer.concat(parts);
  });

test('hostile handshakes end in an export or a typed error', async () => {
  let completed = 0;
  await assertInBatches(
    fc.property(
      fc.oneof(
        { weight: 3, arbitrary: conversation },
        {
          weight: 2,
          arbitrary: fc
            .array(optionReply, { maxLength: 6 })
            .map((parts) => Buffer.concat([encodeGreeting(3), ...parts])),
        },
        { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)) },
      ),
      damage,
      fc.constantFrom('go', 'list', 'tls'),
      fc.integer({ min: 1, max: 60 }),
      (input, how, kind, cut) => {
        const bytes = damaged(input, how);
        const tls = kind === 'tls' ? 'allow' : 'off';
        const driver = new HandshakeDriver<unknown>(
          kind === 'list' ? list({ tls }) : negotiate({ exportName: 'a', tls }),
          () => {},
        );
        try {
          for (let at = 0; at < bytes.length && driver.waitsFor === 'bytes'; at += cut) {
            driver.push(bytes.subarray(at, at + cut));
          }
          if (driver.waitsFor === 'nothing') completed += 1;
        } catch (error) {
          assert.ok(error instanceof GodwitError && error.code.startsWith('NBD_'), String(error));
        }
      },
    ),
    parameters(0.25),
  );
  assert.ok(completed > RUNS * 0.001, `some handshakes must get through: ${completed}`);
});
