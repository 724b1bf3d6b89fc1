import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { DelayDevice } from '../../test/support/delay-device.ts';
import { initiatorOptions, startInitiator, startTarget } from '../../test/support/iscsi-pair.ts';
import { patient, until } from '../../test/support/patience.ts';
import { TcpRelay } from '../../test/support/relay.ts';
import { SILENCE, testRemoteConformance } from '../../test/support/remote-conformance.ts';
import { reached } from '../../test/support/remote-state.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { IscsiInitiator } from './initiator.ts';

const MIB = 1024 * 1024;

for (const digests of [false, true]) {
  testConformance(`iSCSI over loopback, digests ${digests ? 'on' : 'off'}`, {
    open: async (t, { lengthBytes, writable, content }) => {
      const device = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
      const { target } = await startTarget(t, device);
      return startInitiator(t, target.port, { digests, readOnly: !writable });
    },
    runs: 25,
  });
}

async function relayed(t: import('node:test').TestContext, port: number): Promise<TcpRelay> {
  const relay = new TcpRelay({ host: '127.0.0.1', port });
  await relay.listen();
  t.after(() => relay.close());
  return relay;
}

test('big and odd transfers come back as written, whatever the segment sizes', async (t) => {
  for (const limits of [
    {},
    { dataSegmentBytesMax: 4096, burstBytesMax: 8192, firstBurstBytesMax: 1024 },
    { transferBytesMax: 65536, queueDepth: 2 },
    { writeBytesMax: 1 },
  ]) {
    const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: 8 * MIB }), { limits });
    const initiator = await startInitiator(t, target.port);
    const written = Buffer.from(seededRandom(11).bytes(3 * MIB + 512));
    await initiator.write(1536, written);
    const read = Buffer.alloc(written.length);
    await initiator.read(1536, read);
    assert.ok(read.equals(written), JSON.stringify(limits));
  }
});

test('cut again and again: every read and write is answered once, with the right data', async (t) => {
  const device = new MemoryDevice({ lengthBytes: 8 * MIB });
  const { target } = await startTarget(t, device);
  const relay = await relayed(t, target.port);
  const initiator = await startInitiator(t, relay.port, { readOnly: false });
  const expected = Buffer.alloc(8 * MIB);
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
      const lengthBytes = 512 * (1 + random.below(200));
      const offsetBytes = index * MIB + 512 * random.below(1024);
      const data = Buffer.from(random.bytes(lengthBytes));
      await initiator.write(offsetBytes, data);
      data.copy(expected, offsetBytes);
      const back = Buffer.alloc(lengthBytes);
      await initiator.read(offsetBytes, back);
      assert.ok(back.equals(data), `stripe ${index}, round ${round}`);
    }
  };
  await Promise.all(Array.from({ length: 8 }, (_, index) => worker(index)));
  running = false;
  await cuts;
  const all = Buffer.alloc(8 * MIB);
  await initiator.read(0, all);
  assert.ok(all.equals(expected));
  assert.ok(initiator.statistics.reconnects > 0);
});

test('a stalled connection is noticed and replaced', async (t) => {
  const { target } = await startTarget(
    t,
    new MemoryDevice({ lengthBytes: MIB, content: seededRandom(1).bytes(MIB) }),
  );
  const relay = await relayed(t, target.port);
  const initiator = await startInitiator(t, relay.port, {
    keepAliveIntervalMs: patient(50),
    keepAliveTimeoutMs: patient(100),
    loginTimeoutMs: patient(200),
  });
  relay.stall();
  const into = Buffer.alloc(65536);
  const reading = initiator.read(0, into);
  await reached(initiator, 'lost');
  assert.equal(initiator.lastError?.code, 'ISCSI_SILENT');
  assert.notEqual(initiator.lostSinceMs, null);
  assert.equal(initiator.statistics.queued, 1);
  relay.resume();
  await reading;
  assert.deepEqual(into, Buffer.from(seededRandom(1).bytes(MIB)).subarray(0, 65536));
  assert.equal(initiator.state, 'connected');
  assert.equal(initiator.lostSinceMs, null);
});

test('reads wait while the target is away, and the other portal is tried', async (t) => {
  const content = seededRandom(2).bytes(MIB);
  const first = await startTarget(t, new MemoryDevice({ lengthBytes: MIB, content }));
  const relay = await relayed(t, first.target.port);
  const second = await relayed(t, first.target.port);
  const initiator = await startInitiator(t, relay.port, {
    portals: [
      { host: '127.0.0.1', port: relay.port },
      { host: '127.0.0.1', port: second.port },
    ],
  });
  relay.refuse();
  second.refuse();
  const into = Buffer.alloc(4096);
  let done = false;
  const reading = initiator.read(8192, into).then(() => {
    done = true;
  });
  await reached(initiator, 'lost');
  const tried = () => Math.min(relay.accepted, second.accepted);
  const before = tried();
  await until('each portal to be tried', tried, { is: (count) => count > before });
  assert.equal(done, false);
  assert.notEqual(initiator.state, 'connected');
  second.resume();
  await reading;
  assert.deepEqual(into, Buffer.from(content.subarray(8192, 8192 + 4096)));
});

test('a target that was killed and started again is found again', async (t) => {
  const content = seededRandom(3).bytes(MIB);
  const first = await startTarget(t, new MemoryDevice({ lengthBytes: MIB, content }));
  const { port } = first.target;
  const initiator = await startInitiator(t, port);
  await first.target.close();
  await reached(initiator, 'lost');
  const into = Buffer.alloc(MIB);
  const reading = initiator.read(0, into);
  await startTarget(t, new MemoryDevice({ lengthBytes: MIB, content }), { port });
  await reading;
  assert.deepEqual(into, Buffer.from(content));
});

for (const [what, lengthBytes, serial] of [
  ['length', 2 * MIB, 'volume-1'],
  ['serial number', MIB, 'volume-2'],
] as const) {
  test(`a target that comes back with another ${what} is refused for good`, async (t) => {
    const first = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }));
    const { port } = first.target;
    const initiator = await startInitiator(t, port);
    await first.target.close();
    await reached(initiator, 'lost');
    const changed = (error: unknown): boolean => isGodwitError(error, 'ISCSI_TARGET_CHANGED');
    const reading = assert.rejects(initiator.read(0, Buffer.alloc(4096)), changed);
    await startTarget(t, new MemoryDevice({ lengthBytes }), { port, share: { serial } });
    await reading;
    assert.equal(initiator.state, 'failed');
    await assert.rejects(initiator.read(0, Buffer.alloc(4096)), changed);
  });
}

test('a unit that is not the expected one is refused at the first connection', async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }));
  await assert.rejects(
    IscsiInitiator.connect(initiatorOptions(target.port, { expected: { lengthBytes: 2 * MIB } })),
    (error) => isGodwitError(error, 'ISCSI_TARGET_CHANGED'),
  );
});

test('open gives a device at once; reads wait for the target to appear', async (t) => {
  const content = seededRandom(4).bytes(MIB);
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB, content }));
  const relay = await relayed(t, target.port);
  relay.refuse();
  const initiator = IscsiInitiator.open({
    ...initiatorOptions(relay.port),
    expected: { lengthBytes: MIB, serial: 'volume-1' },
  });
  t.after(() => initiator.close());
  assert.equal(initiator.lengthBytes, MIB);
  assert.equal(initiator.state, 'connecting');
  const into = Buffer.alloc(MIB);
  const reading = initiator.read(0, into);
  await systemClock.sleep(30);
  relay.resume();
  await reading;
  assert.deepEqual(into, Buffer.from(content));
});

test('garbage instead of a target ends in a protocol error, and the initiator goes on trying', async (t) => {
  let connections = 0;
  const server = createServer((socket) => {
    connections += 1;
    socket.on('error', () => {});
    socket.on('data', () => socket.write(Buffer.from(seededRandom(1 + (connections % 3)).bytes(2000))));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  const { port } = server.address() as import('node:net').AddressInfo;
  await assert.rejects(IscsiInitiator.connect(initiatorOptions(port), { timeoutMs: patient(400) }), (error) =>
    isGodwitError(error, 'ISCSI_PROTOCOL'),
  );
  assert.ok(connections > 1);
});

test('guest reads go before background reads', async (t) => {
  const slow = new DelayDevice(new MemoryDevice({ lengthBytes: MIB }), systemClock, { latencyMs: 5 });
  const { target } = await startTarget(t, slow);
  const initiator = await startInitiator(t, target.port, { queueDepth: 4 });
  const order: string[] = [];
  const reads: Promise<void>[] = [];
  for (let index = 0; index < 20; index += 1) {
    const read = initiator.read(index * 4096, Buffer.alloc(4096), { priority: 'background' });
    reads.push(read.then(() => void order.push('background')));
  }
  reads.push(initiator.read(0, Buffer.alloc(4096)).then(() => void order.push('guest')));
  await Promise.all(reads);
  // Three background reads of a queue of four may be under way already.
  assert.ok(order.indexOf('guest') <= 6, `the guest read came ${order.indexOf('guest') + 1}th`);
});

test('a signal takes back a read that is not on the wire', async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }));
  const relay = await relayed(t, target.port);
  const initiator = await startInitiator(t, relay.port);
  relay.refuse();
  await reached(initiator, 'lost');
  const abort = new AbortController();
  const reading = initiator.read(0, Buffer.alloc(512), { signal: abort.signal });
  abort.abort(new Error('not any more'));
  await assert.rejects(reading, /not any more/);
  assert.equal(initiator.statistics.queued, 0);
});

test('close rejects what waits, also while the target is away', async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }));
  const relay = await relayed(t, target.port);
  const initiator = await startInitiator(t, relay.port);
  relay.refuse();
  await reached(initiator, 'lost');
  const closed = (error: unknown): boolean => isGodwitError(error, 'BLOCK_CLOSED');
  const reading = assert.rejects(initiator.read(0, Buffer.alloc(512)), closed);
  await initiator.close();
  await reading;
  await assert.rejects(initiator.read(0, Buffer.alloc(512)), closed);
  assert.equal(initiator.state, 'closed');
});

testRemoteConformance({
  name: 'iSCSI',
  codes: { changed: 'ISCSI_TARGET_CHANGED', silent: 'ISCSI_SILENT', failed: 'ISCSI_COMMAND_FAILED' },
  serve: async (t, device) => {
    const { target } = await startTarget(t, device);
    return { host: '127.0.0.1', port: target.port };
  },
  connect: (port, options, wait) =>
    IscsiInitiator.connect(initiatorOptions(port, { ...SILENCE, ...options }), wait),
  open: (port, lengthBytes, options) =>
    IscsiInitiator.open({ ...initiatorOptions(port, { ...SILENCE, ...options }), expected: { lengthBytes } }),
});
