import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import {
  GRANT,
  INITIATOR_IQN,
  initiatorOptions,
  startInitiator,
  startTarget,
  TARGET_IQN,
} from '../../test/support/iscsi-pair.ts';
import { turnsOf } from '../../test/support/loop-turns.ts';
import { reset } from '../../test/support/reset.ts';
import { testSeed } from '../../test/support/seed.ts';
import { ClientBook } from '../base/client-account.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom, systemRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { OPCODE, STAGE } from './constants.ts';
import { IscsiInitiator } from './initiator.ts';
import { TargetLogin } from './login-target.ts';
import { Negotiation } from './negotiation.ts';
import * as pdus from './pdu.ts';
import { PduParser } from './pdu-parser.ts';
import { decodeCommand, OPERATION } from './scsi/command.ts';
import { LogicalUnit, Nexus } from './scsi/logical-unit.ts';
import type { Result } from './scsi/plan.ts';
import { decodeSense } from './scsi/sense.ts';
import { IscsiTarget } from './target.ts';
import { parseBinary, parseTextKeys } from './text-keys.ts';

/*
 * Peers that mean harm, or are broken. 20,000 inputs, half of them to the parsers and half to a whole target
 * over TCP; 1,000,000 with GODWIT_LONG=1. GODWIT_SEED repeats a run.
 */
const INPUTS = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;
const PARSER_RUNS = Math.floor(INPUTS / 2 / 6);
const SEED = testSeed();
const MIB = 2 ** 20;
const SEGMENT_BYTES_MAX = 64 * 1024;

/** A value, or `ISCSI_PROTOCOL`. */
function orProtocolError(work: () => void): void {
  try {
    work();
  } catch (error) {
    assert.ok(isGodwitError(error, 'ISCSI_PROTOCOL'), String((error as Error).stack));
  }
}
const runs = (t: TestContext, numRuns = PARSER_RUNS): fc.Parameters<unknown> => {
  t.diagnostic(`${numRuns} inputs, GODWIT_SEED=${SEED}`);
  return { numRuns, seed: SEED };
};

// --- parsers
// -----------------------------------------------------------------------------------------------------------

test('any 48 bytes are a header to every decoder', (t) => {
  const decoders = Object.entries(pdus).filter(([name]) => /^decode(?!Lun)/.test(name));
  assert.ok(decoders.length > 12);
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 48, maxLength: 48 }), (bytes) => {
      for (const [, decode] of decoders) (decode as (header: Buffer) => unknown)(Buffer.from(bytes));
    }),
    runs(t),
  );
});

test('any bytes in any pieces: PDUs or a protocol error, and never a buffer above the limit', (t) => {
  const nearly = fc
    .record({
      head: fc.uint8Array({ minLength: 48, maxLength: 48 }),
      ahs: fc.constantFrom(0, 0, 1, 255),
      dataBytes: fc.constantFrom(0, 1, 4, 512, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MAX + 1, 0xffffff),
      body: fc.uint8Array({ maxLength: 600 }),
    })
    .map(({ head, ahs, dataBytes, body }) => {
      const header = Buffer.from(head);
      header[4] = ahs;
      pdus.setDataSegmentBytes(header, dataBytes);
      return Buffer.concat([header, body]);
    });
  fc.assert(
    fc.property(
      fc.array(fc.oneof(nearly, fc.uint8Array({ maxLength: 200 })), { maxLength: 4 }),
      fc.integer({ min: 1, max: 300 }),
      fc.boolean(),
      (parts, pieceBytes, digests) => {
        const parser = new PduParser(
          {
            destination: (_header, lengthBytes) => {
              assert.ok(lengthBytes <= SEGMENT_BYTES_MAX);
              return null;
            },
            pdu: (_header, ahs, data) => assert.ok(ahs.length <= 1020 && data.length <= SEGMENT_BYTES_MAX),
          },
          { dataSegmentBytesMax: SEGMENT_BYTES_MAX },
        );
        parser.headerDigest = digests;
        parser.dataDigest = digests;
        const bytes = Buffer.concat(parts);
        orProtocolError(() => {
          for (let at = 0; at < bytes.length; at += pieceBytes)
            parser.push(bytes.subarray(at, at + pieceBytes));
        });
      },
    ),
    runs(t),
  );
});

const KEYS = [
  ...[
    'InitiatorName',
    'TargetName',
    'SessionType',
    'AuthMethod',
    'CHAP_A',
    'CHAP_N',
    'CHAP_R',
    'CHAP_I',
    'CHAP_C',
  ],
  ...[
    'HeaderDigest',
    'DataDigest',
    'MaxConnections',
    'InitialR2T',
    'ImmediateData',
    'MaxBurstLength',
    'SendTargets',
  ],
  ...['FirstBurstLength', 'MaxRecvDataSegmentLength', 'ErrorRecoveryLevel', 'X-vendor', 'iSCSIProtocolLevel'],
];
const VALUES = [
  ...[
    INITIATOR_IQN,
    TARGET_IQN,
    'Normal',
    'Discovery',
    'CHAP',
    'None',
    'CHAP,None',
    '5',
    '7',
    '8,7,6,5',
    '0x',
    '0b',
  ],
  ...[
    '0xdeadbeef',
    '0bAAAA',
    'Yes',
    'No',
    'CRC32C,None',
    '0',
    '1',
    '512',
    '16777215',
    '99999999999',
    '-1',
    '',
    'All',
  ],
  ...[`0x${'ab'.repeat(1024)}`, `0x${'a'.repeat(4097)}`, '~', '1~3', 'Reject', 'Irrelevant', 'NotUnderstood'],
];
const text = fc.oneof(
  fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  fc
    .array(
      fc.tuple(
        fc.oneof(fc.constantFrom(...KEYS), fc.string({ maxLength: 70 })),
        fc.oneof(fc.constantFrom(...VALUES), fc.string({ maxLength: 40 })),
        fc.constantFrom('\0', '\0', '\0', '\0\0', '', '\n'),
      ),
      { maxLength: 12 },
    )
    .map((pairs) => Buffer.from(pairs.map(([key, value, end]) => `${key}=${value}${end}`).join(''))),
);

test('any text: pairs or a protocol error; any binary value: bytes or null', (t) => {
  fc.assert(
    fc.property(text, (data) => {
      orProtocolError(() => {
        for (const [, value] of parseTextKeys(data)) {
          const bytes = parseBinary(value);
          assert.ok(bytes === null || bytes.length <= value.length);
        }
      });
    }),
    runs(t),
  );
});

test('any negotiation: an answer or a protocol error, and parameters in their ranges', (t) => {
  const proposal = { HeaderDigest: 'None,CRC32C', MaxBurstLength: '1048576', FirstBurstLength: '65536' };
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.constantFrom(...KEYS), fc.oneof(fc.constantFrom(...VALUES), fc.string())), {
        maxLength: 16,
      }),
      (pairs) => {
        const negotiation = new Negotiation({ ...proposal });
        orProtocolError(() => {
          for (const [key, value] of pairs) negotiation.respond(key, value, { discovery: false });
          const { maxBurstBytes, firstBurstBytes, peerDataSegmentBytes } = negotiation.parameters();
          assert.ok(maxBurstBytes >= 512 && firstBurstBytes >= 512 && peerDataSegmentBytes >= 512);
          assert.ok(
            maxBurstBytes < 2 ** 24 && firstBurstBytes <= maxBurstBytes && peerDataSegmentBytes < 2 ** 24,
          );
        });
      },
    ),
    runs(t),
  );
});

test('any sequence of login requests: nobody gets in without the secret', (t) => {
  const request = fc.record({
    transit: fc.boolean(),
    continues: fc.boolean(),
    currentStage: fc.constantFrom(STAGE.security, STAGE.operational, 2, STAGE.fullFeature),
    nextStage: fc.constantFrom(STAGE.operational, STAGE.fullFeature, 0),
    data: text,
  });
  fc.assert(
    fc.property(fc.array(request, { minLength: 1, maxLength: 6 }), (requests) => {
      const login = new TargetLogin({
        admit: () => ({ credentials: [{ chap: { user: 'u', secret: 'a long secret' }, mutual: null }] }),
        random: systemRandom,
        textBytesMax: 16 * 1024,
        proposal: { HeaderDigest: 'None,CRC32C' },
        dataSegmentBytes: 65536,
      });
      orProtocolError(() => {
        for (const { data, ...flags } of requests) {
          const header = {
            versionMax: 0,
            versionMin: 0,
            isid: Buffer.alloc(6),
            tsih: 0,
            initiatorTaskTag: 0,
          };
          const step = login.step({ ...header, ...flags, cid: 0, cmdSn: 1, expStatSn: 0 }, data);
          assert.notEqual(step.next, 'done');
          if (step.next === 'refused') return;
        }
      });
    }),
    runs(t),
  );
});

test('any command with any data: a result, and the device is never asked for what it does not have', async (t) => {
  const device = new MemoryDevice({ lengthBytes: MIB });
  const lower = async (result: Result | Promise<Result>): Promise<void> => {
    const it = await result;
    if (it.kind === 'sense') assert.equal(it.cause, undefined, String(it.cause));
  };
  const units = [false, true].map(
    (readOnly) =>
      new LogicalUnit({
        device,
        readOnly,
        serial: 's',
        targetIqn: TARGET_IQN,
        transferBytesMax: 256 * 1024,
        monotonicMs: () => 0,
      }),
  );
  const nexuses = ['a', 'b'].map(
    (name) => new Nexus({ port: `iqn.x:${name},i,0x1`, abortTasks: async () => {}, end: () => {} }),
  );
  for (const unit of units) for (const nexus of nexuses) unit.join(nexus);
  const smallFields = fc.array(fc.constantFrom(0, 0, 0, 1, 2, 7, 8, 16, 24, 0x7f, 0xff), {
    minLength: 15,
    maxLength: 15,
  });
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...Object.values(OPERATION)),
      fc.oneof(smallFields, fc.array(fc.nat(255), { minLength: 15, maxLength: 15 })),
      fc.constantFrom(...units),
      fc.constantFrom(...nexuses),
      fc.uint8Array({ maxLength: 64 }),
      async (operation, rest, unit, nexus, bytes) => {
        const command = decodeCommand(Buffer.from([operation, ...rest]));
        const plan = unit.plan(command, nexus);
        if (plan.kind === 'run') {
          await lower(plan.run());
        } else if (plan.kind === 'take') {
          assert.ok(plan.lengthBytes <= 2 * 256 * 1024);
          const data = Buffer.alloc(plan.lengthBytes);
          data.set(bytes.subarray(0, plan.lengthBytes));
          await lower(plan.run(data));
        } else if (plan.kind === 'write') {
          assert.equal(unit.readOnly, false);
          await lower(unit.medium.write(plan.offsetBytes, Buffer.alloc(plan.lengthBytes), plan.after));
        } else if (plan.kind === 'read') {
          await device.read(plan.offsetBytes, Buffer.alloc(plan.lengthBytes));
        }
      },
    ),
    runs(t),
  );
  decodeSense(Buffer.alloc(0));
});

// --- a whole target
// ----------------------------------------------------------------------------------------------------

/** What a client said on its one connection. */
async function record(port: number, talk: (relayPort: number) => Promise<void>): Promise<Buffer> {
  const said: Buffer[] = [];
  const relay = createServer((client) => {
    const target = connect({ host: '127.0.0.1', port });
    client.on('data', (bytes: Buffer) => said.push(Buffer.from(bytes)));
    client.pipe(target).pipe(client);
    for (const socket of [client, target]) socket.on('error', () => {});
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  await talk((relay.address() as import('node:net').AddressInfo).port);
  relay.close();
  await once(relay, 'close');
  return Buffer.concat(said);
}

/** A stream without digests, cut into its PDUs. */
function cut(bytes: Buffer): Buffer[] {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const dataBytes = (bytes[at + 5]! << 16) | (bytes[at + 6]! << 8) | bytes[at + 7]!;
    const end = at + 48 + bytes[at + 4]! * 4 + Math.ceil(dataBytes / 4) * 4;
    parts.push(bytes.subarray(at, end));
    at = end;
  }
  return parts;
}

/**
 * A session that uses what there is: login, reads, writes with and without R2T, discards, extents, flush,
 * logout.
 */
async function recordSession(port: number): Promise<Buffer[]> {
  const bytes = await record(port, async (relayPort) => {
    const initiator = await IscsiInitiator.connect(
      initiatorOptions(relayPort, { chap: null, targetIqn: TARGET_IQN }),
    );
    await initiator.write(0, Buffer.alloc(4096, 1));
    await initiator.read(0, Buffer.alloc(8192));
    await initiator.write(4096, Buffer.alloc(12 * 1024, 2));
    await Promise.all([0, 1, 2].map((index) => initiator.read(index * 4096, Buffer.alloc(4096))));
    await initiator.discard(4096, 4096);
    await initiator.extents(0, MIB, 16);
    await initiator.flush();
    await initiator.close();
  });
  const parts = cut(bytes);
  assert.ok(parts.length > 15 && parts.every((part) => part.length >= 48));
  return parts;
}

type Mutation =
  | { kind: 'bytes'; at: number; values: number[] }
  | { kind: 'length'; pdu: number; dataBytes: number }
  | { kind: 'ahs'; pdu: number; words: number }
  | { kind: 'field'; pdu: number; offset: number; value: number }
  | { kind: 'drop' | 'repeat' | 'swap'; pdu: number }
  | { kind: 'truncate'; at: number }
  | { kind: 'garbage'; pdu: number; bytes: Uint8Array };

const BOUNDARIES = [0, 1, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 512, 65536];
const place = fc.nat(0xffff);
const mutation: fc.Arbitrary<Mutation> = fc.oneof(
  fc.record({
    kind: fc.constant('bytes' as const),
    at: place,
    values: fc.array(fc.nat(255), { maxLength: 8 }),
  }),
  fc.record({
    kind: fc.constant('length' as const),
    pdu: place,
    dataBytes: fc.constantFrom(0, 1, 3, 48, 511, 513, 65535, 262144, 262145, 0xffffff),
  }),
  fc.record({ kind: fc.constant('ahs' as const), pdu: place, words: fc.constantFrom(1, 2, 16, 255) }),
  fc.record({
    kind: fc.constant('field' as const),
    pdu: place,
    offset: fc.constantFrom(0, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44),
    value: fc.oneof(fc.constantFrom(...BOUNDARIES), fc.nat(0xffffffff)),
  }),
  fc.record({ kind: fc.constantFrom('drop' as const, 'repeat' as const, 'swap' as const), pdu: place }),
  fc.record({ kind: fc.constant('truncate' as const), at: place }),
  fc.record({ kind: fc.constant('garbage' as const), pdu: place, bytes: fc.uint8Array({ maxLength: 400 }) }),
);

function mutate(corpus: readonly Buffer[], isid: number, mutations: readonly Mutation[]): Buffer {
  let parts = corpus.map((part) => Buffer.from(part));
  // Sessions of their own, most of the time.
  for (const part of parts) if ((part[0]! & 0x3f) === OPCODE.loginRequest) part.writeUInt32BE(isid, 10);
  let stream: Buffer | null = null;
  for (const change of mutations) {
    if (change.kind === 'bytes' || change.kind === 'truncate') {
      stream ??= Buffer.concat(parts);
      const at = change.at % Math.max(1, Math.min(stream.length, 8192));
      if (change.kind === 'truncate') stream = stream.subarray(0, at);
      else
        for (const [index, value] of change.values.entries())
          if (at + index < stream.length) stream[at + index] = value;
      continue;
    }
    if (stream !== null || parts.length === 0) continue;
    const index = change.pdu % parts.length;
    const part = parts[index]!;
    // Garbage of an earlier change.
    if (part.length < 48) continue;
    switch (change.kind) {
      case 'length':
        pdus.setDataSegmentBytes(part, change.dataBytes);
        break;
      case 'ahs':
        part[4] = change.words;
        break;
      case 'field':
        part.writeUInt32BE(change.value, change.offset);
        break;
      case 'drop':
        parts.splice(index, 1);
        break;
      case 'repeat':
        parts.splice(index, 0, part);
        break;
      case 'swap':
        parts = parts.toSpliced(index, 1).toSpliced((index + 1) % parts.length, 0, part);
        break;
      case 'garbage':
        parts = [...parts.slice(0, index), Buffer.from(change.bytes)];
        break;
    }
  }
  return stream ?? Buffer.concat(parts);
}

/**
 * The stream begins with the login of the corpus, whatever its ISID: one request, complete, with nothing
 * changed that matters.
 */
function isLogin(bytes: Buffer, loginBytes: number): boolean {
  const header = bytes.subarray(0, 48);
  return (
    bytes.length >= loginBytes &&
    header[0] === (OPCODE.loginRequest | pdus.IMMEDIATE) &&
    header[4] === 0 &&
    48 + Math.ceil(pdus.dataSegmentBytesOf(header) / 4) * 4 === loginBytes
  );
}

/**
 * Sends all of it in pieces, takes whatever comes, and resolves when the connection is gone. What follows the
 * login waits a little for the answer, as a target may drop a peer that does not.
 */
async function throwAt(
  port: number,
  bytes: Buffer,
  options: { loginBytes: number; pieceBytes: number; rude: boolean },
): Promise<void> {
  const { loginBytes, pieceBytes, rude } = options;
  const socket: Socket = connect({ host: '127.0.0.1', port, noDelay: true });
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  const answered = new Promise<void>((resolve) => socket.once('data', () => resolve()));
  socket.on('error', () => {});
  socket.on('data', () => {});
  socket.write(bytes.subarray(0, loginBytes));
  // A login that is whole gets an answer; what became of it otherwise, nobody knows.
  await Promise.race(
    isLogin(bytes, loginBytes) ? [answered, closed] : [answered, closed, systemClock.sleep(5)],
  );
  for (let at = loginBytes; at < bytes.length; at += pieceBytes) {
    if (socket.destroyed) break;
    socket.write(bytes.subarray(at, at + pieceBytes));
  }
  if (rude) socket.write('', () => reset(socket));
  else socket.end();
  await closed;
}

test('a target that is shot at goes on serving, forgets every connection and holds little memory', async (t) => {
  const fodder = new MemoryDevice({ lengthBytes: 4 * MIB });
  const { target, share } = await startTarget(t, fodder, {
    grant: { chap: null },
    // Small bursts, so that a small write has all the phases.
    limits: { loginDelayMs: 0, loginDelayMsMax: 0, firstBurstBytesMax: 2048, burstBytesMax: 4096 },
  });
  const corpus = await recordSession(target.port);
  const loginBytes = corpus
    .filter((part) => (part[0]! & 0x3f) === OPCODE.loginRequest)
    .reduce((sum, part) => sum + part.length, 0);
  const servedBefore = target.statistics().bytesServed;
  const content = Buffer.from(seededRandom(3).bytes(MIB));
  const canary = target.addExport({
    targetIqn: `${TARGET_IQN}-canary`,
    device: new MemoryDevice({ lengthBytes: MIB, content }),
    serial: 'canary',
    generation: 3,
  });
  canary.grant(GRANT);
  const initiator = await startInitiator(t, target.port, { targetIqn: canary.targetIqn, readOnly: true });
  const into = Buffer.alloc(MIB);
  const input = fc.record({
    isid: fc.nat(0xffffffff),
    mutations: fc.array(mutation, { minLength: 0, maxLength: 3 }),
    pieceBytes: fc.constantFrom(1 << 20, 1 << 20, 1460, 1460, 470, 47),
    rude: fc.constantFrom(false, false, false, true),
  });
  const together = 20;
  const numRuns = Math.floor(INPUTS / 2 / together);
  let residentAfterWarmUp = 0;
  let round = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(input, { minLength: together, maxLength: together }), async (inputs) => {
      await Promise.all(
        inputs.map(({ isid, mutations, pieceBytes, rude }) =>
          throwAt(target.port, mutate(corpus, isid, mutations), { loginBytes, pieceBytes, rude }),
        ),
      );
      into.fill(0);
      await initiator.read(0, into);
      assert.ok(into.equals(content), 'the other export is as it was');
      assert.equal(initiator.state, 'connected');
      round += 1;
      if (round === Math.ceil(numRuns / 4)) residentAfterWarmUp = process.memoryUsage().rss;
    }),
    { ...runs(t, numRuns), endOnFailure: true },
  );
  const grownMib = (process.memoryUsage().rss - residentAfterWarmUp) / MIB;
  t.diagnostic(
    `${numRuns * together} connections, resident memory grew by ${grownMib.toFixed(0)} MiB in the last three quarters`,
  );
  assert.ok(grownMib < 256, `${grownMib} MiB`);
  const servedMib = (target.statistics().bytesServed - servedBefore) / MIB;
  t.diagnostic(`${servedMib.toFixed(0)} MiB were served meanwhile`);
  // The canary reads 1 MiB a round; the rest is what shots that came as far as reading got.
  assert.ok(servedMib > 1.02 * numRuns, 'many inputs get past the login');
  while (target.statistics().connections > 1) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(share.sessions, 0);
  // The unit that was shot at may be stopped or reserved by now, as any logged-in initiator may do. The other
  // one takes new sessions as before.
  const another = await startInitiator(t, target.port, { targetIqn: canary.targetIqn, readOnly: true });
  await another.read(0, into);
  assert.ok(into.equals(content));
});

test('many small requests of one peer leave the others their turns of the loop', async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }), { grant: { chap: null } });
  const corpus = await recordSession(target.port);
  const socket = connect({ host: '127.0.0.1', port: target.port });
  t.after(() => socket.destroy());
  const login = corpus.filter((part) => (part[0]! & 0x3f) === OPCODE.loginRequest);
  assert.equal(login.length, 1);
  socket.write(login[0]!);
  await once(socket, 'data');
  const nop = Buffer.alloc(48);
  const quiet = { immediate: true, initiatorTaskTag: 0xffffffff, targetTransferTag: 0xffffffff };
  pdus.encodeNopOut(nop, { ...quiet, cmdSn: 1, expStatSn: 1 });
  const ping = Buffer.alloc(48);
  pdus.encodeNopOut(ping, { ...quiet, initiatorTaskTag: 7, cmdSn: 1, expStatSn: 1 });
  const requests = 20_000;
  const turns = await turnsOf(async () => {
    socket.write(Buffer.concat([Buffer.alloc(requests * nop.length, nop), ping]));
    const [answer] = (await once(socket, 'data')) as [Buffer];
    assert.equal(answer[0]! & 0x3f, OPCODE.nopIn);
  });
  t.diagnostic(`${requests} requests in ${turns} turns`);
  assert.ok(turns >= requests / 256, `${requests} requests in ${turns} turns`);
});

// --- grants
// ------------------------------------------------------------------------------------------------------------

type Refusal = { status: string; reason: string; initiator: string | null };

test('wrong secret, wrong name, expired grant, replayed login: refused, logged, and slower each time', async (t) => {
  const refusals: Refusal[] = [];
  const delaysMs: number[] = [];
  const logger = {
    ...silentLogger,
    warn: (fields: object, message: string) => {
      if (message === 'iSCSI: login refused') refusals.push(fields as Refusal);
    },
    child: () => logger,
  };
  const target = await IscsiTarget.listen({
    host: '127.0.0.1',
    port: 0,
    random: systemRandom,
    logger,
    limits: { loginDelayMs: 100, loginDelayMsMax: 1600 },
    clients: new ClientBook(systemClock),
    // The clock stands still, and login delays pass at once and are written down.
    clock: {
      ...systemClock,
      monotonicMs: () => 0,
      timer: (delayMs, callback) => {
        if (delayMs > 1600) return systemClock.timer(delayMs, callback);
        delaysMs.push(delayMs);
        return systemClock.timer(0, callback);
      },
    },
  });
  t.after(() => target.close());
  const share = target.addExport({
    targetIqn: TARGET_IQN,
    device: new MemoryDevice({ lengthBytes: MIB }),
    serial: 's',
    generation: 3,
  });
  share.grant(GRANT);
  const replay = cut(
    await record(target.port, async (port) => {
      const initiator = await IscsiInitiator.connect(initiatorOptions(port));
      await initiator.close();
    }),
  );
  assert.deepEqual(delaysMs, []);
  const attempt = async (options: Parameters<typeof initiatorOptions>[1]): Promise<void> => {
    await assert.rejects(IscsiInitiator.connect(initiatorOptions(target.port, options)), (error) =>
      isGodwitError(error, 'ISCSI_LOGIN_REFUSED'),
    );
  };
  const user = GRANT.chap!.user;
  await attempt({ chap: { user, secret: 'not the secret' } });
  await attempt({ chap: { user: 'somebody', secret: GRANT.chap!.secret } });
  await attempt({ initiatorIqn: 'iqn.2026-01.dev.godwit:worker-9' });
  // One request at a time, as the target wants it; the answers are not looked at.
  const socket = connect({ host: '127.0.0.1', port: target.port });
  socket.on('error', () => {});
  const closed = once(socket, 'close');
  for (const part of replay) {
    if (socket.destroyed || (part[0]! & 0x3f) !== OPCODE.loginRequest) break;
    socket.write(part);
    await Promise.race([once(socket, 'data'), closed]);
  }
  await closed;
  share.grant({ ...GRANT, generation: 2 });
  await attempt({});
  assert.deepEqual(
    refusals.map(({ status, reason }) => [status, reason]),
    [
      ['authenticationFailure', 'wrong CHAP user or secret'],
      ['authenticationFailure', 'wrong CHAP user or secret'],
      ['authorizationFailure', 'no grant for this initiator and generation'],
      ['authenticationFailure', 'wrong CHAP user or secret'],
      ['authorizationFailure', 'no grant for this initiator and generation'],
    ],
  );
  assert.equal(refusals[2]!.initiator, 'iqn.2026-01.dev.godwit:worker-9');
  assert.equal(delaysMs.length, 5);
  for (const [index, delayMs] of delaysMs.entries()) {
    assert.ok(
      delayMs >= 100 && (index === 0 || delayMs > delaysMs[index - 1]! || delayMs === 1600),
      `${delaysMs}`,
    );
  }
});
