import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FaultDevice } from '../../../test/support/fault-device.ts';
import { PowerSupply } from '../../../test/support/power-supply.ts';
import { seededRandom } from '../../base/random.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { MemoryDevice } from '../../block/memory-device.ts';
import { decodeCommand, OPERATION } from './command.ts';
import { LogicalUnit, Nexus, planForNoUnit } from './logical-unit.ts';
import type { Plan } from './plan.ts';
import { decodeSense, encodeSense, SENSE, STATUS } from './sense.ts';

const BLOCKS = 2048;
const memory = (): MemoryDevice => new MemoryDevice({ lengthBytes: BLOCKS * 512 });
const NEXUS = new Nexus({ port: 'iqn.x,i,0x1', abortTasks: async () => {}, end: () => {} });

function unit(readOnly: boolean, device: BlockDevice = memory()): LogicalUnit {
  return new LogicalUnit({
    device,
    readOnly,
    serial: 'serial-1',
    targetIqn: 'iqn.2026-01.dev.godwit:x',
    transferBytesMax: 256 * 1024,
    monotonicMs: () => 0,
  });
}

function plan(it: LogicalUnit, ...bytes: number[]): Plan {
  const cdb = Buffer.alloc(16);
  cdb.set(bytes);
  return it.plan(decodeCommand(cdb), NEXUS);
}

const read10 = (lba: number, blocks: number): number[] => [
  OPERATION.read10,
  0,
  lba >>> 24,
  lba >>> 16,
  lba >>> 8,
  lba,
  0,
  blocks >>> 8,
  blocks,
];

test('reads are checked against the device and the transfer limit', () => {
  const it = unit(true);
  assert.deepEqual(plan(it, ...read10(8, 2)), { kind: 'read', offsetBytes: 4096, lengthBytes: 1024 });
  assert.deepEqual(plan(it, ...read10(BLOCKS - 1, 1)).kind, 'read');
  assert.deepEqual(plan(it, ...read10(BLOCKS - 1, 2)), { kind: 'sense', sense: SENSE.lbaOutOfRange });
  assert.deepEqual(plan(it, ...read10(0, 513)), { kind: 'sense', sense: SENSE.invalidFieldInCdb });
  // A length of 0 is 256 blocks in READ(6) and nothing in the others.
  assert.deepEqual(plan(it, OPERATION.read6, 0, 0, 0, 0), {
    kind: 'read',
    offsetBytes: 0,
    lengthBytes: 131072,
  });
  assert.deepEqual(plan(it, ...read10(0, 0)), { kind: 'read', offsetBytes: 0, lengthBytes: 0 });
  assert.deepEqual(
    plan(it, OPERATION.read16, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1),
    {
      kind: 'sense',
      sense: SENSE.lbaOutOfRange,
    },
  );
  assert.deepEqual(plan(it, OPERATION.read10, 0x20), { kind: 'sense', sense: SENSE.invalidFieldInCdb });
});

test('every command that changes the medium is refused on a read-only unit', () => {
  const it = unit(true);
  for (const cdb of [
    [OPERATION.write6, 0, 0, 0, 1],
    [OPERATION.write10, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.write12, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.write16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.writeSame10, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.writeSame16, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.unmap, 0, 0, 0, 0, 0, 0, 0, 24],
    [OPERATION.writeAndVerify10, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.writeAndVerify12, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.writeAndVerify16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.compareAndWrite, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [OPERATION.orWrite16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
  ]) {
    assert.deepEqual(
      plan(it, ...cdb),
      { kind: 'sense', sense: SENSE.writeProtected },
      `0x${cdb[0]!.toString(16)}`,
    );
  }
  const mode = plan(it, OPERATION.modeSense6, 0, 0x3f, 0, 255);
  assert.ok(mode.kind === 'answer' && (mode.data[2]! & 0x80) !== 0, 'MODE SENSE shows the write protection');
});

test('capacity, and answers cut to what the initiator has room for', () => {
  const it = unit(false);
  const capacity = plan(it, OPERATION.serviceActionIn16, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32);
  assert.ok(capacity.kind === 'answer');
  assert.equal(capacity.data.length, 32);
  assert.equal(capacity.data.readBigUInt64BE(0), BigInt(BLOCKS - 1));
  assert.equal(capacity.data.readUInt32BE(8), 512);
  const inquiry = plan(it, OPERATION.inquiry, 0, 0, 0, 5);
  assert.ok(inquiry.kind === 'answer' && inquiry.data.length === 5);
});

test('pages name each other, and every one that is named exists', () => {
  const it = unit(false);
  const list = plan(it, OPERATION.inquiry, 1, 0, 1, 0);
  assert.ok(list.kind === 'answer');
  const pages = [...list.data.subarray(4)];
  assert.deepEqual(pages, [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
  for (const page of pages) {
    const answer = plan(it, OPERATION.inquiry, 1, page, 1, 0);
    assert.ok(answer.kind === 'answer');
    assert.equal(answer.data[1], page);
    assert.equal(answer.data.length, 4 + answer.data.readUInt16BE(2));
  }
  assert.deepEqual(plan(it, OPERATION.inquiry, 1, 0x81, 1, 0), {
    kind: 'sense',
    sense: SENSE.invalidFieldInCdb,
  });
});

test('UNMAP checks its list before it touches anything', async () => {
  const it = unit(false);
  await it.device.write(0, new Uint8Array(8192).fill(1));
  const taken = plan(it, OPERATION.unmap, 0, 0, 0, 0, 0, 0, 0, 40);
  assert.ok(taken.kind === 'take');
  const list = Buffer.alloc(40);
  list.writeUInt16BE(38, 0);
  list.writeUInt16BE(32, 2);
  list.writeUInt32BE(8, 16);
  list.writeBigUInt64BE(BigInt(BLOCKS - 1), 24);
  list.writeUInt32BE(2, 32);
  assert.deepEqual(await taken.run(list), { kind: 'sense', sense: SENSE.lbaOutOfRange });
  const block = Buffer.alloc(512);
  await it.device.read(0, block);
  assert.equal(block[0], 1);
  list.writeUInt32BE(1, 32);
  assert.equal((await taken.run(list)).kind, 'answer');
  await it.device.read(0, block);
  assert.equal(block[0], 0);
});

test('any 16 bytes come to a plan, also where there is no unit', () => {
  const units = [unit(true), unit(false)];
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 16, maxLength: 16 }),
      fc.constantFrom(...Object.values(OPERATION)),
      (bytes, operation) => {
        const cdb = Buffer.from(bytes);
        for (const first of [bytes[0]!, operation]) {
          cdb[0] = first;
          const command = decodeCommand(cdb);
          for (const it of units) {
            const { kind } = it.plan(command, NEXUS);
            if (kind === 'write') assert.equal(it.readOnly, false);
          }
          planForNoUnit(command);
        }
      },
    ),
    { numRuns: 2000 },
  );
});

test('any parameter list of UNMAP ends in an answer', async () => {
  const it = unit(false);
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ minLength: 8, maxLength: 80 }), async (bytes) => {
      const taken = plan(it, OPERATION.unmap, 0, 0, 0, 0, 0, 0, 0, bytes.length);
      assert.ok(taken.kind === 'take');
      assert.ok(['answer', 'sense'].includes((await taken.run(Buffer.from(bytes))).kind));
    }),
  );
});

test('sense goes there and back in both formats', () => {
  for (const sense of Object.values(SENSE)) {
    assert.deepEqual(decodeSense(encodeSense(sense)), sense);
    assert.deepEqual(decodeSense(encodeSense(sense, 'descriptor')), sense);
  }
  assert.equal(decodeSense(new Uint8Array(0)), null);
  assert.equal(decodeSense(Uint8Array.of(0x70, 0, 5)), null);
});

// --- several initiators
// ------------------------------------------------------------------------------------------------

function nexus(name: string, onAbort = () => {}): Nexus {
  return new Nexus({ port: `iqn.x:${name},i,0x1`, abortTasks: async () => onAbort(), end: () => {} });
}
async function run(it: LogicalUnit, by: Nexus, cdb: number[], data: Buffer = Buffer.alloc(0)): Promise<Plan> {
  const bytes = Buffer.alloc(16);
  bytes.set(cdb);
  const planned = it.plan(decodeCommand(bytes), by);
  if (planned.kind === 'take') return planned.run(data);
  return planned.kind === 'run' ? planned.run() : planned;
}
function keys(key: number, actionKey: number): Buffer {
  const bytes = Buffer.alloc(24);
  bytes[7] = key;
  bytes[15] = actionKey;
  return bytes;
}
const reserveOut = (action: number, type = 0): number[] => [
  ...[OPERATION.persistentReserveOut, action, type, 0, 0],
  ...[0, 0, 0, 24],
];
const CONFLICT = { kind: 'status', status: STATUS.reservationConflict };
const READY = [OPERATION.testUnitReady];

test('a reservation keeps the other initiator out, and preempting aborts it and tells it why', async () => {
  const it = unit(false);
  let aborted = 0;
  const a = nexus('a', () => (aborted += 1));
  const b = nexus('b');
  it.join(a);
  it.join(b);
  assert.equal((await run(it, a, reserveOut(0), keys(0, 1))).kind, 'answer');
  assert.equal((await run(it, a, reserveOut(1, 3), keys(1, 0))).kind, 'answer');
  assert.deepEqual(await run(it, b, read10(0, 1)), CONFLICT);
  assert.deepEqual(await run(it, b, [OPERATION.reserve6]), CONFLICT);
  for (const allowed of [READY, [OPERATION.readCapacity10], [OPERATION.inquiry, 0, 0, 0, 36]]) {
    assert.equal((await run(it, b, allowed)).kind, 'answer');
  }
  assert.equal((await run(it, a, read10(0, 1))).kind, 'read');
  assert.equal((await run(it, b, reserveOut(0), keys(0, 2))).kind, 'answer');
  assert.equal((await run(it, b, reserveOut(5, 1), keys(2, 1))).kind, 'answer');
  assert.equal(aborted, 1);
  assert.deepEqual(await run(it, a, READY), { kind: 'sense', sense: SENSE.registrationsPreempted });
  assert.equal((await run(it, a, read10(0, 1))).kind, 'read');
  assert.deepEqual(await run(it, a, [OPERATION.write10, 0, 0, 0, 0, 0, 0, 0, 1]), CONFLICT);
});

test('RESERVE(6) ends with the last session of its port', async () => {
  const it = unit(false);
  const a = nexus('a');
  const again = nexus('a');
  const b = nexus('b');
  for (const each of [a, again, b]) it.join(each);
  await run(it, a, [OPERATION.reserve6]);
  assert.deepEqual(await run(it, b, READY), CONFLICT);
  it.leave(a);
  assert.deepEqual(await run(it, b, READY), CONFLICT);
  it.leave(again);
  assert.equal((await run(it, b, READY)).kind, 'answer');
});

test('what one initiator sets, the others are told; a reset undoes it, and everybody is told', async () => {
  const it = unit(false);
  const a = nexus('a');
  const b = nexus('b');
  it.join(a);
  it.join(b);
  const control = Buffer.from([0, 0, 0, 0, 0x0a, 10, 0x04, 0x10, 0x08, 0, 0, 0, 0, 0, 0, 0]);
  assert.equal((await run(it, a, [OPERATION.modeSelect6, 0x10, 0, 0, 16], control)).kind, 'answer');
  assert.equal(it.senseFormat, 'descriptor');
  assert.deepEqual(await run(it, b, READY), { kind: 'sense', sense: SENSE.modeParametersChanged });
  const write = [OPERATION.write10, 0, 0, 0, 0, 0, 0, 0, 1];
  assert.deepEqual(await run(it, b, write), { kind: 'sense', sense: SENSE.softwareWriteProtected });
  await it.reset();
  assert.equal(it.senseFormat, 'fixed');
  for (const each of [a, b]) {
    // INQUIRY passes, REQUEST SENSE takes the attention as its data.
    assert.equal((await run(it, each, [OPERATION.inquiry, 0, 0, 0, 36])).kind, 'answer');
    const sense = await run(it, each, [OPERATION.requestSense, 0, 0, 0, 18]);
    assert.ok(sense.kind === 'answer');
    assert.deepEqual(decodeSense(sense.data), SENSE.resetOccurred);
    assert.equal((await run(it, each, write)).kind, 'write');
  }
});

test('a stopped unit is started again before it reads', async () => {
  const it = unit(false);
  assert.equal((await run(it, NEXUS, [OPERATION.startStopUnit, 0, 0, 0, 0])).kind, 'answer');
  const stopped = { kind: 'sense', sense: SENSE.initializingCommandRequired };
  assert.deepEqual(await run(it, NEXUS, READY), stopped);
  assert.deepEqual(await run(it, NEXUS, read10(0, 1)), stopped);
  assert.equal((await run(it, NEXUS, [OPERATION.startStopUnit, 0, 0, 0, 1])).kind, 'answer');
  assert.equal((await run(it, NEXUS, read10(0, 1))).kind, 'read');
  for (const flags of [0x02, 0x03, 0x10]) {
    const refused = { kind: 'sense', sense: SENSE.invalidFieldInCdb };
    assert.deepEqual(await run(it, NEXUS, [OPERATION.startStopUnit, 0, 0, 0, flags]), refused);
  }
});

test('what a command must have put on the medium before it is answered outlives a power cut', async () => {
  const block = Buffer.alloc(512, 0xee);
  const none = Buffer.alloc(512);
  const commands: [name: string, cdb: number[], data: Buffer][] = [
    ['WRITE (10), FUA', [OPERATION.write10, 8, 0, 0, 0, 8, 0, 0, 1], block],
    ['WRITE (12), FUA', [OPERATION.write12, 8, 0, 0, 0, 8, 0, 0, 0, 1], block],
    ['WRITE (16), FUA', [OPERATION.write16, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1], block],
    ['WRITE AND VERIFY (10)', [OPERATION.writeAndVerify10, 0, 0, 0, 0, 8, 0, 0, 1], block],
    [
      'WRITE AND VERIFY (16), compared',
      [OPERATION.writeAndVerify16, 2, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1],
      block,
    ],
    [
      'COMPARE AND WRITE, FUA',
      [OPERATION.compareAndWrite, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1],
      Buffer.concat([none, block]),
    ],
    ['ORWRITE (16), FUA', [OPERATION.orWrite16, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1], block],
  ];
  for (const [name, cdb, data] of commands) {
    // Everything that was not flushed is lost.
    const power = new PowerSupply({ ...seededRandom(1), below: () => 0 });
    const device = new FaultDevice({ lengthBytes: BLOCKS * 512, power });
    const it = unit(false, device);
    const planned = plan(it, ...cdb);
    if (planned.kind === 'write') await it.medium.write(planned.offsetBytes, data, planned.after);
    else assert.ok(planned.kind === 'take' && (await planned.run(data)).kind === 'answer', name);
    power.cut();
    power.restore();
    const found = Buffer.alloc(512);
    await device.read(8 * 512, found);
    assert.ok(found.equals(block), name);
  }
});
