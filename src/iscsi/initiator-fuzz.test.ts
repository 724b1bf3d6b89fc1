import assert from 'node:assert/strict';
import { createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import fc from 'fast-check';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { assertInBatches } from '../../test/support/fuzz.ts';
import { initiatorOptions } from '../../test/support/iscsi-pair.ts';
import { letPass } from '../../test/support/patience.ts';
import { testSeed } from '../../test/support/seed.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ChunkWriter } from '../base/chunk-writer.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import { seededRandom } from '../base/random.ts';
import { RemoteRequest } from '../remote/request.ts';
import { OPCODE } from './constants.ts';
import { IscsiInitiator } from './initiator.ts';
import { InitiatorSession, type InitiatorTask, type ScsiCommand } from './initiator-session.ts';
import {
  emptyHeader,
  encodeDataIn,
  encodeLoginResponse,
  encodeNopIn,
  encodeReadyToTransfer,
  encodeScsiResponse,
  initiatorTaskTagOf,
  opcodeOf,
  setDataSegmentBytes,
} from './pdu.ts';
import { PduParser } from './pdu-parser.ts';
import { PduWriter } from './pdu-writer.ts';
import { OPERATION } from './scsi/command.ts';
import { formatTextKeys } from './text-keys.ts';

/* Hostile targets. 20,000 inputs; GODWIT_LONG=1: 1,000,000. */

const LONG = process.env.GODWIT_LONG === '1';
const SEED = testSeed();
const RUNS = LONG ? 500_000 : 10_000;
const INTERVAL_MS = 3_000;
const TIMEOUT_MS = 5_000;
const TASK_BYTES = 8192;
const COUNTERS = { statSn: 1, expCmdSn: 1, maxCmdSn: 64 };

function pdu(header: Buffer, data: Uint8Array = Buffer.alloc(0)): Buffer {
  setDataSegmentBytes(header, data.length);
  return Buffer.concat([header, data, Buffer.alloc(-data.length & 3)]);
}

function loginResponse(text: [string, string][], fields: { stage?: number; transit?: boolean } = {}): Buffer {
  const header = emptyHeader();
  encodeLoginResponse(header, {
    ...{ transit: fields.transit ?? true, continues: false, currentStage: fields.stage ?? 1, nextStage: 3 },
    ...{ versionMax: 0, versionActive: 0, isid: Buffer.alloc(6), tsih: 1, initiatorTaskTag: 0, status: 0 },
    ...COUNTERS,
  });
  return pdu(header, formatTextKeys(text));
}

type Subject = {
  session: InitiatorSession;
  clock: FakeClock;
  writer: PduWriter;
  over: () => GodwitError[];
  /** In the order of their answers. */
  answered: InitiatorTask[];
  push: (bytes: Buffer, step: number) => void;
};

function newSession(chap: boolean): Subject {
  const clock = new FakeClock();
  // The other side takes nothing: what is queued stays queued.
  const writer = new PduWriter(new ChunkWriter(() => {}, pool));
  const errors: GodwitError[] = [];
  const answered: InitiatorTask[] = [];
  const session = new InitiatorSession({
    writer,
    login: {
      initiatorName: 'iqn.i',
      targetName: 'iqn.t',
      chap: chap
        ? { user: 'u', secret: 'secret-secret', mutual: { user: 't', secret: 'another-secret' } }
        : null,
      isid: Buffer.alloc(6),
      random: seededRandom(1),
      textBytesMax: 64 * 1024,
      proposal: {
        ...{ HeaderDigest: 'None', DataDigest: 'None', ImmediateData: 'Yes', InitialR2T: 'Yes' },
        ...{ MaxBurstLength: '1048576', FirstBurstLength: '65536' },
      },
    },
    ...{ lun: 0, dataSegmentBytesMax: 1024 * 1024, clock, logger: silentLogger },
    ...{ keepAliveIntervalMs: INTERVAL_MS, keepAliveTimeoutMs: TIMEOUT_MS },
    onReady: () => {},
    onRoom: () => {},
    onAnswered: (task) => answered.push(task),
    onSent: (task) => {
      task.unsentParts -= 1;
    },
    onOver: (error) => errors.push(error),
  });
  const push = (bytes: Buffer, step: number): void => {
    for (let at = 0; at < bytes.length; ) {
      const space = session.parser.space();
      const count = Math.min(step, space.length, bytes.length - at);
      space.set(bytes.subarray(at, at + count));
      session.landed(count);
      at += count;
      if (errors.length > 0) return;
    }
  };
  session.start();
  return { session, clock, writer, over: () => errors, answered, push };
}

const pool = new BufferPool(64 * 1024 * 1024);

/** An error of ours in words; nothing that only looks like one because a defect was wrapped into it. */
function assertTyped(error: unknown): void {
  assert.ok(error instanceof GodwitError && error.code.startsWith('ISCSI_'), String(error));
  assert.doesNotMatch(error.message, /RangeError|TypeError|Assertion|undefined|Invalid/, error.message);
}

const uint32 = (...usual: number[]) =>
  fc.oneof(
    { weight: 5, arbitrary: fc.constantFrom(...usual) },
    { weight: 1, arbitrary: fc.integer({ min: 0, max: 0xffffffff }) },
    { weight: 1, arbitrary: fc.constantFrom(0, 1, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff) },
  );

/** Any header that a target could send, true or not. */
const hostilePdu = fc
  .record({
    opcode: fc.oneof(
      { weight: 8, arbitrary: fc.constantFrom(...Object.values(OPCODE).filter((code) => code >= 0x20)) },
      { weight: 1, arbitrary: fc.nat(255) },
    ),
    flags: fc.oneof(fc.constantFrom(0x80, 0x81, 0, 1), fc.nat(255)),
    bytes2to3: fc.constantFrom(0, 0x02, 0x18, 0x0100, 0xffff),
    tag: uint32(1, 2, 3, 4, 5, 0xffffffff),
    transferTag: uint32(1, 0xffffffff),
    statSn: uint32(1, 2, 3),
    expCmdSn: uint32(1, 2, 5),
    maxCmdSn: uint32(64, 10, 4),
    sn: uint32(0, 1),
    offset: uint32(0, 512, 4096, 8192),
    desired: uint32(512, 4096, 8192),
    event: fc.nat(5),
    dataBytes: fc.constantFrom(0, 0, 1, 18, 512, 4096, 8192, 9000),
    lie: fc.oneof(
      { weight: 4, arbitrary: fc.constant(null) },
      { weight: 1, arbitrary: fc.constantFrom(0, 1, 511, 8193, 2 ** 20, 2 ** 20 + 1, 2 ** 24 - 1) },
    ),
    ahsWords: fc.oneof({ weight: 9, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(255) }),
    random: fc.nat(),
  })
  .map((f) => {
    const header = emptyHeader();
    header[0] = f.opcode;
    header[1] = f.flags;
    header.writeUInt16BE(f.bytes2to3, 2);
    header.writeUInt32BE(f.tag, 16);
    header.writeUInt32BE(f.transferTag, 20);
    header.writeUInt32BE(f.statSn, 24);
    header.writeUInt32BE(f.expCmdSn, 28);
    header.writeUInt32BE(f.maxCmdSn, 32);
    header.writeUInt32BE(f.opcode === OPCODE.asyncMessage ? f.event << 24 : f.sn, 36);
    header.writeUInt32BE(f.offset, 40);
    header.writeUInt32BE(f.desired, 44);
    const data = Buffer.alloc(f.dataBytes, f.random & 0xff);
    if (data.length >= 20) data.writeUInt16BE(f.random & 0xffff, 0);
    const whole = pdu(header, data);
    if (f.lie !== null) whole.writeUIntBE(f.lie, 5, 3);
    whole[4] = f.ahsWords;
    return whole;
  });

/** What a good target would send next, so that inputs get past the first PDU. */
const goodPdu = fc.constantFrom(
  ...[0, 1].map((half) => {
    const header = emptyHeader();
    const at = half * (TASK_BYTES / 2);
    encodeDataIn(header, {
      ...{ final: half === 1, hasStatus: half === 1, status: 0, initiatorTaskTag: 1, dataSn: half },
      ...{ bufferOffset: at, residualBytes: 0, ...COUNTERS },
    });
    return pdu(header, Buffer.alloc(TASK_BYTES / 2, 7));
  }),
  ...[0, 512, 4096].map((bufferOffset) => {
    const header = emptyHeader();
    const asked = { bufferOffset, desiredBytes: 4096 };
    encodeReadyToTransfer(header, {
      ...{ lun: 0, initiatorTaskTag: 2, targetTransferTag: 9, r2tSn: 0, ...asked, ...COUNTERS },
    });
    return pdu(header);
  }),
  ...[2, 3].map((initiatorTaskTag) => {
    const header = emptyHeader();
    const end = { response: 0, status: 0, residualBytes: 0, expDataSn: 0 };
    encodeScsiResponse(header, { initiatorTaskTag, ...end, ...COUNTERS });
    return pdu(header);
  }),
  ...[1, 0xffffffff].map((targetTransferTag) => {
    const header = emptyHeader();
    encodeNopIn(header, { initiatorTaskTag: 0xffffffff, targetTransferTag, ...COUNTERS });
    return pdu(header);
  }),
);

const stream = fc.array(
  fc.oneof(
    { weight: 5, arbitrary: hostilePdu },
    { weight: 5, arbitrary: goodPdu },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)) },
    { weight: 1, arbitrary: fc.tuple(hostilePdu, fc.nat(100)).map(([bytes, cut]) => bytes.subarray(0, cut)) },
  ),
  { minLength: 1, maxLength: 12 },
);
const steps = fc.constantFrom(1, 7, 48, 1460, 65536);

test('full feature phase: every input ends in order, in bounded memory, inside the buffers', async () => {
  // The task's buffer lies in the middle of one that must not change.
  const field = Buffer.alloc(3 * TASK_BYTES, 0xcc);
  const untouched = Buffer.alloc(TASK_BYTES, 0xcc);
  const out = Buffer.alloc(TASK_BYTES, 0x11);
  await assertInBatches(
    fc.property(stream, steps, fc.constantFrom('512', '8192'), (pdus, step, peerBytes) => {
      const { session, clock, writer, over, answered, push } = newSession(false);
      push(
        loginResponse([
          ['MaxRecvDataSegmentLength', peerBytes],
          ['FirstBurstLength', '512'],
        ]),
        65536,
      );
      const task = (direction: ScsiCommand['direction'], buffer: Uint8Array): InitiatorTask => {
        const command = { counts: null, operation: 0, direction, answers: false, encode: () => {} };
        const never = () => assert.fail('a session settles nothing');
        return new RemoteRequest<ScsiCommand>(command, 0, buffer.length, buffer, 0, never, never);
      };
      const reads = task('in', field.subarray(TASK_BYTES, 2 * TASK_BYTES));
      const tasks = [reads, task('out', out), task('none', new Uint8Array(0))];
      for (const one of tasks) session.send(one);
      for (const bytes of pdus) {
        push(bytes, step);
        if (over().length > 0) break;
      }
      assert.ok(writer.queuedBytes < 64 * 1024, `${writer.queuedBytes} bytes are queued`);
      assert.ok(reads.movedBytes <= TASK_BYTES);
      assert.equal(new Set(answered).size, answered.length, 'answered once');
      assert.ok(field.subarray(0, TASK_BYTES).equals(untouched));
      assert.ok(field.subarray(2 * TASK_BYTES).equals(untouched));
      // Whatever it waits for, silence ends it.
      clock.advance(2 * INTERVAL_MS + TIMEOUT_MS);
      assert.equal(over().length, 1);
      assertTyped(over()[0]);
      writer.close();
      assert.ok(tasks.every(({ unsentParts }) => unsentParts === 0));
    }),
    { numRuns: RUNS, seed: SEED },
  );
});

const loginKey = fc.constantFrom(
  ...['AuthMethod', 'CHAP_A', 'CHAP_I', 'CHAP_C', 'CHAP_N', 'CHAP_R', 'HeaderDigest', 'DataDigest', 'X-odd'],
  ...[
    'MaxRecvDataSegmentLength',
    'MaxBurstLength',
    'FirstBurstLength',
    'InitialR2T',
    'TargetAddress',
    'bad key',
  ],
);
const loginValue = fc.oneof(
  fc.constantFrom(
    'CHAP',
    'None',
    'CRC32C',
    'Yes',
    'No',
    '5',
    '7',
    '0',
    '-1',
    '255',
    '512',
    '16777215',
    '16777216',
  ),
  fc.constantFrom(
    '0x',
    `0x${'ab'.repeat(16)}`,
    `0x${'0'.repeat(4096)}`,
    '0bAAAA',
    'Reject',
    '',
    '9'.repeat(400),
  ),
  fc.string({ maxLength: 40 }),
);
const hostileLogin = fc
  .record({
    pairs: fc.array(fc.tuple(loginKey, loginValue), { maxLength: 5 }),
    flags: fc.oneof(fc.constantFrom(0x81, 0x87, 0x80, 0x00, 0x04, 0x44, 0xc4), fc.nat(255)),
    status: fc.constantFrom(0, 0, 0, 0, 0x0101, 0x0201, 0x0301, 0xffff),
    version: fc.constantFrom(0, 0, 0, 1),
  })
  .map((f) => {
    const whole = loginResponse(f.pairs);
    whole[1] = f.flags;
    whole[3] = f.version;
    whole.writeUInt16BE(f.status, 36);
    return whole;
  });

test('login: every input ends in order', async () => {
  const chapStart = loginResponse([['AuthMethod', 'CHAP']], { stage: 0, transit: false });
  const challenge: [string, string][] = [
    ['CHAP_A', '5'],
    ['CHAP_I', '1'],
    ['CHAP_C', `0x${'ab'.repeat(16)}`],
  ];
  const chapChallenge = loginResponse(challenge, { stage: 0, transit: false });
  const start = fc.constantFrom<Buffer[]>([], [chapStart], [chapStart, chapChallenge]);
  await assertInBatches(
    fc.property(
      fc.boolean(),
      start,
      fc.array(fc.oneof(hostileLogin, hostilePdu), { maxLength: 8 }),
      steps,
      (chap, good, bad, step) => {
        const { session, clock, writer, over, push } = newSession(chap);
        for (const bytes of [...good, ...bad]) push(bytes, step);
        assert.ok(writer.queuedBytes < 64 * 1024);
        // Before the full feature phase whoever dialled has the deadline; after it, silence ends the session.
        clock.advance(2 * INTERVAL_MS + TIMEOUT_MS);
        session.fail(new GodwitError('ISCSI_LOGIN_TIMEOUT', 'too late', { nextAction: '-' }));
        assert.equal(over().length, 1);
        assertTyped(over()[0]);
        writer.close();
      },
    ),
    { numRuns: RUNS, seed: SEED },
  );
});

test('a target that pings for ever and takes no answer is left', () => {
  const { writer, over, push } = newSession(false);
  push(loginResponse([]), 65536);
  const header = emptyHeader();
  encodeNopIn(header, { initiatorTaskTag: 0xffffffff, targetTransferTag: 1, ...COUNTERS });
  const pings = Buffer.concat(Array.from({ length: 1000 }, () => pdu(header)));
  for (let count = 0; count < 1000 && over().length === 0; count += 1) push(pings, 65536);
  assert.equal(over()[0]?.code, 'ISCSI_PROTOCOL');
  assert.ok(writer.queuedBytes < 1024 * 1024);
});

/**
 * Logs in whoever comes, and answers commands with what `answer` says: bytes as an answer to the CDB, or null
 * for nothing at all.
 */
async function serveAnswers(
  answer: (cdb: Buffer) => Uint8Array | null,
): Promise<{ port: number; close: () => void }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    const parser = new PduParser(
      {
        destination: () => null,
        pdu: (header) => {
          if (opcodeOf(header) === OPCODE.loginRequest) socket.write(loginResponse([]));
          if (opcodeOf(header) === OPCODE.logoutRequest) socket.end();
          if (opcodeOf(header) !== OPCODE.scsiCommand) return;
          const data = answer(header.subarray(32));
          if (data === null) return;
          const reply = emptyHeader();
          encodeDataIn(reply, {
            ...{ final: true, hasStatus: true, status: 0, initiatorTaskTag: initiatorTaskTagOf(header) },
            ...{ dataSn: 0, bufferOffset: 0, residualBytes: 0, ...COUNTERS, maxCmdSn: 0x7fffff },
          });
          socket.write(pdu(reply, data.subarray(0, header.readUInt32BE(20))));
        },
      },
      { dataSegmentBytesMax: 1024 * 1024 },
    );
    socket.on('data', (bytes: Buffer) => parser.push(bytes));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as import('node:net').AddressInfo;
  const close = (): void => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  return { port, close };
}

test('what a unit says about itself and its holes may be anything', async () => {
  const answers = fc.record({
    capacity: fc.option(fc.uint8Array({ maxLength: 40 }), { freq: 3 }),
    page: fc.uint8Array({ maxLength: 80 }),
    lba: fc.uint8Array({ maxLength: 120 }),
  });
  await fc.assert(
    fc.asyncProperty(answers, async ({ capacity, page, lba }) => {
      const good = Buffer.alloc(32);
      good.writeBigUInt64BE(2047n, 0);
      good.writeUInt32BE(512, 8);
      good[14] = 0xc0;
      const server = await serveAnswers((cdb) => {
        if (cdb[0] !== OPERATION.serviceActionIn16) return page;
        return (cdb[1]! & 0x1f) === 0x10 ? (capacity ?? good) : lba;
      });
      try {
        const initiator = await IscsiInitiator.connect(initiatorOptions(server.port, { chap: null }), {
          timeoutMs: letPass(60),
        });
        try {
          const extents = await initiator.extents(0, initiator.lengthBytes, 16);
          // In order, without gaps, inside.
          let at = 0;
          for (const extent of extents) {
            assert.equal(extent.offsetBytes, at);
            assert.ok(extent.lengthBytes > 0);
            at += extent.lengthBytes;
          }
          assert.ok(at <= initiator.lengthBytes);
        } finally {
          await initiator.close();
        }
      } catch (error) {
        if (!isGodwitError(error)) throw error;
        assertTyped(error);
      } finally {
        server.close();
      }
    }),
    { numRuns: LONG ? 5_000 : 100 },
  );
});
