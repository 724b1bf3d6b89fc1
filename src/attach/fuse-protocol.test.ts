import assert from 'node:assert/strict';
import test from 'node:test';
import { answerMetadata } from './fuse-metadata.ts';
import {
  FILE_NODE,
  FuseSlot,
  INIT_FLAG,
  PAYLOAD_AT,
  REPLY_AT,
  REQUEST_AT,
  ROOT_NODE,
  resendNotification,
  SLOT_BYTES,
} from './fuse-protocol.ts';

/** Writes a request as the kernel does: the header, then the arguments. */
function slotWith(opcode: number, node: number, body: Uint8Array): { slot: FuseSlot; view: DataView } {
  const buffer = new SharedArrayBuffer(SLOT_BYTES);
  const view = new DataView(buffer);
  view.setUint32(REQUEST_AT, 40 + body.length, true);
  view.setUint32(REQUEST_AT + 4, opcode, true);
  view.setBigUint64(REQUEST_AT + 8, 0x8000_0000_1234_5678n, true);
  view.setBigUint64(REQUEST_AT + 16, BigInt(node), true);
  new Uint8Array(buffer).set(body, REQUEST_AT + 40);
  return { slot: new FuseSlot(buffer, 0), view };
}

function words(...values: (number | bigint)[]): Uint8Array {
  const bytes = values.flatMap((value) => {
    const chunk = new Uint8Array(typeof value === 'bigint' ? 8 : 4);
    const view = new DataView(chunk.buffer);
    if (typeof value === 'bigint') view.setBigUint64(0, value, true);
    else view.setUint32(0, value, true);
    return [...chunk];
  });
  return Uint8Array.from(bytes);
}

test('a WRITE is decoded, its payload starts on a page border, and the reply echoes all 64 bits of unique', () => {
  const payload = new Uint8Array(512).fill(9);
  const body = new Uint8Array([...words(7n, 0x1_0000_0200n, 512, 0, 0n, 0, 0), ...payload]);
  const { slot, view } = slotWith(16, FILE_NODE, body);
  assert.equal(slot.opcode, 16);
  assert.equal(slot.node, FILE_NODE);
  assert.equal(slot.offsetBytes, 0x1_0000_0200);
  assert.equal(slot.sizeBytes, 512);
  assert.deepEqual([...slot.payload(512)], [...payload]);
  assert.equal(PAYLOAD_AT % 4096, 0);
  assert.equal(slot.replyWrite(512), 24);
  assert.equal(view.getUint32(REPLY_AT, true), 24);
  assert.equal(view.getInt32(REPLY_AT + 4, true), 0);
  assert.equal(view.getBigUint64(REPLY_AT + 8, true), 0x8000_0000_1234_5678n);
  assert.equal(view.getUint32(PAYLOAD_AT, true), 512);
});

test('the reply of a READ is header and data in one piece', () => {
  const { slot, view } = slotWith(15, FILE_NODE, words(1n, 4096n, 4096, 0, 0n, 0, 0));
  slot.payload(4096).fill(5);
  assert.equal(slot.replyRead(4096), 16 + 4096);
  assert.equal(view.getUint32(REPLY_AT, true), 16 + 4096);
  assert.equal(view.getUint8(REPLY_AT + 16), 5);
});

test('an error is a negative errno in a header alone', () => {
  const { slot, view } = slotWith(15, FILE_NODE, words(1n, 4096n, 4096, 0, 0n, 0, 0));
  assert.equal(slot.replyError(30), 16);
  assert.equal(view.getInt32(REPLY_AT + 4, true), -30);
});

test('a FALLOCATE is decoded; numbers that a double cannot hold are refused by every range check', () => {
  const { slot } = slotWith(43, FILE_NODE, words(1n, 8192n, 1n << 40n, 3, 0));
  assert.equal(slot.offsetBytes, 8192);
  assert.equal(slot.fallocateLengthBytes, 2 ** 40);
  assert.equal(slot.fallocateMode, 3);
  const huge = slotWith(43, FILE_NODE, words(1n, 0xffff_ffff_ffff_f000n, 4096n, 3, 0)).slot;
  assert.equal(huge.offsetBytes, Number.POSITIVE_INFINITY);
});

test('INIT: the extended flags count only when the kernel says that they are there', () => {
  const with64 = words(
    7,
    45,
    131072,
    Number(INIT_FLAG.initExt | INIT_FLAG.asyncDio),
    0x80,
    ...Array(11).fill(0),
  );
  const { slot, view } = slotWith(26, 0, with64);
  const request = slot.initRequest();
  assert.deepEqual([request.major, request.minor, request.maxReadahead], [7, 45, 131072]);
  assert.ok((request.flags & INIT_FLAG.hasResend) !== 0n);
  const old = slotWith(26, 0, words(7, 31, 131072, Number(INIT_FLAG.asyncDio))).slot.initRequest();
  assert.equal(old.flags >> 32n, 0n);
  const flags = INIT_FLAG.initExt | INIT_FLAG.hasResend;
  assert.equal(slot.replyInit({ flags, maxReadahead: 1, maxBackground: 128 }), 16 + 64);
  assert.equal(view.getUint32(PAYLOAD_AT + 12, true), 1 << 30);
  assert.equal(view.getUint16(PAYLOAD_AT + 16, true), 128);
  assert.equal(view.getUint16(PAYLOAD_AT + 18, true), 96);
  assert.equal(view.getUint32(PAYLOAD_AT + 20, true), 1024 * 1024);
  assert.equal(view.getUint16(PAYLOAD_AT + 28, true), 256);
  assert.equal(view.getUint32(PAYLOAD_AT + 32, true), 0x80);
});

test('metadata: one file of the right length in one directory, and nothing else', () => {
  const length = 3 * 2 ** 40 + 4096;
  const name = (text: string) => new TextEncoder().encode(`${text}\0`);
  const found = slotWith(1, ROOT_NODE, name('disk'));
  assert.equal(answerMetadata(found.slot, length), 16 + 128);
  assert.equal(found.view.getBigUint64(PAYLOAD_AT, true), BigInt(FILE_NODE));
  assert.equal(found.view.getBigUint64(PAYLOAD_AT + 40 + 8, true), BigInt(length));
  assert.equal(found.view.getUint32(PAYLOAD_AT + 40 + 60, true), 0o100600);
  const other = slotWith(1, ROOT_NODE, name('other'));
  assert.equal(answerMetadata(other.slot, length), 16);
  assert.equal(other.view.getInt32(REPLY_AT + 4, true), -2);
  const statfs = slotWith(17, ROOT_NODE, new Uint8Array());
  assert.equal(answerMetadata(statfs.slot, length), 16 + 80);
  assert.equal(statfs.view.getUint32(PAYLOAD_AT + 40, true), 4096);
  assert.equal(answerMetadata(slotWith(2, FILE_NODE, words(1n)).slot, length), 0, 'FORGET has no reply');
  assert.equal(answerMetadata(slotWith(16, FILE_NODE, words()).slot, length), null, 'data is not metadata');
  assert.equal(answerMetadata(slotWith(4096, FILE_NODE, words()).slot, length), 16, 'unknown: ENOSYS');
  const root = slotWith(3, ROOT_NODE, words());
  assert.equal(answerMetadata(root.slot, length), 16 + 104);
  assert.equal(root.view.getUint32(PAYLOAD_AT + 16 + 60, true), 0o40700);
});

test('the resend notification is a header with unique 0 and code 7', () => {
  assert.deepEqual([...resendNotification()], [16, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
});
