import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import {
  addressOf,
  EAGAIN,
  eventDescriptor,
  ReadablePoll,
  rawRead,
  rawReadAt,
  rawReadNow,
  rawWrite,
  rawWriteAt,
} from './raw-io.ts';

test('bytes go to and come from the address', (t) => {
  const path = join(scratchDir(t), 'file');
  writeFileSync(path, Buffer.alloc(8192, 1));
  const fd = openSync(path, 'r+');
  t.after(() => closeSync(fd));
  const buffer = new Uint8Array(4096).fill(7);
  assert.equal(rawWriteAt(fd, addressOf(buffer), 4096, 4096), 4096);
  buffer.fill(0);
  assert.equal(rawReadAt(fd, addressOf(buffer), 4096, 4096), 4096);
  assert.ok(buffer.every((byte) => byte === 7));
  assert.equal(rawReadAt(fd, addressOf(buffer), 4096, 6144), 2048, 'short at the end of the file');
  const now = rawReadNow(fd, addressOf(buffer), 4096, 0);
  assert.ok(now === 4096 || now < 0);
  assert.ok(rawReadAt(9999, addressOf(buffer), 1, 0) < 0, 'a failure is a negative number');
});

test('an event descriptor wakes a poll', (t) => {
  const fd = eventDescriptor();
  assert.ok(fd >= 0);
  t.after(() => closeSync(fd));
  const poll = new ReadablePoll(fd);
  assert.equal(poll.wait(0), 0);
  const count = new BigUint64Array([3n]);
  assert.equal(rawRead(fd, addressOf(count), 8), -EAGAIN);
  assert.equal(rawWrite(fd, addressOf(count), 8), 8);
  assert.equal(poll.wait(-1), 1);
  assert.equal(readSync(fd, count), 8);
  assert.equal(count[0], 3n);
  writeSync(fd, new BigUint64Array([1n]));
  assert.equal(poll.wait(0), 1);
});
