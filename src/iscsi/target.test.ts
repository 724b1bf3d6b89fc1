import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { DelayDevice } from '../../test/support/delay-device.ts';
import { FaultDevice } from '../../test/support/fault-device.ts';
import { HeldDevice } from '../../test/support/held-device.ts';
import {
  GRANT,
  INITIATOR_IQN,
  initiatorOptions,
  startInitiator,
  startTarget,
  TARGET_IQN,
} from '../../test/support/iscsi-pair.ts';
import { patient, until } from '../../test/support/patience.ts';
import { PowerSupply } from '../../test/support/power-supply.ts';
import { reached } from '../../test/support/remote-state.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { ASYNC_EVENT, LOGIN_STATUS, OPCODE, STAGE, TASK_FUNCTION, TASK_RESPONSE } from './constants.ts';
import { IscsiInitiator } from './initiator.ts';
import type { InitiatorOptions } from './initiator-dialect.ts';
import { TARGET_LIMITS } from './limits.ts';
import {
  decodeAsyncMessage,
  decodeLoginResponse,
  decodeNopIn,
  decodeScsiResponse,
  decodeTaskManagementResponse,
  encodeDataOut,
  encodeLoginRequest,
  encodeNopOut,
  encodeScsiCommand,
  encodeTaskManagementRequest,
  encodeTextRequest,
  opcodeOf,
  setDataSegmentBytes,
} from './pdu.ts';
import { PduParser } from './pdu-parser.ts';
import { encodeReadWrite16, OPERATION } from './scsi/command.ts';
import { decodeSense, SENSE, SENSE_KEY, STATUS } from './scsi/sense.ts';
import { formatTextKeys, parseTextKeys, type TextPair } from './text-keys.ts';

const MIB = 1024 * 1024;

function memory(): MemoryDevice {
  return new MemoryDevice({ lengthBytes: 4 * MIB, content: seededRandom(5).bytes(MIB) });
}

type Received = { header: Buffer; data: Buffer };

/** A peer that says exactly what it is told to, right or wrong. */
class RawPeer {
  readonly socket: Socket;
  readonly closed: Promise<void>;
  readonly #received: Received[] = [];
  #wake: () => void = () => {};
  #isClosed = false;

  constructor(t: TestContext, port: number) {
    this.socket = connect({ host: '127.0.0.1', port });
    t.after(() => this.socket.destroy());
    this.socket.on('error', () => {});
    const parser = new PduParser(
      {
        destination: () => null,
        pdu: (header, _ahs, data) => {
          this.#received.push({ header: Buffer.from(header), data: Buffer.from(data) });
          this.#wake();
        },
      },
      { dataSegmentBytesMax: 2 ** 24 },
    );
    this.socket.on('data', (bytes: Buffer) => parser.push(bytes));
    this.closed = new Promise((resolve) => {
      this.socket.on('close', () => {
        this.#isClosed = true;
        this.#wake();
        resolve();
      });
    });
  }

  send(encode: (header: Buffer) => void, data: Uint8Array = new Uint8Array(0)): void {
    const header = Buffer.alloc(48);
    encode(header);
    setDataSegmentBytes(header, data.length);
    this.socket.write(Buffer.concat([header, data, Buffer.alloc(-data.length & 3)]));
  }

  /** The next PDU, or null when the target has closed. */
  async next(): Promise<Received | null> {
    while (this.#received.length === 0 && !this.#isClosed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#received.shift() ?? null;
  }

  login(
    pairs: TextPair[],
    options: { stage?: number; isid?: string; tsih?: number; versionMin?: number } = {},
  ): void {
    this.send(
      (header) =>
        encodeLoginRequest(header, {
          transit: true,
          continues: false,
          currentStage: options.stage ?? STAGE.operational,
          nextStage: STAGE.fullFeature,
          versionMax: options.versionMin ?? 0,
          versionMin: options.versionMin ?? 0,
          isid: Buffer.from(options.isid ?? '800000010000', 'hex'),
          tsih: options.tsih ?? 0,
          initiatorTaskTag: 0,
          cid: 0,
          cmdSn: 100,
          expStatSn: 0,
        }),
      formatTextKeys(pairs),
    );
  }

  async loginStatus(): Promise<number> {
    const answer = await this.next();
    assert.ok(answer !== null, 'the target answers the login');
    assert.equal(opcodeOf(answer.header), OPCODE.loginResponse);
    return decodeLoginResponse(answer.header).status;
  }

  read(tag: number, cmdSn: number, lba: number, blocks: number): void {
    this.send((header) => {
      encodeScsiCommand(header, {
        immediate: false,
        final: true,
        reads: true,
        writes: false,
        lun: 0,
        initiatorTaskTag: tag,
        expectedBytes: blocks * 512,
        cmdSn,
        expStatSn: 0,
      });
      encodeReadWrite16(header.subarray(32), OPERATION.read16, lba, blocks);
    });
  }
}

const NAMES: TextPair[] = [
  ['InitiatorName', INITIATOR_IQN],
  ['TargetName', TARGET_IQN],
  ['SessionType', 'Normal'],
];

/** Logged in, without CHAP. */
async function loggedIn(t: TestContext, device: BlockDevice): Promise<RawPeer> {
  const { target } = await startTarget(t, device, { grant: { chap: null } });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  return peer;
}

async function refusal(port: number, options: Partial<InitiatorOptions>): Promise<string> {
  try {
    const initiator = await IscsiInitiator.connect(initiatorOptions(port, options));
    await initiator.close();
    return 'let in';
  } catch (error) {
    assert.ok(isGodwitError(error, 'ISCSI_LOGIN_REFUSED'), String(error));
    return String(error.values.status);
  }
}

test('a login that fits no grant is refused with the reason of the RFC', async (t) => {
  const { target, share } = await startTarget(t, memory());
  const { port } = target;
  assert.equal(await refusal(port, {}), 'let in');
  assert.equal(
    await refusal(port, { chap: { user: 'worker-2', secret: 'wrong horse!' } }),
    'authenticationFailure',
  );
  assert.equal(
    await refusal(port, { chap: { user: 'worker-3', secret: 'correct horse' } }),
    'authenticationFailure',
  );
  assert.equal(await refusal(port, { chap: null }), 'authenticationFailure');
  assert.equal(
    await refusal(port, { initiatorIqn: 'iqn.2026-01.dev.godwit:worker-3' }),
    'authorizationFailure',
  );
  assert.equal(await refusal(port, { targetIqn: 'iqn.2026-01.dev.godwit:other' }), 'notFound');
  share.grant({ ...GRANT, generation: 4 });
  assert.equal(await refusal(port, {}), 'authorizationFailure');
  share.revoke(INITIATOR_IQN);
  assert.equal(await refusal(port, {}), 'authorizationFailure');
});

for (const algorithm of ['md5', 'sha1', 'sha256', 'sha3_256'] as const) {
  test(`mutual CHAP with ${algorithm}`, async (t) => {
    const mutualChap = { user: 'volume', secret: 'battery staple' };
    const { target } = await startTarget(t, memory(), { grant: { mutualChap } });
    const chap = { ...GRANT.chap!, algorithms: [algorithm] };
    assert.equal(await refusal(target.port, { chap: { ...chap, mutual: mutualChap } }), 'let in');
    await assert.rejects(
      IscsiInitiator.connect(
        initiatorOptions(target.port, {
          chap: { ...chap, mutual: { user: 'volume', secret: 'something else' } },
        }),
      ),
      (error) => isGodwitError(error, 'ISCSI_TARGET_NOT_AUTHENTIC'),
    );
  });
}

test('one secret for both directions is refused when it is granted', async (t) => {
  const { share } = await startTarget(t, memory());
  assert.throws(
    () => share.grant({ ...GRANT, mutualChap: { user: 'x', secret: GRANT.chap!.secret } }),
    (error) => isGodwitError(error, 'ISCSI_BAD_GRANT'),
  );
});

test('our own challenge sent back is refused', async (t) => {
  const mutualChap = { user: 'volume', secret: 'battery staple' };
  const { target } = await startTarget(t, memory(), { grant: { mutualChap } });
  const { chapResponse } = await import('./chap.ts');
  const { parseBinary, formatBinary } = await import('./text-keys.ts');
  const peer = new RawPeer(t, target.port);
  const security = (pairs: TextPair[]): void =>
    peer.send(
      (header) =>
        encodeLoginRequest(header, {
          transit: false,
          continues: false,
          currentStage: STAGE.security,
          nextStage: 0,
          versionMax: 0,
          versionMin: 0,
          isid: Buffer.from('800000010000', 'hex'),
          tsih: 0,
          initiatorTaskTag: 0,
          cid: 0,
          cmdSn: 1,
          expStatSn: 0,
        }),
      formatTextKeys(pairs),
    );
  security([...NAMES, ['AuthMethod', 'CHAP']]);
  await peer.next();
  security([['CHAP_A', '7']]);
  const keys = new Map(parseTextKeys((await peer.next())!.data));
  const challenge = parseBinary(keys.get('CHAP_C')!)!;
  const identifier = Number(keys.get('CHAP_I'));
  security([
    ['CHAP_N', GRANT.chap!.user],
    ['CHAP_R', formatBinary(chapResponse(7, identifier, GRANT.chap!.secret, challenge))],
    ['CHAP_I', '1'],
    ['CHAP_C', keys.get('CHAP_C')!],
  ]);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.authenticationFailure);
  await peer.closed;
});

test('broken logins are refused with their status', async (t) => {
  const { target } = await startTarget(t, memory(), { grant: { chap: null } });
  const cases: [TextPair[], object, number][] = [
    [[], {}, LOGIN_STATUS.missingParameter],
    [[['InitiatorName', INITIATOR_IQN]], {}, LOGIN_STATUS.missingParameter],
    [[...NAMES.slice(0, 2), ['SessionType', 'Party']], {}, LOGIN_STATUS.sessionTypeNotSupported],
    [NAMES, { versionMin: 1 }, LOGIN_STATUS.unsupportedVersion],
    [NAMES, { stage: 2 }, LOGIN_STATUS.invalidDuringLogin],
    [NAMES, { tsih: 77 }, LOGIN_STATUS.sessionDoesNotExist],
    [
      [...NAMES, ...['X-a', 'X-b', 'X-c'].map((key): TextPair => [key, 'v'.repeat(8000)])],
      {},
      LOGIN_STATUS.initiatorError,
    ],
  ];
  for (const [pairs, options, status] of cases) {
    const peer = new RawPeer(t, target.port);
    peer.login(pairs, options);
    assert.equal(await peer.loginStatus(), status);
    await peer.closed;
  }
});

test('garbage, half a login and too many connections are dropped', async (t) => {
  const { target } = await startTarget(t, memory(), {
    limits: { connectionsMax: 3, loginTimeoutMs: patient(300) },
  });
  const garbage = new RawPeer(t, target.port);
  garbage.socket.write(seededRandom(3).bytes(4096));
  await garbage.closed;
  const slow = new RawPeer(t, target.port);
  slow.socket.write(Buffer.alloc(20, 0x43));
  await slow.closed;
  const peers = Array.from({ length: 8 }, () => new RawPeer(t, target.port));
  await Promise.all(peers.map((peer) => peer.closed));
  assert.equal(await refusal(target.port, {}), 'let in');
});

test('discovery lists the exports that the initiator has a grant for', async (t) => {
  const { target, share } = await startTarget(t, memory(), { grant: { chap: null } });
  const other = target.addExport({
    targetIqn: `${TARGET_IQN}-b`,
    device: memory(),
    serial: 'b',
    generation: 1,
  });
  other.grant({ initiatorIqn: 'iqn.x:somebody', chap: null, generation: 1 });
  const peer = new RawPeer(t, target.port);
  peer.login([
    ['InitiatorName', INITIATOR_IQN],
    ['SessionType', 'Discovery'],
  ]);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  peer.send(
    (header) =>
      encodeTextRequest(header, {
        immediate: true,
        final: true,
        continues: false,
        initiatorTaskTag: 1,
        targetTransferTag: 0xffffffff,
        cmdSn: 100,
        expStatSn: 1,
      }),
    formatTextKeys([['SendTargets', 'All']]),
  );
  assert.deepEqual(parseTextKeys((await peer.next())!.data), [
    ['TargetName', share.targetIqn],
    ['TargetAddress', `127.0.0.1:${target.port},1`],
  ]);
});

test('a write to a read-only export fails with WRITE PROTECT, and nothing changes', async (t) => {
  const device = memory();
  const { target } = await startTarget(t, device, { share: { readOnly: true }, grant: { chap: null } });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  const before = Buffer.alloc(512);
  await device.read(0, before);
  peer.send(
    (header) => {
      encodeScsiCommand(header, {
        immediate: false,
        final: true,
        reads: false,
        writes: true,
        lun: 0,
        initiatorTaskTag: 9,
        expectedBytes: 512,
        cmdSn: 100,
        expStatSn: 1,
      });
      encodeReadWrite16(header.subarray(32), OPERATION.write16, 0, 1);
    },
    Buffer.alloc(512, 1),
  );
  const answer = (await peer.next())!;
  const response = decodeScsiResponse(answer.header);
  assert.equal(response.status, STATUS.checkCondition);
  assert.deepEqual(decodeSense(answer.data.subarray(2)), SENSE.writeProtected);
  assert.equal(response.residualBytes, -512);
  const after = Buffer.alloc(512);
  await device.read(0, after);
  assert.deepEqual(after, before);
});

test('commands outside the window are ignored, a skipped number ends the connection', async (t) => {
  const peer = await loggedIn(t, memory());
  peer.read(1, 99, 0, 1);
  peer.read(2, 100 + 128, 0, 1);
  peer.read(3, 100, 0, 1);
  const answer = (await peer.next())!;
  assert.equal(answer.header.readUInt32BE(16), 3);
  assert.equal(answer.data.length, 512);
  peer.read(4, 105, 0, 1);
  assert.equal(await peer.next(), null);
});

test('a ping comes back with its data', async (t) => {
  const peer = await loggedIn(t, memory());
  const ping = Buffer.from('are you there?');
  peer.send(
    (header) =>
      encodeNopOut(header, {
        immediate: true,
        initiatorTaskTag: 5,
        targetTransferTag: 0xffffffff,
        cmdSn: 100,
        expStatSn: 1,
      }),
    ping,
  );
  const answer = (await peer.next())!;
  assert.equal(decodeNopIn(answer.header).initiatorTaskTag, 5);
  assert.deepEqual(answer.data, ping);
});

test('a silent initiator is pinged and then dropped', async (t) => {
  const { target } = await startTarget(t, memory(), {
    grant: { chap: null },
    limits: { nopIntervalMs: 30, nopTimeoutMs: 60 },
  });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  await peer.loginStatus();
  assert.equal(opcodeOf((await peer.next())!.header), OPCODE.nopIn);
  assert.equal(await peer.next(), null);
});

test('an aborted read is never answered, and the abort is answered when it is gone', async (t) => {
  const held = Promise.withResolvers<void>();
  const inner = memory();
  const read = inner.read.bind(inner);
  inner.read = async (...words) => {
    await held.promise;
    await read(...words);
  };
  // Behind a device that cannot answer at once.
  const peer = await loggedIn(t, new DelayDevice(inner, systemClock, { latencyMs: 0 }));
  peer.read(1, 100, 0, 8);
  const abort = (tag: number, referencedTaskTag: number): void =>
    peer.send((header) =>
      encodeTaskManagementRequest(header, {
        immediate: true,
        function: TASK_FUNCTION.abortTask,
        lun: 0,
        initiatorTaskTag: tag,
        referencedTaskTag,
        cmdSn: 101,
        expStatSn: 1,
        refCmdSn: 100,
      }),
    );
  abort(2, 1);
  abort(3, 55);
  const answer = async () => {
    const { header } = (await peer.next())!;
    assert.equal(opcodeOf(header), OPCODE.taskManagementResponse);
    const { initiatorTaskTag, response } = decodeTaskManagementResponse(header);
    return [initiatorTaskTag, response];
  };
  assert.deepEqual(await answer(), [3, TASK_RESPONSE.taskDoesNotExist]);
  held.resolve();
  assert.deepEqual(await answer(), [2, TASK_RESPONSE.complete]);
  peer.read(4, 101, 0, 1);
  assert.equal((await peer.next())!.header.readUInt32BE(16), 4);
});

test('standby: logins work, reads wait for open', async (t) => {
  const { target, share } = await startTarget(t, memory(), { share: { standby: true } });
  const initiator = await startInitiator(t, target.port);
  const into = Buffer.alloc(8192);
  let done = false;
  const reading = initiator.read(0, into).then(() => {
    done = true;
  });
  const extents = initiator.extents(0, 4 * MIB, 10);
  await systemClock.sleep(50);
  assert.equal(done, false);
  assert.equal(share.state, 'standby');
  share.open();
  await reading;
  assert.deepEqual(into, Buffer.from(seededRandom(5).bytes(8192)));
  assert.deepEqual(await extents, [
    { offsetBytes: 0, lengthBytes: MIB, kind: 'data' },
    { offsetBytes: MIB, lengthBytes: 3 * MIB, kind: 'hole' },
  ]);
});

test('revoking a grant ends its sessions with a message, and the initiator stays out', async (t) => {
  const { target, share } = await startTarget(t, memory(), { grant: { chap: null } });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  assert.equal(share.sessions, 1);
  share.revoke(INITIATOR_IQN);
  const message = (await peer.next())!;
  assert.equal(decodeAsyncMessage(message.header).event, ASYNC_EVENT.sessionDropped);
  assert.equal(await peer.next(), null);
  const again = new RawPeer(t, target.port);
  again.login(NAMES);
  assert.equal(await again.loginStatus(), LOGIN_STATUS.authorizationFailure);
});

test('a login with the same name and ISID replaces the session, another ISID is a second one', async (t) => {
  const { target, share } = await startTarget(t, memory(), { grant: { chap: null } });
  const first = new RawPeer(t, target.port);
  first.login(NAMES);
  assert.equal(await first.loginStatus(), LOGIN_STATUS.success);
  const second = new RawPeer(t, target.port);
  second.login(NAMES);
  assert.equal(await second.loginStatus(), LOGIN_STATUS.success);
  await first.closed;
  assert.equal(share.sessions, 1);
  const third = new RawPeer(t, target.port);
  third.login(NAMES, { isid: '800000020000' });
  assert.equal(await third.loginStatus(), LOGIN_STATUS.success);
  assert.equal(share.sessions, 2);
  second.read(1, 100, 0, 1);
  assert.equal((await second.next())!.data.length, 512);
});

/** WRITE (16) of the first block. */
function writeFirst(peer: RawPeer, tag: number, cmdSn: number, fill: number): void {
  const command = { immediate: false, final: true, reads: false, writes: true, lun: 0, expStatSn: 1 };
  peer.send(
    (header) => {
      encodeScsiCommand(header, { ...command, initiatorTaskTag: tag, expectedBytes: 512, cmdSn });
      encodeReadWrite16(header.subarray(32), OPERATION.write16, 0, 1);
    },
    Buffer.alloc(512, fill),
  );
}

test('who replaces a session whose write hangs gets in and reads; what it writes comes after the old write', async (t) => {
  const inner = memory();
  const write = inner.write.bind(inner);
  const held = Promise.withResolvers<void>();
  t.after(() => held.resolve());
  const fills: number[] = [];
  inner.write = async (offsetBytes, from) => {
    fills.push(from[0]!);
    if (fills.length === 1) await held.promise;
    await write(offsetBytes, from);
  };
  const { target } = await startTarget(t, inner, { grant: { chap: null } });
  const login = async (): Promise<RawPeer> => {
    const peer = new RawPeer(t, target.port);
    peer.login(NAMES);
    assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
    return peer;
  };
  const first = await login();
  writeFirst(first, 1, 100, 0xaa);
  await until('the write to be at the device', () => fills.length === 1);
  let last = first;
  // The second one is replaced too: what it held back is never done.
  for (const fill of [0xbb, 0xcc]) {
    last = await login();
    writeFirst(last, 1, 100, fill);
    last.read(2, 101, 8, 1);
    assert.equal((await last.next())!.data.length, 512);
  }
  await first.closed;
  assert.deepEqual(fills, [0xaa]);
  assert.equal(target.statistics().sessions, 2);
  held.resolve();
  assert.equal(opcodeOf((await last.next())!.header), OPCODE.scsiResponse);
  assert.deepEqual(fills, [0xaa, 0xcc]);
  const block = Buffer.alloc(512);
  await inner.read(0, block);
  assert.ok(block.equals(Buffer.alloc(512, 0xcc)));
  // It is one like any other now.
  writeFirst(last, 3, 102, 0xdd);
  assert.equal(opcodeOf((await last.next())!.header), OPCODE.scsiResponse);
  await until('the old session to be forgotten', () => target.statistics().sessions === 1);
});

/** Its first reads hang until `release`. */
class HangingReads extends MemoryDevice {
  /** Reads that were begun. */
  asked = 0;
  readonly #hanging: number;
  readonly #gate = Promise.withResolvers<void>();

  constructor(hanging = Number.POSITIVE_INFINITY) {
    super({ lengthBytes: 1024 * 1024 });
    this.#hanging = hanging;
  }

  release(): void {
    this.#gate.resolve();
  }

  override readNow(): boolean {
    return false;
  }

  override async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    this.asked += 1;
    if (this.asked <= this.#hanging) await this.#gate.promise;
    await super.read(offsetBytes, into);
  }
}

test('a replaced session whose reads hang holds up nobody, and counts until they end', async (t) => {
  const device = new HangingReads(2);
  const { target, share } = await startTarget(t, device, { grant: { chap: null } });
  const login = async (reads: number): Promise<RawPeer> => {
    const peer = new RawPeer(t, target.port);
    peer.login(NAMES);
    assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
    if (reads > 0) peer.read(1, 100, 0, 1);
    return peer;
  };
  // Each one replaces the one before.
  await login(1);
  await until('the first read', () => device.asked === 1);
  await login(1);
  await until('the second read', () => device.asked === 2);
  const third = await login(1);
  assert.equal((await third.next())!.data.length, 512);
  assert.equal(target.statistics().sessions, 3);
  let isRemoved = false;
  const removed = target.removeExport(share.targetIqn).then(() => {
    isRemoved = true;
  });
  await third.closed;
  assert.equal(isRemoved, false, 'the device is in use');
  device.release();
  await removed;
  await until('nobody', () => target.statistics().sessions === 0);
});

test('a failing device gives a medium error, and the session goes on', async (t) => {
  const inner = memory();
  const device: BlockDevice = {
    lengthBytes: inner.lengthBytes,
    blockBytes: 512,
    writable: false,
    read: async (offsetBytes, into) => {
      if (offsetBytes === 0) throw new Error('bad sector');
      await inner.read(offsetBytes, into);
    },
    write: (offsetBytes, from) => inner.write(offsetBytes, from),
    flush: () => inner.flush(),
    discard: (offsetBytes, lengthBytes) => inner.discard(offsetBytes, lengthBytes),
    writeZeroes: (offsetBytes, lengthBytes) => inner.writeZeroes(offsetBytes, lengthBytes),
    close: () => inner.close(),
  };
  const { target } = await startTarget(t, device);
  const initiator = await startInitiator(t, target.port);
  await assert.rejects(initiator.read(0, Buffer.alloc(512)), (error) => {
    assert.ok(isGodwitError(error, 'ISCSI_COMMAND_FAILED'));
    return error.values.senseKey === SENSE_KEY.mediumError;
  });
  await initiator.read(512, Buffer.alloc(512));
  assert.equal(initiator.state, 'connected');
});

test('unanswered output is bounded: a peer that does not read holds little', async (t) => {
  const { target } = await startTarget(t, memory(), {
    grant: { chap: null },
    limits: { outputBytesMax: 256 * 1024 },
  });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  await peer.loginStatus();
  peer.socket.pause();
  for (let index = 0; index < 100; index += 1) peer.read(index + 1, 100 + index, 0, 1024);
  await systemClock.sleep(200);
  const heldBefore = target.statistics().bytesServed;
  assert.ok(heldBefore < 16 * MIB, `${heldBefore} bytes were made for a peer that reads nothing`);
  peer.socket.resume();
  let bytes = 0;
  while (bytes < 100 * 1024 * 512) bytes += (await peer.next())!.data.length;
  assert.equal(bytes, 100 * 1024 * 512);
});

test('removing an export ends its sessions and frees its device', async (t) => {
  const { target } = await startTarget(t, memory());
  const initiator = await startInitiator(t, target.port);
  const lost = reached(initiator, 'lost');
  await target.removeExport(TARGET_IQN);
  await lost;
  // The message of the target, or already the answer to the next attempt.
  assert.match(initiator.lastError!.code, /^ISCSI_(SESSION_OVER|LOGIN_REFUSED)$/);
});

test('a cold reset is answered and ends every session; the unit is free again', async (t) => {
  const { target, share } = await startTarget(t, memory(), { grant: { chap: null } });
  const first = new RawPeer(t, target.port);
  first.login(NAMES);
  assert.equal(await first.loginStatus(), LOGIN_STATUS.success);
  const second = new RawPeer(t, target.port);
  second.login(NAMES, { isid: '800000020000' });
  assert.equal(await second.loginStatus(), LOGIN_STATUS.success);
  first.send((header) =>
    encodeTaskManagementRequest(header, {
      immediate: true,
      function: TASK_FUNCTION.targetColdReset,
      lun: 0,
      initiatorTaskTag: 1,
      referencedTaskTag: 0xffffffff,
      cmdSn: 100,
      expStatSn: 1,
      refCmdSn: 0,
    }),
  );
  assert.equal(decodeTaskManagementResponse((await first.next())!.header).response, TASK_RESPONSE.complete);
  await Promise.all([first.closed, second.closed]);
  await until('the end of every session', () => share.sessions === 0);
  const third = new RawPeer(t, target.port);
  third.login(NAMES);
  assert.equal(await third.loginStatus(), LOGIN_STATUS.success);
});

test('a missing data PDU fails its command, and the session goes on', async (t) => {
  const device = memory();
  const { target } = await startTarget(t, device, { grant: { chap: null } });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  const before = Buffer.alloc(512);
  await device.read(0, before);
  peer.send((header) => {
    encodeScsiCommand(header, {
      immediate: false,
      final: true,
      reads: false,
      writes: true,
      lun: 0,
      initiatorTaskTag: 1,
      expectedBytes: 512,
      cmdSn: 100,
      expStatSn: 1,
    });
    encodeReadWrite16(header.subarray(32), OPERATION.write16, 0, 1);
  });
  const ready = (await peer.next())!;
  assert.equal(opcodeOf(ready.header), OPCODE.readyToTransfer);
  peer.send(
    (header) =>
      encodeDataOut(header, {
        final: true,
        lun: 0,
        initiatorTaskTag: 1,
        targetTransferTag: ready.header.readUInt32BE(20),
        expStatSn: 1,
        dataSn: 1,
        bufferOffset: 0,
      }),
    Buffer.alloc(512, 0xee),
  );
  const answer = (await peer.next())!;
  assert.deepEqual(decodeSense(answer.data.subarray(2)), SENSE.protocolServiceCrcError);
  peer.read(2, 101, 0, 1);
  assert.deepEqual((await peer.next())!.data, before);
});

test('no secret is good for both directions, of one grant or of two, at the target and at the initiator', async (t) => {
  const { share } = await startTarget(t, memory());
  const bad = (error: unknown): boolean => isGodwitError(error, 'ISCSI_BAD_GRANT');
  const second = {
    ...GRANT,
    initiatorIqn: 'iqn.2026-01.dev.godwit:worker-3',
    chap: { user: 'b', secret: 'b b b b b b b' },
  };
  const mutualChap = { user: 'target', secret: GRANT.chap!.secret };
  assert.throws(() => share.grant({ ...GRANT, mutualChap }), bad);
  assert.throws(
    () => share.grant({ ...second, mutualChap }),
    bad,
    'it would be told the answer of the other grant',
  );
  share.grant({ ...second, mutualChap: { user: 'target', secret: 'the secret of the target' } });
  assert.throws(
    () => share.grant({ ...GRANT, chap: { user: 'a', secret: 'the secret of the target' } }),
    bad,
  );
  const chap = { ...GRANT.chap!, mutual: { user: 'target', secret: GRANT.chap!.secret } };
  await assert.rejects(IscsiInitiator.connect(initiatorOptions(1, { chap })), bad);
});

test('task management that waits for a device that hangs is bounded, in the window and beside it, and what comes of it is told', async (t) => {
  const device = new HeldDevice(memory());
  const { target } = await startTarget(t, device, { grant: { chap: null } });
  const peer = new RawPeer(t, target.port);
  peer.login(NAMES);
  assert.equal(await peer.loginStatus(), LOGIN_STATUS.success);
  peer.read(1, 100, 0, 8);
  await until('the read to hang', () => device.asked === 1);
  const [immediate, queued] = [1_000, 300];
  for (let index = 0; index < immediate + queued; index += 1) {
    const isQueued = index >= immediate;
    peer.send((header) =>
      encodeTaskManagementRequest(header, {
        immediate: !isQueued,
        function: index % 2 === 0 ? TASK_FUNCTION.abortTask : TASK_FUNCTION.logicalUnitReset,
        lun: 0,
        initiatorTaskTag: 1_000 + index,
        referencedTaskTag: 1,
        cmdSn: isQueued ? 101 + index - immediate : 101,
        expStatSn: 1,
        refCmdSn: 100,
      }),
    );
  }
  for (let rejected = 0; rejected < immediate - TARGET_LIMITS.immediateMax; rejected += 1)
    assert.equal(opcodeOf((await peer.next())!.header), OPCODE.reject);
  // Behind all of them: what it answers, the target has looked at the others.
  peer.send((header) =>
    encodeNopOut(header, {
      immediate: true,
      initiatorTaskTag: 5,
      targetTransferTag: 0xffffffff,
      cmdSn: 101,
      expStatSn: 1,
    }),
  );
  assert.equal(opcodeOf((await peer.next())!.header), OPCODE.nopIn);
  device.release();
  // The read has a place in the window, and those beyond it are ignored.
  const waited = TARGET_LIMITS.immediateMax + TARGET_LIMITS.queueDepth - 1;
  for (let answered = 0; answered < waited; answered += 1) {
    const { header } = (await peer.next())!;
    assert.equal(opcodeOf(header), OPCODE.taskManagementResponse);
    assert.equal(decodeTaskManagementResponse(header).response, TASK_RESPONSE.complete);
  }
  peer.read(2, 100 + TARGET_LIMITS.queueDepth, 0, 8);
  const answer = (await peer.next())!;
  assert.equal(answer.header.readUInt32BE(16), 2);
});

test('a text without an end and without bytes ends the connection', async (t) => {
  const peer = await loggedIn(t, memory());
  for (let index = 0; index < 100; index += 1)
    peer.send((header) =>
      encodeTextRequest(header, {
        immediate: true,
        final: false,
        continues: true,
        initiatorTaskTag: 1,
        targetTransferTag: 0xffffffff,
        cmdSn: 100,
        expStatSn: 1,
      }),
    );
  let answers = 0;
  while ((await peer.next()) !== null) answers += 1;
  assert.ok(answers < 100, `${answers} of 100 were answered`);
});

test('a SYNCHRONIZE CACHE of one session is one for all', async (t) => {
  const power = new PowerSupply(seededRandom(5));
  const disk = new FaultDevice({ lengthBytes: 4 * MIB, power });
  const { target } = await startTarget(t, disk);
  const written = Array.from({ length: 4 }, (_, index) => Buffer.from(seededRandom(index).bytes(256 * 1024)));
  const sessions = await Promise.all(written.map(() => startInitiator(t, target.port)));
  assert.equal(target.statistics().sessions, sessions.length);
  await Promise.all(sessions.map((session, index) => session.write(index * MIB, written[index]!)));
  await sessions[3]!.flush();
  power.cut();
  power.restore();
  for (const [index, bytes] of written.entries()) {
    const found = Buffer.alloc(bytes.length);
    await disk.read(index * MIB, found);
    assert.ok(found.equals(bytes), `what session ${index} wrote`);
  }
});

test('who replaces sessions again and again has so many reads that hang, and then waits for them', async (t) => {
  const device = new HangingReads();
  // Nobody is waited for ten seconds.
  const clock: Clock = {
    ...systemClock,
    timer: (delayMs, callback) => systemClock.timer(delayMs === 10_000 ? 300 : delayMs, callback),
  };
  const { target } = await startTarget(t, device, { grant: { chap: null }, clock });
  const login = async (): Promise<number> => {
    const peer = new RawPeer(t, target.port);
    peer.login(NAMES);
    const status = await peer.loginStatus();
    if (status === LOGIN_STATUS.success) for (let tag = 1; tag <= 3; tag += 1) peer.read(tag, 99 + tag, 0, 1);
    return status;
  };
  for (let session = 1; session <= 3; session += 1) {
    assert.equal(await login(), LOGIN_STATUS.success);
    await until('its reads', () => device.asked === session * 3);
  }
  assert.equal(await login(), LOGIN_STATUS.serviceUnavailable);
  device.release();
  await until('nobody', () => target.statistics().sessions === 0);
  assert.equal(await login(), LOGIN_STATUS.success);
});
