import assert from 'node:assert/strict';
import { connect, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { FakeWorkerService, machineView } from '../../test/support/fake-service.ts';
import { until } from '../../test/support/patience.ts';
import { isGodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import {
  encodeFrame,
  encodeJsonFrame,
  FRAME,
  type Frame,
  FrameReader,
  INPUT_WINDOW_BYTES,
} from '../contract/exec-frames.ts';
import type { ExecStart } from '../contract/schemas.ts';
import { ApiClient } from './client.ts';
import { createApiServer } from './server.ts';

const TOKEN = 'a-token-of-the-fleet';
const START: ExecStart = { command: ['echo'], terminal: { columns: 80, rows: 24, term: 'xterm' } };

async function setUp(t: TestContext) {
  const service = new FakeWorkerService('worker-1');
  service.machines.set('m', machineView({ id: 'm_1', name: 'm' }));
  const clock = new FakeClock();
  const app = await createApiServer({
    service,
    token: TOKEN,
    logger: silentLogger,
    version: '1',
    worker: 'worker-1',
    clock,
  });
  await app.listen({ host: '127.0.0.1', port: 0 });
  t.after(() => app.close());
  const { port } = app.server.address() as { port: number };
  const client = new ApiClient({
    url: `http://127.0.0.1:${port}`,
    token: TOKEN,
    worker: { name: 'worker-1', isOld: 'ask' },
  });
  t.after(() => client.close());
  const open = async (start = START, ref = 'm') => {
    const output = { stdout: '', stderr: '' };
    const stream = await client.execStream(ref, start, {
      signal: new AbortController().signal,
      onOutput: (name, bytes) => {
        output[name] += bytes.toString();
      },
    });
    t.after(() => stream.close(new Error('over')));
    return { stream, output };
  };
  return { app, service, clock, client, port, open };
}

/** A client that does as the test says, not as ours does. */
class RawClient {
  readonly socket: Socket;
  readonly frames: Frame[] = [];
  text = '';
  readonly #reader = new FrameReader();

  constructor(t: TestContext, port: number) {
    this.socket = connect(port, '127.0.0.1');
    t.after(() => this.socket.destroy());
    this.socket.on('error', () => {});
    this.socket.on('data', (chunk: Buffer) => {
      let rest = chunk;
      if (!this.text.includes('\r\n\r\n')) {
        this.text += chunk.toString('latin1');
        const end = this.text.indexOf('\r\n\r\n');
        if (end === -1) return;
        rest = Buffer.from(this.text.slice(end + 4), 'latin1');
        this.text = this.text.slice(0, end + 4);
      }
      this.frames.push(...this.#reader.push(rest));
    });
    this.socket.write(
      `GET /v1/machines/m/session HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${TOKEN}\r\nconnection: Upgrade\r\nupgrade: godwit-exec/1\r\n\r\n`,
    );
  }

  start(command: string): void {
    this.socket.write(encodeJsonFrame(FRAME.start, { ...START, command: [command] }));
  }

  /** Resolves with the code of the error that the worker ends it with. */
  async failed(): Promise<string> {
    const frame = await until('the refusal', () => this.frames.find(({ kind }) => kind === FRAME.failed));
    return JSON.parse(frame.payload.toString()).code;
  }
}

test('input, output, sizes, the end of input and the exit code go over one connection', async (t) => {
  const { service, open } = await setUp(t);
  const { stream, output } = await open();
  stream.resize({ columns: 120, rows: 40 });
  const input = 'x'.repeat(5 * INPUT_WINDOW_BYTES);
  await stream.write(Buffer.from(input));
  stream.endInput();
  assert.deepEqual(await stream.ended, { exitCode: 7, signal: null });
  assert.equal(output.stdout, input);
  assert.equal(output.stderr, 'no more');
  assert.deepEqual(service.calls, [`session ${JSON.stringify(START)}`, 'resize 120x40']);
});

test('a machine that is not there, a wrong token and another worker are refused as everywhere', async (t) => {
  const { open, port } = await setUp(t);
  const { stream } = await open(START, 'nobody');
  await assert.rejects(stream.ended, (error) => isGodwitError(error, 'MACHINE_NOT_FOUND'));
  const signal = new AbortController().signal;
  for (const [options, code] of [
    [{ token: 'wrong' }, 'API_UNAUTHORIZED'],
    [{ token: TOKEN, worker: { name: 'worker-2', isOld: 'believe' as const } }, 'API_WRONG_WORKER'],
  ] as const) {
    const other = new ApiClient({ url: `http://127.0.0.1:${port}`, ...options });
    t.after(() => other.close());
    await assert.rejects(other.execStream('m', START, { signal, onOutput: () => {} }), (error) =>
      isGodwitError(error, code),
    );
  }
  const answer = await fetch(`http://127.0.0.1:${port}/v1/machines/m/session`, {
    headers: { authorization: `Bearer ${TOKEN}` },
  });
  assert.equal(answer.status, 400);
});

test('who leaves, in whatever way, hangs the command up; so does the server that closes', async (t) => {
  const { app, service, open, port } = await setUp(t);
  const hungUp = (index: number) => until('the hangup', () => service.sessions[index]?.isHungUp);
  const { stream } = await open();
  stream.close(new Error('enough'));
  await assert.rejects(stream.ended, /enough/);
  await hungUp(0);
  for (const leave of [(socket: Socket) => socket.resetAndDestroy(), (socket: Socket) => socket.end()]) {
    const raw = new RawClient(t, port);
    const index = service.sessions.length;
    raw.start('echo');
    await until('the session', () => service.sessions[index]);
    leave(raw.socket);
    await hungUp(index);
  }
  const last = await open();
  await until('the session', () => service.sessions[3]);
  await Promise.all([
    app.close(),
    assert.rejects(last.stream.ended, (error) => isGodwitError(error, 'API_UNREACHABLE')),
  ]);
  await hungUp(3);
});

test('one that does not read makes the command wait; one that sends more than its window is refused', async (t) => {
  const { service, port } = await setUp(t);
  const deaf = new RawClient(t, port);
  deaf.start('fill');
  await until('output', () => deaf.frames.some(({ kind }) => kind === FRAME.stdout));
  deaf.socket.pause();
  const filled = service.sessions[0]!;
  let before = -1;
  await until('the command to wait', async () => {
    const isStill = filled.writtenBytes === before;
    before = filled.writtenBytes;
    await new Promise((resolve) => setTimeout(resolve, 100));
    return isStill && filled.writtenBytes === before;
  });
  // What the kernel holds for a connection over loopback, at most (tcp_wmem, tcp_rmem), and a piece of ours.
  assert.ok(filled.writtenBytes < 32 * 2 ** 20, `${filled.writtenBytes} bytes are held`);
  deaf.socket.resume();
  await until('it to go on', () => filled.writtenBytes > before);
  deaf.socket.destroy();

  const greedy = new RawClient(t, port);
  greedy.start('hold');
  for (let sent = 0; sent <= INPUT_WINDOW_BYTES; sent += 8192)
    greedy.socket.write(encodeFrame(FRAME.input, Buffer.alloc(8192)));
  assert.equal(await greedy.failed(), 'API_BAD_FRAME');
  await until('the hangup', () => service.sessions[1]!.isHungUp);
});

test('nonsense is refused in words, and a command that was never named is none', async (t) => {
  const { port, service } = await setUp(t);
  const said: Buffer[] = [
    encodeFrame(FRAME.input, Buffer.from('before the start')),
    encodeFrame(FRAME.start, Buffer.from('{')),
    encodeJsonFrame(FRAME.start, { command: [], terminal: null }),
    encodeJsonFrame(FRAME.start, { command: ['x'], terminal: { columns: 0, rows: 1, term: 'x' } }),
    encodeJsonFrame(FRAME.start, { command: ['x'], terminal: { columns: 1, rows: 1, term: 'a=b' } }),
    encodeJsonFrame(FRAME.start, { command: ['x\0y'], terminal: null }),
    encodeJsonFrame(FRAME.start, { command: ['x'], terminal: null, more: 1 }),
    encodeFrame(FRAME.taken),
    Buffer.from('GET / HTTP/1.1\r\n\r\n'),
  ];
  for (const bytes of said) {
    const raw = new RawClient(t, port);
    raw.socket.write(bytes);
    assert.equal(await raw.failed(), 'API_BAD_FRAME', bytes.toString());
    await until('the end of the connection', () => raw.socket.closed);
  }
  assert.equal(service.sessions.length, 0);
});

test('a client that says nothing for a minute is gone, and one that says it is there is not', async (t) => {
  const { clock, port, service } = await setUp(t);
  const raw = new RawClient(t, port);
  raw.start('echo');
  await until('the session', () => service.sessions[0]);
  for (let beat = 1; beat <= 8; beat++) {
    await clock.run(15_000);
    await until(
      'the sign of life',
      () => raw.frames.filter(({ kind }) => kind === FRAME.alive).length >= beat,
    );
    raw.socket.write(encodeFrame(FRAME.input, Buffer.from('.')));
    await until('the answer', () => raw.frames.filter(({ kind }) => kind === FRAME.taken).length === beat);
  }
  assert.equal(service.sessions[0]!.isHungUp, false);
  await clock.run(80_000);
  await until('the hangup', () => service.sessions[0]!.isHungUp);
});
