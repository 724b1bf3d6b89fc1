import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { isGodwitError } from './errors.ts';
import { LINE_BYTES_MAX, type LineHandler, LineRpc } from './line-rpc.ts';

/** One end, and the wires to and from it. */
function bench(handler: LineHandler = async (op) => ({ op })) {
  const input = new PassThrough();
  const output = new PassThrough({ highWaterMark: 1024 });
  const events: string[] = [];
  const rpc = new LineRpc(input, output, { handler, onEvent: (event) => events.push(event) });
  /** What it has said until now. */
  const said = async (): Promise<Record<string, unknown>[]> => {
    for (let turns = 0; turns < 10; turns++) await turn();
    const text = (output.read() as Buffer | null)?.toString('utf8') ?? '';
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line));
  };
  let isOver = false;
  void rpc.closed.then(() => {
    isOver = true;
  });
  return { rpc, input, output, events, said, isOver: () => isOver };
}

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

test('lines come in any pieces, and what is no message is passed over', async () => {
  const { input, events, said } = bench();
  const text =
    '\nnull\n7\n"x"\n[]\n{"id":"7","op":"a"}\n{"id":1}\n{"id":1,"op":7}\nno json\n{"event":"ä","data":1}\n{"id":2,"op":"b"}\n';
  for (const byte of Buffer.from(text)) input.write(Buffer.of(byte));
  assert.deepEqual(await said(), [{ id: 2, ok: true, result: { op: 'b' } }]);
  assert.deepEqual(events, ['ä']);
});

test('an answer that is none ends its call, and nothing else', async () => {
  const { rpc, input, isOver } = bench();
  const replies = [
    '{}',
    '"error":null',
    '"error":7',
    '"error":{}',
    '"error":{"code":7,"message":"m"}',
    '"ok":false',
  ];
  const calls = replies.map(() => rpc.call('x', {}, null));
  const good = rpc.call('x', {}, null);
  const coded = rpc.call('x', {}, null);
  for (const [index, reply] of replies.entries())
    input.write(reply === '{}' ? `{"id":${index + 1}}\n` : `{"id":${index + 1},${reply}}\n`);
  input.write(`{"id":${replies.length + 1},"ok":true,"result":5}\n`);
  const error = { code: 'X_Y', message: 'm', nextAction: 'n', values: { a: 1, b: { c: 2 } }, retry: 'soon' };
  input.write(`${JSON.stringify({ id: replies.length + 2, error })}\n`);
  for (const call of calls) await assert.rejects(call, code('RPC_BAD_REPLY'));
  assert.equal(await good, 5);
  await assert.rejects(coded, (thrown) => {
    assert.ok(isGodwitError(thrown, 'X_Y'));
    assert.deepEqual([thrown.values, thrown.retry], [{ a: 1 }, 'unknown']);
    return true;
  });
  assert.equal(isOver(), false);
});

test('a line without an end is over soon, is not kept, and nothing behind it is answered', async () => {
  let asked = 0;
  const { rpc, input, isOver } = bench(async () => {
    asked++;
  });
  const call = assert.rejects(rpc.call('x', {}, null), code('RPC_CLOSED'));
  const piece = Buffer.alloc(64 * 1024, 'x');
  let pieces = 0;
  while (!isOver() && pieces < 1_000) {
    input.write(piece);
    pieces++;
    await turn();
  }
  await call;
  assert.ok(pieces * piece.length <= LINE_BYTES_MAX + 4 * piece.length, `${pieces}`);
  input.write('\n{"id":1,"op":"late"}\n');
  await turn();
  assert.equal(asked, 0);
});

test('who asks or is told and never reads does not fill this process', async () => {
  for (const fill of ['events', 'replies'] as const) {
    const big = 'x'.repeat(512 * 1024);
    const { rpc, input, output, isOver } = bench(async () => big);
    const call = assert.rejects(rpc.call('x', {}, null), code('RPC_CLOSED'));
    for (let count = 0; count < 100 && !isOver(); count++) {
      if (fill === 'events') rpc.emit('progress', big);
      else input.write(`{"id":${count},"op":"x"}\n`);
      await turn();
    }
    await call;
    assert.ok(output.writableLength <= 5 * LINE_BYTES_MAX, `${fill}: ${output.writableLength}`);
    rpc.emit('progress', big);
    await assert.rejects(rpc.call('x'), code('RPC_CLOSED'));
  }
});
