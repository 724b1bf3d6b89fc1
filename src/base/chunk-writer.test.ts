import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { BufferPool } from './buffer-pool.ts';
import { ChunkWriter } from './chunk-writer.ts';
import { ClientBook } from './client-account.ts';

/** A pool that knows what is out. */
class CountingPool extends BufferPool {
  readonly out = new Set<Buffer>();

  override take(lengthBytes: number): Buffer {
    const buffer = super.take(lengthBytes);
    assert.ok(!this.out.has(buffer), 'a buffer is handed out once');
    this.out.add(buffer);
    return buffer;
  }

  override give(buffer: Buffer): void {
    assert.ok(this.out.delete(buffer), 'a buffer is given back once');
    // As its next owner would.
    buffer.fill(0xff);
    super.give(buffer);
  }
}

type Part = { kind: 'room' | 'payload' | 'flush' | 'written'; lengthBytes: number };

test('bytes go out in order and unharmed, whenever the kernel takes them', () => {
  const part: fc.Arbitrary<Part> = fc.record({
    kind: fc.constantFrom('room', 'room', 'payload', 'flush', 'written'),
    lengthBytes: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 33_000 })),
  });
  fc.assert(
    fc.property(fc.array(part, { maxLength: 60 }), fc.boolean(), (parts, dies) => {
      const pool = new CountingPool(1024 * 1024);
      const waiting: { chunks: Uint8Array[]; done: () => void }[] = [];
      const sent: Buffer[] = [];
      const expected: Buffer[] = [];
      const writer = new ChunkWriter((chunks, done) => waiting.push({ chunks, done }), pool);
      const written = () => {
        const batch = waiting.shift();
        if (batch === undefined) return;
        // The kernel reads the buffers no earlier than now.
        for (const chunk of batch.chunks) sent.push(Buffer.from(chunk));
        batch.done();
      };
      let released = 0;
      let payloads = 0;
      for (const [index, { kind, lengthBytes }] of parts.entries()) {
        const bytes = Buffer.alloc(lengthBytes, index + 1);
        if (kind === 'flush') writer.flush();
        else if (kind === 'written') written();
        else if (kind === 'room') {
          const at = writer.room(lengthBytes);
          bytes.copy(writer.slab, at);
          writer.filled(at + lengthBytes);
          expected.push(bytes);
        } else {
          payloads += 1;
          writer.payload(bytes, () => {
            released += 1;
            // Whoever gets it back writes to it.
            expected.push(Buffer.alloc(0));
          });
          expected.push(Buffer.from(bytes));
        }
      }
      if (dies) {
        writer.close();
      } else {
        writer.flush();
        while (waiting.length > 0) written();
        assert.ok(Buffer.concat(sent).equals(Buffer.concat(expected)));
        assert.equal(writer.queuedBytes, 0);
        assert.equal(pool.out.size, 0, 'with nothing to send there is no slab');
      }
      assert.equal(released, payloads);
    }),
    { numRuns: 1000 },
  );
});

test('a slab stays while a chunk of it waits for the next batch', () => {
  const waiting: { chunks: Uint8Array[]; done: () => void }[] = [];
  const pool = new CountingPool(1024 * 1024);
  const writer = new ChunkWriter((chunks, done) => waiting.push({ chunks, done }), pool);
  const header = (value: number) => {
    const at = writer.room(1);
    writer.slab[at] = value;
    writer.filled(at + 1);
  };
  header(1);
  writer.flush();
  header(2);
  writer.payload(Buffer.alloc(5000, 3));
  // The batch before it is written, and nothing of the slab is open.
  waiting.shift()!.done();
  writer.flush();
  const { chunks } = waiting.shift()!;
  assert.deepEqual([...Buffer.concat(chunks).subarray(0, 2)], [2, 3]);
});

test('a buffer whose parts are big and small is given back when all of them are written', () => {
  const waiting: { chunks: Uint8Array[]; done: () => void }[] = [];
  const writer = new ChunkWriter((chunks, done) => waiting.push({ chunks, done }), new BufferPool(0));
  const buffer = Buffer.alloc(300 * 1024, 7);
  let released = 0;
  const send = (...parts: Uint8Array[]) => {
    for (const part of parts) writer.payload(part, () => {});
    writer.afterwards(() => {
      released += 1;
    });
  };
  // Big, then one so small that it is copied.
  send(buffer.subarray(0, 20 * 1024), buffer.subarray(128 * 1024, 132 * 1024));
  assert.equal(released, 0);
  writer.flush();
  assert.equal(released, 0);
  waiting.shift()!.done();
  assert.equal(released, 1);
  // So big that it goes out at once, and nothing is left to go with.
  send(buffer);
  assert.equal(released, 1);
  waiting.shift()!.done();
  assert.equal(released, 2);
  writer.afterwards(() => {
    released += 1;
  });
  assert.equal(released, 3, 'nothing is on its way');
  send(buffer.subarray(0, 20 * 1024));
  writer.close();
  assert.equal(released, 4, 'a connection that is gone holds nothing');
});

test('a peer that takes nothing costs bytes, not batches: what comes later gathers and follows', () => {
  const waiting: { chunks: Uint8Array[]; done: () => void }[] = [];
  const clock = new FakeClock();
  const account = new ClientBook(clock).open({
    address: 'here',
    debt: () => 'nothing',
    movedBytes: () => 0,
    onRoom: () => {},
    drop: () => {},
  });
  const pool = new CountingPool(1024 * 1024);
  const writer = new ChunkWriter((chunks, done) => waiting.push({ chunks, done }), pool, account);
  const sent: Buffer[] = [];
  const expected: Buffer[] = [];
  for (let reply = 0; reply < 50_000; reply += 1) {
    const at = writer.room(16);
    writer.slab.fill(reply & 0xff, at, at + 16);
    writer.filled(at + 16);
    expected.push(Buffer.alloc(16, reply & 0xff));
    writer.flush();
  }
  assert.equal(waiting.length, 16);
  assert.equal(writer.queuedBytes, 800_000);
  assert.equal(account.heldBytes, pool.out.size * 128 * 1024, 'whole slabs are charged');
  while (waiting.length > 0) {
    const { chunks, done } = waiting.shift()!;
    sent.push(...chunks.map((chunk) => Buffer.from(chunk)));
    done();
  }
  assert.ok(Buffer.concat(sent).equals(Buffer.concat(expected)));
  assert.deepEqual([writer.queuedBytes, account.heldBytes, pool.out.size], [0, 0, 0]);
});
