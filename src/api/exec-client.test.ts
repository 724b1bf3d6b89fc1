import assert from 'node:assert/strict';
import { Duplex } from 'node:stream';
import { test } from 'node:test';
import { nextTurn } from '../base/turn.ts';
import { encodeFrame, FRAME } from '../contract/exec-frames.ts';
import { ExecStream } from './exec-client.ts';

test('while output is not taken nothing more is read, so that the command waits and not this process holds it', async (t) => {
  const socket = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
  const taken: string[] = [];
  let take = Promise.withResolvers<void>();
  const stream = new ExecStream(socket, Buffer.alloc(0), {
    url: 'http://worker-1',
    start: { command: ['yes'], terminal: null },
    onOutput: (_name, bytes) => {
      taken.push(bytes.toString());
      return take.promise;
    },
  });
  t.after(() => stream.close(new Error('over')));
  for (const text of ['one', 'two', 'three']) {
    socket.push(encodeFrame(FRAME.stdout, Buffer.from(text)));
    await nextTurn();
  }
  assert.deepEqual(taken, ['one']);
  assert.ok(socket.isPaused());
  take.resolve();
  take = Promise.withResolvers();
  take.resolve();
  while (taken.length < 3) await nextTurn();
  assert.deepEqual(taken, ['one', 'two', 'three']);
  while (socket.isPaused()) await nextTurn();
});
