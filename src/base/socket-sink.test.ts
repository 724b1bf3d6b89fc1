import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { Writable } from 'node:stream';
import { test } from 'node:test';
import fc from 'fast-check';
import { PacedSink } from './socket-sink.ts';

/** What a socket is to a sink: takes a portion when `take` is called, as a peer that reads now and then. */
class SlowSocket extends Writable {
  readonly taken: Buffer[] = [];
  #waiting: { bytes: Buffer; taken: () => void } | null = null;

  override _writev(chunks: { chunk: Buffer }[], callback: () => void): void {
    this.#waiting = { bytes: Buffer.concat(chunks.map(({ chunk }) => chunk)), taken: callback };
  }

  get aheadBytes(): number {
    return this.writableLength;
  }

  take(): boolean {
    const waiting = this.#waiting;
    if (waiting === null) return false;
    this.#waiting = null;
    this.taken.push(waiting.bytes);
    waiting.taken();
    return true;
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('all bytes go out in order, no more than so many at a time, and the end comes last', async () => {
  const batch = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 4 });
  const step = fc.oneof(batch, fc.constant('take' as const));
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
      const socket = new SlowSocket();
      const sink = new PacedSink(socket as unknown as Socket, 256);
      const expected: Buffer[] = [];
      const done: number[] = [];
      let batches = 0;
      let value = 0;
      const take = async (): Promise<boolean> => {
        assert.ok(socket.aheadBytes <= 256, `${socket.aheadBytes} bytes are ahead`);
        const took = socket.take();
        await turn();
        return took;
      };
      for (const one of steps) {
        if (one === 'take') {
          await take();
          continue;
        }
        const chunks = one.map((lengthBytes) => {
          value += 1;
          return Buffer.alloc(lengthBytes, value);
        });
        expected.push(...chunks);
        const number = batches;
        batches += 1;
        sink.send(chunks, () => done.push(number));
      }
      sink.end();
      while (await take());
      assert.ok(socket.writableFinished);
      assert.deepEqual(Buffer.concat(socket.taken), Buffer.concat(expected));
      assert.deepEqual(
        done,
        Array.from({ length: batches }, (_, number) => number),
      );
    }),
    { numRuns: 200 },
  );
});

test('a batch is done when its last byte was taken, not when it was handed over', async () => {
  const socket = new SlowSocket();
  const sink = new PacedSink(socket as unknown as Socket, 100);
  let done = false;
  sink.send([Buffer.alloc(250)], () => {
    done = true;
  });
  for (const [portions, isDone] of [
    [1, false],
    [2, false],
    [3, true],
  ] as const) {
    socket.take();
    await turn();
    assert.equal(socket.taken.length, portions);
    assert.equal(done, isDone);
  }
});

test('of a socket that is gone nothing is written and nothing is done', async () => {
  const socket = new SlowSocket();
  const sink = new PacedSink(socket as unknown as Socket, 100);
  sink.send([Buffer.alloc(250)], () => assert.fail('it was never taken'));
  socket.destroy();
  await turn();
  sink.send([Buffer.alloc(10)], () => assert.fail('it was never taken'));
  sink.end();
  await turn();
  assert.equal(socket.taken.length, 0);
});
