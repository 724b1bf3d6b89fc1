import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { assertInBatches } from '../../test/support/fuzz.ts';
import { testSeed } from '../../test/support/seed.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { ClientBook } from '../base/client-account.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { NbdExport } from './export.ts';
import { ServerHandshake } from './handshake-server.ts';
import { SERVER_LIMITS } from './limits.ts';
import {
  COMMAND,
  encodeBlockStatusPayload,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  OPTION,
} from './protocol.ts';
import { RequestParser } from './request-parser.ts';
import { ServerSession } from './server-session.ts';

/*
 * Hostile clients against the whole server without its socket: handshake, parser, session, writer. Inputs are
 * recorded conversations of each kind of client, mutilated: cut into pieces, truncated, bytes changed,
 * lengths that lie, parts repeated, and plain random bytes.
 */

const RUNS = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;
const DEVICE_BYTES = 256 * 1024;
const limits = {
  ...SERVER_LIMITS,
  requestBytesMax: 64 * 1024,
  payloadBytesMax: 128 * 1024,
  requestsMax: 16,
  extentsMax: 256,
};

const SHARED_BYTES_MAX = 256 * 1024;

class Server {
  readonly clients = new ClientBook(systemClock, {
    connectionBytesMax: 256 * 1024,
    connectionBytesReserved: 16 * 1024,
    sharedBytesMax: SHARED_BYTES_MAX,
  });
  readonly account = this.clients.open({
    address: 'x',
    debt: () => 'nothing',
    movedBytes: () => 0,
    onRoom: () => this.session?.room(),
    drop: () => {},
  });
  readonly #handshake: ServerHandshake;
  readonly #writer: ChunkWriter;
  readonly #device: MemoryDevice;
  #parser: RequestParser | null = null;
  session: ServerSession | null = null;
  #rest = Buffer.alloc(0);
  #pumping = false;
  ended = false;
  repliedBytes = 0;

  constructor() {
    this.#device = new MemoryDevice({ lengthBytes: DEVICE_BYTES });
    const exports = [
      new NbdExport({
        name: '',
        device: this.#device,
        readOnly: false,
        hydration: (offsetBytes, lengthBytes) => [{ offsetBytes, lengthBytes, kind: 'hydrated' }],
      }),
    ];
    this.#writer = new ChunkWriter(
      (chunks, done) => {
        for (const chunk of chunks) this.repliedBytes += chunk.length;
        process.nextTick(done);
      },
      new BufferPool(1024 * 1024),
    );
    this.#handshake = new ServerHandshake({
      host: { exports: () => exports, isClosing: () => false, tls: 'none' },
      limits,
      reply: (bytes) => {
        this.repliedBytes += bytes.length;
      },
    });
  }

  push(bytes: Buffer): void {
    if (this.ended) return;
    this.#rest = Buffer.concat([this.#rest, bytes]);
    this.#pump();
  }

  #pump(): void {
    if (this.#pumping || this.ended) return;
    this.#pumping = true;
    try {
      let at = 0;
      if (this.#parser === null) {
        const taken = this.#handshake.push(this.#rest, 0);
        at = taken.at;
        const { step } = taken;
        if (step.next === 'end') this.ended = true;
        if (step.next === 'transmission') {
          this.session = new ServerSession({
            agreement: step.agreement,
            writer: this.#writer,
            pool: new BufferPool(0),
            account: this.account,
            limits,
            logger: silentLogger,
            statistics: { requests: 0, bytesRead: 0, bytesWritten: 0 },
            hasPlace: () => true,
            onRoom: () => this.#pump(),
            onEnd: () => {
              this.ended = true;
            },
          });
          this.#parser = new RequestParser(this.session, {
            extended: step.agreement.mode === 'extended',
            payloadBytesMax: limits.payloadBytesMax,
          });
        }
      }
      if (this.#parser !== null) at = this.#parser.push(this.#rest, at);
      this.#rest = this.#rest.subarray(at);
    } catch (error) {
      if (!isGodwitError(error, 'NBD_PROTOCOL')) throw error;
      this.ended = true;
    } finally {
      this.#pumping = false;
    }
  }

  async close(): Promise<void> {
    this.ended = true;
    this.#writer.close();
    await this.session?.close();
    this.account.close();
  }
}

function request(
  extended: boolean,
  type: number,
  offsetBytes: number,
  lengthBytes: number,
  flags = 0,
): Buffer {
  const bytes = Buffer.alloc(extended ? 32 : 28);
  encodeRequest(bytes, 0, extended, { flags, type, cookieHigh: 1, cookieLow: 2, offsetBytes, lengthBytes });
  return bytes;
}

function commands(extended: boolean): Buffer[] {
  const status = encodeBlockStatusPayload(DEVICE_BYTES, [0, 1]);
  return [
    request(extended, COMMAND.read, 4096, 4096),
    request(extended, COMMAND.read, 0, 64 * 1024),
    Buffer.concat([
      request(extended, COMMAND.write, 8192, 2048, extended ? 1 << 5 : 1),
      Buffer.alloc(2048, 7),
    ]),
    request(extended, COMMAND.flush, 0, 0),
    request(extended, COMMAND.trim, 0, 4096),
    request(extended, COMMAND.writeZeroes, 0, 4096, 2),
    request(extended, COMMAND.cache, 0, 4096),
    extended
      ? Buffer.concat([request(true, COMMAND.blockStatus, 0, status.length, 1 << 5), status])
      : request(false, COMMAND.blockStatus, 0, DEVICE_BYTES),
    request(extended, COMMAND.read, 0, 512, 4),
    request(extended, COMMAND.disconnect, 0, 0),
  ];
}

const flags = encodeClientFlags(3);
const go = encodeOption(OPTION.go, encodeInfoRequest('', [3]));
const contexts = encodeMetaContextRequest('', ['base:allocation', 'godwit:hydration']);
const CONVERSATIONS: Buffer[][] = [
  [flags, go, ...commands(false)],
  [flags, encodeOption(OPTION.exportName), ...commands(false)],
  [
    flags,
    encodeOption(OPTION.structuredReply),
    encodeOption(OPTION.listMetaContext, encodeMetaContextRequest('', [])),
    encodeOption(OPTION.setMetaContext, contexts),
    go,
    ...commands(false),
  ],
  [
    flags,
    encodeOption(OPTION.extendedHeaders),
    encodeOption(OPTION.setMetaContext, contexts),
    go,
    ...commands(true),
  ],
  [flags, encodeOption(OPTION.list), encodeOption(OPTION.startTls), encodeOption(OPTION.abort)],
];

type Mutation =
  | { kind: 'none' }
  | { kind: 'truncate'; at: number }
  | { kind: 'bytes'; changes: [number, number][] }
  | { kind: 'length'; at: number; value: number }
  | { kind: 'insert'; at: number; bytes: Uint8Array }
  | { kind: 'repeat'; message: number; times: number };

const place = fc.nat({ max: 2 ** 16 });
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.constant({ kind: 'none' as const }),
  fc.record({ kind: fc.constant('truncate' as const), at: place }),
  fc.record({
    kind: fc.constant('bytes' as const),
    changes: fc.array(fc.tuple(place, fc.nat({ max: 255 })), { minLength: 1, maxLength: 8 }),
  }),
  fc.record({
    kind: fc.constant('length' as const),
    at: place,
    value: fc.oneof(fc.nat({ max: 0xffffffff }), fc.constantFrom(0, 1, 0x7fffffff, 0x80000000, 0xffffffff)),
  }),
  fc.record({ kind: fc.constant('insert' as const), at: place, bytes: fc.uint8Array({ maxLength: 64 }) }),
  fc.record({ kind: fc.constant('repeat' as const), message: place, times: fc.integer({ min: 2, max: 40 }) }),
);

function mutate(conversation: readonly Buffer[], change: Mutation): Buffer {
  const messages = [...conversation];
  if (change.kind === 'repeat') {
    const index = change.message % messages.length;
    messages.splice(index, 1, ...Array.from({ length: change.times }, () => messages[index]!));
  }
  const bytes = Buffer.concat(messages);
  switch (change.kind) {
    case 'truncate':
      return bytes.subarray(0, change.at % bytes.length);
    case 'bytes':
      for (const [at, value] of change.changes) bytes[at % bytes.length] = value;
      return bytes;
    case 'length': {
      // Lengths stand at the end of a header: aim there most of the time.
      const starts: number[] = [];
      let start = 0;
      for (const message of messages) {
        starts.push(start + Math.min(message.length, 32) - 4, start + 12, start + 16);
        start += message.length;
      }
      const at = Math.min(starts[change.at % starts.length]!, bytes.length - 4);
      bytes.writeUInt32BE(change.value, Math.max(0, at));
      return bytes;
    }
    case 'insert': {
      const at = change.at % bytes.length;
      return Buffer.concat([bytes.subarray(0, at), change.bytes, bytes.subarray(at)]);
    }
    default:
      return bytes;
  }
}

async function converse(bytes: Buffer, cuts: readonly number[]): Promise<Server> {
  const server = new Server();
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const count = cuts[turn % cuts.length]!;
    server.push(Buffer.from(bytes.subarray(at, at + count)));
    at += count;
    // A slab of replies is there before it is counted.
    assert.ok(server.clients.sharedBytes <= SHARED_BYTES_MAX + 128 * 1024);
    if (turn % 8 === 7) await null;
  }
  await server.close();
  assert.deepEqual([server.clients.sharedBytes, server.clients.connections], [0, 0]);
  return server;
}

const cuts = fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 200, max: 70_000 })), {
  minLength: 1,
  maxLength: 6,
});

test('the conversations that the fuzzer mutilates are whole ones', async () => {
  for (const conversation of CONVERSATIONS) {
    const server = await converse(Buffer.concat(conversation), [70_000]);
    assert.ok(server.ended);
    assert.ok(server.repliedBytes > 0);
  }
});

test(`${RUNS} mutilated conversations end in replies or in the end of the connection`, async (_t) => {
  const seed = testSeed();
  await assertInBatches(
    fc.asyncProperty(
      fc.constantFrom(...CONVERSATIONS),
      mutation,
      cuts,
      async (conversation, change, pieces) => {
        await converse(mutate(conversation, change), pieces);
      },
    ),
    { numRuns: Math.floor(RUNS * 0.8), seed },
  );
  await assertInBatches(
    fc.asyncProperty(
      fc.boolean(),
      fc.uint8Array({ maxLength: 300 }),
      cuts,
      async (greeted, noise, pieces) => {
        const prefix = greeted ? Buffer.concat([flags, go]) : Buffer.alloc(0);
        await converse(Buffer.concat([prefix, noise]), pieces);
      },
    ),
    { numRuns: Math.ceil(RUNS * 0.2), seed },
  );
});
