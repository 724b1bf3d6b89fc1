import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryDevice } from '../../block/memory-device.ts';
import { decodeCommand } from './command.ts';
import { LogicalUnit, Nexus } from './logical-unit.ts';
import { reportSupportedOperationCodes } from './operation-codes.ts';
import { SENSE } from './sense.ts';

const ASK = { timeouts: false, options: 0, operation: 0, serviceAction: 0 };

type Listed = { operation: number; serviceAction: number; hasActions: boolean; bytes: number };
function listed(): Listed[] {
  const data = reportSupportedOperationCodes(ASK)!;
  assert.equal(data.readUInt32BE(0), data.length - 4);
  return Array.from({ length: (data.length - 4) / 8 }, (_, index) => {
    const at = 4 + 8 * index;
    return {
      operation: data[at]!,
      serviceAction: data.readUInt16BE(at + 2),
      hasActions: (data[at + 5]! & 1) !== 0,
      bytes: data.readUInt16BE(at + 6),
    };
  });
}

function isKnown(operation: number, serviceAction: number): boolean {
  const unit = new LogicalUnit({
    device: new MemoryDevice({ lengthBytes: 2 ** 20 }),
    readOnly: false,
    serial: 's',
    targetIqn: 'iqn.x:t',
    transferBytesMax: 2 ** 20,
    monotonicMs: () => 0,
  });
  const cdb = Buffer.alloc(16);
  cdb[0] = operation;
  cdb[1] = serviceAction;
  const command = decodeCommand(cdb);
  if (command.kind === 'report-luns') return true;
  const nexus = new Nexus({ port: 'iqn.x,i,0x1', abortTasks: async () => {}, end: () => {} });
  const plan = unit.plan(command, nexus);
  return !(plan.kind === 'sense' && plan.sense.asc === SENSE.invalidOpcode.asc);
}

test('every operation code is listed when the unit takes it, and only then', () => {
  const codes = new Set(listed().map(({ operation }) => operation));
  for (let operation = 0; operation < 256; operation += 1) {
    const actions = Array.from({ length: 32 }, (_, action) => action);
    assert.equal(
      actions.some((action) => isKnown(operation, action)),
      codes.has(operation),
      `operation 0x${operation.toString(16)}`,
    );
  }
});

test('each one alone: its CDB length and a usage map that begins with its code', () => {
  const lengths = [6, 10, 10, 0, 16, 12];
  for (const { operation, serviceAction, hasActions, bytes } of listed()) {
    assert.equal(bytes, lengths[operation >>> 5], `CDB of 0x${operation.toString(16)}`);
    for (const timeouts of [false, true]) {
      const options = hasActions ? 2 : 1;
      const one = reportSupportedOperationCodes({ timeouts, options, operation, serviceAction })!;
      assert.equal(one[1], timeouts ? 0x83 : 0x03);
      assert.equal(one.readUInt16BE(2), bytes);
      assert.equal(one[4], operation);
      if (hasActions) assert.equal(one[5]! & 0x1f, serviceAction);
      assert.equal(one.length, 4 + bytes + (timeouts ? 12 : 0));
      assert.deepEqual(
        reportSupportedOperationCodes({ timeouts, options: 3, operation, serviceAction }),
        one,
      );
    }
    assert.equal(reportSupportedOperationCodes({ ...ASK, options: hasActions ? 1 : 2, operation }), null);
  }
});

test('what is not there is said to be not there', () => {
  for (const options of [1, 2, 3]) {
    assert.equal(reportSupportedOperationCodes({ ...ASK, options, operation: 0xc0 })![1], 1);
  }
  assert.equal(
    reportSupportedOperationCodes({ ...ASK, options: 2, operation: 0x9e, serviceAction: 0x1f })![1],
    1,
  );
  assert.equal(reportSupportedOperationCodes({ ...ASK, options: 4 }), null);
});
