import assert from 'node:assert/strict';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { type TestContext, test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { DelayDevice } from '../../test/support/delay-device.ts';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { nbdClientOptions, startNbdClient, startNbdServer } from '../../test/support/nbd-pair.ts';
import { letPass, patient, until } from '../../test/support/patience.ts';
import { TcpRelay } from '../../test/support/relay.ts';
import { SILENCE, testRemoteConformance } from '../../test/support/remote-conformance.ts';
import { reached } from '../../test/support/remote-state.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { NbdClient } from './client.ts';
import type { NbdClientOptions } from './client-dialect.ts';
import {
  COMMAND,
  decodeRequest,
  encodeGreeting,
  encodeInfo,
  encodeOptionReply,
  encodeSimpleReply,
  NBD_ERROR,
  OPTION,
  OPTION_REPLY,
  REQUEST_BYTES,
  type Request,
  requestPayloadBytes,
  TRANSMISSION_FLAG,
} from './protocol.ts';

const MIB = 1024 * 1024;

for (const connections of [1, 3]) {
  testConformance(`NBD over loopback, ${connections} connections`, {
    open: async (t, { lengthBytes, writable, content }) => {
      const device = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
      const { address } = await startNbdServer(t, device);
      return startNbdClient(t, address, { connections, readOnly: !writable });
    },
    runs: 25,
  });
}

test('a server that is silent is given twice as long at each try, so that one that is only slow gets its word in', async (t) => {
  const clock = new FakeClock();
  const dialledAtMs: number[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    dialledAtMs.push(clock.monotonicMs());
    sockets.add(socket);
    socket.on('error', () => {}).resume();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = { host: '127.0.0.1', port: (server.address() as AddressInfo).port };
  const client = NbdClient.open({
    ...nbdClientOptions(address, { clock, handshakeTimeoutMs: 10_000 }),
    expected: { lengthBytes: MIB },
  });
  t.after(async () => {
    await client.close();
    for (const socket of sockets) socket.destroy();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  });
  await until('four tries', () => {
    if (dialledAtMs.length > 0) clock.advance(500);
    return dialledAtMs.length >= 4 || null;
  });
  const waitedMs = dialledAtMs.slice(1).map((atMs, index) => atMs - dialledAtMs[index]!);
  for (const [index, atLeastMs] of [10_000, 20_000, 40_000].entries())
    assert.ok(waitedMs[index]! >= atLeastMs, `${waitedMs}`);
});

/** An old server: simple replies, no INFO, what `answer` says. */
async function oldServer(
  t: TestContext,
  options: {
    lengthBytes?: () => number;
    flags?: number;
    /** Error number, and the bytes of a read that succeeds; null: no answer at all. */
    answer: (request: Request, payload: Buffer, socket: Socket) => { error: number; data?: Buffer } | null;
    /** Sees what is there from the head of a request on; true: it takes the connection over. */
    onRequest?: (socket: Socket, bytes: Buffer) => boolean;
  },
): Promise<{ host: string; port: number }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => sockets.delete(socket));
    serveOld(socket, options);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { host: '127.0.0.1', port: (server.address() as { port: number }).port };
}

function serveOld(socket: Socket, options: Parameters<typeof oldServer>[1]): void {
  let input = Buffer.alloc(0);
  let phase: 'flags' | 'options' | 'requests' = 'flags';
  const take = (count: number): Buffer => {
    const taken = input.subarray(0, count);
    input = input.subarray(count);
    return taken;
  };
  socket.write(encodeGreeting(3));
  socket.on('data', (chunk) => {
    input = Buffer.concat([input, chunk]);
    for (;;) {
      if (phase === 'flags') {
        if (input.length < 4) return;
        take(4);
        phase = 'options';
      } else if (phase === 'options') {
        if (input.length < 16 || input.length < 16 + input.readUInt32BE(12)) return;
        const option = input.readUInt32BE(8);
        take(16 + input.readUInt32BE(12));
        if (option === OPTION.go) {
          const lengthBytes = options.lengthBytes?.() ?? MIB;
          const transmissionFlags = (options.flags ?? 0) | TRANSMISSION_FLAG.hasFlags;
          socket.write(
            encodeOptionReply(
              option,
              OPTION_REPLY.info,
              encodeInfo({ type: 'export', lengthBytes, transmissionFlags }),
            ),
          );
          socket.write(encodeOptionReply(option, OPTION_REPLY.ack));
          phase = 'requests';
        } else socket.write(encodeOptionReply(option, OPTION_REPLY.errorUnsupported));
      } else {
        if (input.length < REQUEST_BYTES || options.onRequest?.(socket, input)) return;
        const request = decodeRequest(input, 0, false);
        const payloadBytes = requestPayloadBytes(request, false);
        if (input.length < REQUEST_BYTES + payloadBytes) return;
        take(REQUEST_BYTES);
        const answer = options.answer(request, take(payloadBytes), socket);
        if (answer === null) continue;
        const reply = Buffer.alloc(16);
        encodeSimpleReply(reply, 0, { ...request, error: answer.error });
        socket.write(Buffer.concat([reply, answer.data ?? Buffer.alloc(0)]));
      }
    }
  });
}

const zeros = (request: Request) =>
  request.type === COMMAND.read ? { error: 0, data: Buffer.alloc(request.lengthBytes) } : { error: 0 };

test('connections cut again and again: every read and write is answered once, with the right data', async (t) => {
  const device = new MemoryDevice({ lengthBytes: 8 * MIB });
  const { address } = await startNbdServer(t, device);
  const relay = new TcpRelay(address);
  await relay.listen();
  t.after(() => relay.close());
  const client = await startNbdClient(t, { host: '127.0.0.1', port: relay.port }, { connections: 2 });
  let running = true;
  const cuts = (async () => {
    for (let count = 0; running && count < 8; count += 1) {
      await systemClock.sleep(40);
      relay.cut();
    }
  })();
  // Each worker owns a stripe, so that what it wrote last is what it must read.
  const worker = async (index: number): Promise<void> => {
    const random = seededRandom(index);
    for (let round = 0; round < 40; round += 1) {
      const data = Buffer.from(random.bytes(512 * (1 + random.below(200))));
      const offsetBytes = index * MIB + 512 * random.below(1024);
      await client.write(offsetBytes, data);
      const back = Buffer.alloc(data.length);
      await client.read(offsetBytes, back);
      assert.ok(back.equals(data), `stripe ${index}, round ${round}`);
    }
  };
  await Promise.all(Array.from({ length: 8 }, (_, index) => worker(index)));
  running = false;
  await cuts;
  assert.ok(client.statistics.reconnects > 0);
  assert.equal(client.statistics.inFlight, 0);
});

test('an export of another length is refused for good, and so is all that waits', async (t) => {
  let lengthBytes = MIB;
  const relayed = await oldServer(t, { lengthBytes: () => lengthBytes, answer: zeros });
  const relay = new TcpRelay(relayed);
  await relay.listen();
  t.after(() => relay.close());
  const client = await startNbdClient(t, { host: '127.0.0.1', port: relay.port });
  await client.read(0, Buffer.alloc(4096));
  lengthBytes = 2 * MIB;
  relay.cut();
  const changed = (error: unknown) => isGodwitError(error, 'NBD_EXPORT_CHANGED');
  await reached(client, 'failed');
  await assert.rejects(client.read(0, Buffer.alloc(4096)), changed);
  await assert.rejects(client.write(0, Buffer.alloc(4096)), changed);
  await assert.rejects(client.flush(), changed);
  const wrong = nbdClientOptions(relayed, { expected: { lengthBytes: MIB } });
  await assert.rejects(NbdClient.connect(wrong), changed);
});

test('refusals reject at once; a server that is away is waited for', async (t) => {
  const { address } = await startNbdServer(t, new MemoryDevice({ lengthBytes: MIB }));
  const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);
  await assert.rejects(
    NbdClient.connect(nbdClientOptions(address, { exportName: 'other' })),
    code('NBD_EXPORT_UNKNOWN'),
  );
  await assert.rejects(
    NbdClient.connect(nbdClientOptions(address, { tls: { mode: 'require' } })),
    code('NBD_TLS_REFUSED'),
  );
  const allowing = await startNbdClient(t, address, { tls: { mode: 'allow' } });
  await allowing.read(0, Buffer.alloc(512));
  await assert.rejects(
    NbdClient.connect(nbdClientOptions({ host: '127.0.0.1', port: 1 }), { timeoutMs: patient(100) }),
    code('NBD_CONNECTION_LOST'),
  );
  const odd = await oldServer(t, { lengthBytes: () => 1000, answer: zeros });
  await assert.rejects(NbdClient.connect(nbdClientOptions(odd)), code('NBD_UNSUPPORTED_EXPORT'));
});

test('errors of the server become errors with names', async (t) => {
  let error: number = NBD_ERROR.EIO;
  const address = await oldServer(t, {
    flags: TRANSMISSION_FLAG.sendFlush,
    answer: () => ({ error }),
  });
  const client = await startNbdClient(t, address);
  const failsWith = (code: string) =>
    assert.rejects(client.write(0, Buffer.alloc(512)), (e) => isGodwitError(e, code));
  await failsWith('NBD_REQUEST_FAILED');
  await assert.rejects(
    client.read(0, Buffer.alloc(512)),
    (e) => isGodwitError(e) && e.values.error === 'EIO',
  );
  await assert.rejects(client.flush(), (e) => isGodwitError(e, 'NBD_REQUEST_FAILED'));
  error = NBD_ERROR.ENOSPC;
  await failsWith('BLOCK_NO_SPACE');
  error = NBD_ERROR.EPERM;
  await failsWith('BLOCK_READ_ONLY');
  assert.equal(client.state, 'connected');
});

test('a server without WRITE_ZEROES gets zeros, one without FUA a flush', async (t) => {
  const seen: string[] = [];
  const address = await oldServer(t, {
    flags: TRANSMISSION_FLAG.sendFlush,
    answer: (request, payload) => {
      seen.push(
        `${request.type}:${request.offsetBytes}:${request.lengthBytes}:${payload.every((byte) => byte === 0)}`,
      );
      return zeros(request);
    },
  });
  const client = await startNbdClient(t, address);
  await client.discard(4096, 8192);
  await client.write(512, Buffer.alloc(512, 1), { fua: true });
  assert.deepEqual(seen, ['1:4096:8192:true', '1:512:512:false', '3:0:0:true']);
  assert.deepEqual(await client.extents(0, MIB, 10), [{ offsetBytes: 0, lengthBytes: MIB, kind: 'data' }]);
});

test('a request that is never answered ends its connection and is sent again; an idle server is asked whether it lives', async (t) => {
  let deaf = true;
  let reads = 0;
  const address = await oldServer(t, {
    answer: (request) => {
      reads += 1;
      return deaf ? null : zeros(request);
    },
  });
  const client = await startNbdClient(t, address, {
    keepAliveIntervalMs: patient(20),
    keepAliveTimeoutMs: patient(20),
    requestTimeoutMs: patient(60),
  });
  const read = client.read(4096, Buffer.alloc(4096));
  await reached(client, 'lost');
  assert.equal(client.lastError?.code, 'NBD_SILENT');
  deaf = false;
  await read;
  assert.ok(client.statistics.replayed > 0);
  const before = reads;
  await until('another read', () => reads > before);
  deaf = true;
  await reached(client, 'lost');
  assert.equal(client.lastError?.code, 'NBD_SILENT');
  assert.notEqual(client.lostSinceMs, null);
});

test('a buffer is its caller’s again when the kernel has taken all of it, however early the server answers', async (t) => {
  const sockets: Socket[] = [];
  let taken = Buffer.alloc(0);
  const address = await oldServer(t, {
    flags: 0,
    lengthBytes: () => 64 * MIB,
    answer: zeros,
    // Answers a write when it has seen its head, and then takes nothing for a while.
    onRequest: (socket, head) => {
      if (head.readUInt16BE(6) !== COMMAND.write) return false;
      const reply = Buffer.alloc(16);
      encodeSimpleReply(reply, 0, { ...decodeRequest(head, 0, false), error: 0 });
      socket.removeAllListeners('data');
      socket.pause();
      socket.write(reply);
      taken = Buffer.from(head.subarray(REQUEST_BYTES));
      sockets.push(socket);
      return true;
    },
  });
  const client = await startNbdClient(t, address, { transferBytesMax: 32 * MIB });
  const data = Buffer.alloc(32 * MIB, 'w');
  let isDone = false;
  const writing = client.write(0, data).then(() => {
    isDone = true;
  });
  await until('the answer to be on its way', () => sockets.length > 0);
  await systemClock.sleep(letPass(50));
  assert.equal(isDone, false, 'the kernel still reads from it');
  let takenBytes = taken.length;
  let others = 0;
  sockets[0]!.on('data', (bytes: Buffer) => {
    // Behind it comes the question whether the server lives, on a slow machine.
    const ours = bytes.subarray(0, Math.max(0, data.length - takenBytes));
    takenBytes += bytes.length;
    if (!ours.every((byte) => byte === 0x77)) others += 1;
  });
  sockets[0]!.resume();
  await writing;
  data.fill('x');
  await until('all of it', () => takenBytes >= data.length);
  assert.equal(others, 0, 'nothing that the caller wrote afterwards');
});

test('ESHUTDOWN sends the request to the server that comes next', async (t) => {
  let isLeaving = true;
  const address = await oldServer(t, {
    answer: (request) => {
      if (!isLeaving) return zeros(request);
      isLeaving = false;
      return { error: NBD_ERROR.ESHUTDOWN };
    },
  });
  const client = await startNbdClient(t, address);
  await client.read(0, Buffer.alloc(4096));
  assert.equal(client.statistics.reconnects, 1);
});

test('a server that is slow for all that is asked is not silent: what stands behind others is not late', async (t) => {
  const content = Buffer.alloc(MIB, 'x');
  const limitMs = SILENCE.requestTimeoutMs;
  // Three reads in the time of one.
  const bytesPerSecond = (4096 * 3 * 1000) / limitMs;
  const device = new DelayDevice(new MemoryDevice({ lengthBytes: MIB, content }), systemClock, {
    bytesPerSecond,
  });
  const { address } = await startNbdServer(t, device);
  const client = await startNbdClient(t, address, SILENCE);
  const reads = Array.from({ length: 32 }, () => Buffer.alloc(4096));
  await Promise.all(reads.map((into, index) => client.read(index * 4096, into)));
  assert.ok(reads.every((into) => into.equals(Buffer.alloc(4096, 'x'))));
  assert.equal(client.lastError, null);
});

test('an answer that comes slowly is not late while it comes; one that stops is', async (t) => {
  let stops = false;
  const pieces = 16;
  const address = await oldServer(t, {
    answer: (request, _payload, socket) => {
      const head = Buffer.alloc(16);
      encodeSimpleReply(head, 0, { ...request, error: 0 });
      socket.write(head);
      let sent = 0;
      const next = (): void => {
        if (socket.destroyed || (stops && sent === pieces / 2)) return;
        sent += 1;
        socket.write(Buffer.alloc(request.lengthBytes / pieces, 'x'));
        if (sent < pieces) systemClock.timer(SILENCE.requestTimeoutMs / 3, next);
      };
      next();
      return null;
    },
  });
  const client = await startNbdClient(t, address, SILENCE);
  const into = Buffer.alloc(MIB);
  await client.read(0, into);
  assert.ok(into.equals(Buffer.alloc(MIB, 'x')));
  assert.equal(client.statistics.replayed, 0);
  stops = true;
  const second = client.read(0, into);
  await until('the end of the connection', () => client.lastError !== null);
  assert.equal(client.lastError?.code, 'NBD_SILENT');
  stops = false;
  await second;
});

test('a server that sends every request to the next one is asked ever more rarely, and it is said why', async (t) => {
  const pausesMs: number[] = [];
  const clock = {
    ...{ wallMs: () => systemClock.wallMs(), monotonicMs: () => systemClock.monotonicMs() },
    timer: (delayMs: number, callback: () => void) => systemClock.timer(delayMs, callback),
    sleep: (delayMs: number, signal?: AbortSignal) => {
      pausesMs.push(delayMs);
      return systemClock.sleep(1, signal);
    },
  };
  let isLeaving = true;
  const address = await oldServer(t, {
    answer: (request) => (isLeaving ? { error: NBD_ERROR.ESHUTDOWN } : zeros(request)),
  });
  const client = await startNbdClient(t, address, { clock, backoffMs: 50, backoffMsMax: 3_000 });
  const abort = new AbortController();
  const unwanted = client.read(8192, Buffer.alloc(4096), { signal: abort.signal });
  const reading = client.read(0, Buffer.alloc(4096));
  abort.abort(new Error('not any more'));
  await assert.rejects(unwanted, /not any more/);
  await until('eight pauses', () => pausesMs.length >= 8);
  assert.ok(pausesMs[7]! >= 1_500, String(pausesMs));
  assert.match(client.trouble!.message, /shutting down/);
  isLeaving = false;
  await reading;
  assert.equal(client.trouble, null);
});

test('of two connections one is never answered: once that is known, nobody waits for it', async (t) => {
  let answered: Socket | null = null;
  let ends = 0;
  const address = await oldServer(t, {
    flags: TRANSMISSION_FLAG.canMultiConn,
    answer: (request, _payload, socket) => {
      if (answered === null) {
        answered = socket;
        socket.once('close', () => {
          answered = null;
          ends += 1;
        });
      }
      return socket === answered ? zeros(request) : null;
    },
  });
  const client = await startNbdClient(t, address, { ...SILENCE, connections: 2 });
  await client.read(0, Buffer.alloc(512));
  let left = 0;
  while (client.statistics.reconnects < 3) {
    await Promise.all(Array.from({ length: 8 }, () => client.read(4096, Buffer.alloc(4096))));
    if (client.statistics.reconnects > 0) left += 1;
  }
  assert.ok(left > 0);
  const { replayed } = client.statistics;
  // It has up to eight before anything was answered anywhere.
  assert.ok(replayed <= 8 * (1 + ends), `${replayed} reads waited for it`);
  assert.equal(client.state, 'connected');
});

test('guests pass the background, which never takes the last quarter of the queue', async (t) => {
  const inner = new MemoryDevice({ lengthBytes: 8 * MIB });
  const device = new DelayDevice(inner, systemClock, { latencyMs: 20 });
  const { address } = await startNbdServer(t, device);
  const client = await startNbdClient(t, address, { queueDepth: 4 });
  const order: string[] = [];
  const read = (name: string, priority: 'guest' | 'background') =>
    client.read(0, Buffer.alloc(4096), { priority }).then(() => order.push(name));
  const all = [
    ...Array.from({ length: 6 }, (_, index) => read(`background ${index}`, 'background')),
    read('guest', 'guest'),
  ];
  assert.equal(client.statistics.inFlight, 4);
  await Promise.all(all);
  assert.ok(order.indexOf('guest') < 4, order.join());
});

test('a signal takes a read out of the queue; close rejects what waits and leaves buffers alone', async (t) => {
  const inner = new MemoryDevice({ lengthBytes: 8 * MIB, content: new Uint8Array(8 * MIB).fill(7) });
  const device = new DelayDevice(inner, systemClock, { latencyMs: 100 });
  const { address } = await startNbdServer(t, device);
  const client = await startNbdClient(t, address, { queueDepth: 1 });
  const buffer = Buffer.alloc(MIB);
  const first = client.read(0, buffer);
  first.catch(() => {});
  const abort = new AbortController();
  const second = client.read(0, Buffer.alloc(4096), { signal: abort.signal });
  abort.abort(new Error('enough'));
  await assert.rejects(second, /enough/);
  await client.close();
  await assert.rejects(first, (error) => isGodwitError(error, 'BLOCK_CLOSED'));
  const before = Buffer.from(buffer);
  await systemClock.sleep(150);
  assert.ok(buffer.equals(before));
  await client.close();
  assert.equal(client.state, 'closed');
});

test('lists exports with their descriptions', async (t) => {
  const device = new MemoryDevice({ lengthBytes: MIB });
  const { server, address } = await startNbdServer(t, device, { share: { description: 'the first' } });
  server.addExport({ name: 'zweite Plätte', device });
  assert.deepEqual(await NbdClient.listExports({ address, clock: systemClock }), [
    { name: 'disk', description: 'the first' },
    { name: 'zweite Plätte', description: '' },
  ]);
});

for (const connections of [1, 3]) {
  const optionsOf = (port: number, options: Partial<NbdClientOptions>) =>
    nbdClientOptions({ host: '127.0.0.1', port }, { ...SILENCE, connections, ...options });
  testRemoteConformance({
    name: `NBD, ${connections} connections`,
    codes: { changed: 'NBD_EXPORT_CHANGED', silent: 'NBD_SILENT', failed: 'NBD_REQUEST_FAILED' },
    serve: async (t, device) => (await startNbdServer(t, device)).address,
    connect: (port, options, wait) => NbdClient.connect(optionsOf(port, options), wait),
    open: (port, lengthBytes, options) =>
      NbdClient.open({ ...optionsOf(port, options), expected: { lengthBytes } }),
  });
}
