import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { isGodwitError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import type { RemoteUnit } from '../../src/remote/dialect.ts';
import type { ConnectWait, RemoteDisk, RemoteOptions } from '../../src/remote/remote-disk.ts';
import type { RemoteCommand } from '../../src/remote/request.ts';
import { FakeClock } from './fake-clock.ts';
import { letPass, patient, until } from './patience.ts';
import { TcpRelay } from './relay.ts';
import { reached } from './remote-state.ts';

/**
 * What a remote disk promises, whatever it speaks: every dialect passes this. The peer is a real one behind a
 * relay; time is a fake clock where the test is about time.
 */
export type RemotePeer = {
  name: string;
  codes: { changed: string; silent: string; failed: string };
  /** Serves the device at a free port; gone after the test. */
  serve: (t: TestContext, device: BlockDevice) => Promise<{ host: string; port: number }>;
  /** With patience of some 100 ms for a peer that is silent. */
  connect: (port: number, options: RemoteOptions, wait?: ConnectWait) => Promise<Disk>;
  open: (port: number, lengthBytes: number, options: RemoteOptions) => Disk;
};

/** What can be done with one, whatever it speaks. */
type Disk = Pick<RemoteDisk<RemoteUnit, RemoteCommand>, keyof RemoteDisk<RemoteUnit, RemoteCommand>>;

export const SILENCE = {
  keepAliveIntervalMs: patient(50),
  keepAliveTimeoutMs: patient(100),
  requestTimeoutMs: patient(100),
};

const MIB = 1024 * 1024;
const OPTIONS: RemoteOptions = {
  ...{ clock: systemClock, random: systemRandom, logger: silentLogger, readOnly: false },
  ...{ backoffMs: 5, backoffMsMax: 50 },
};
const closed = (error: unknown) => isGodwitError(error, 'BLOCK_CLOSED');

/** A clock whose pauses are over at once, and are written down. */
function hastyClock(): { clock: Clock; pausesMs: number[] } {
  const pausesMs: number[] = [];
  const clock: Clock = {
    wallMs: () => systemClock.wallMs(),
    monotonicMs: () => systemClock.monotonicMs(),
    timer: (delayMs, callback) => systemClock.timer(delayMs, callback),
    sleep: (delayMs, signal) => {
      pausesMs.push(delayMs);
      return systemClock.sleep(1, signal);
    },
  };
  return { clock, pausesMs };
}

async function relayTo(
  t: TestContext,
  upstream: { host: string; port: number } | (() => { host: string; port: number }),
): Promise<TcpRelay> {
  const relay = new TcpRelay(upstream);
  await relay.listen();
  t.after(() => relay.close());
  return relay;
}

/** A device that calls `onRead` before each read. */
class WatchedDevice extends MemoryDevice {
  onRead: (offsetBytes: number) => Promise<void> | void = () => {};

  override readNow(): boolean {
    return false;
  }

  override async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    await this.onRead(offsetBytes);
    await super.read(offsetBytes, into);
  }
}

export function testRemoteConformance(peer: RemotePeer): void {
  const { name, codes, serve, connect } = peer;

  test(`${name}: a connect that is aborted rejects with the reason, and nothing is dialled any more`, async (t) => {
    const relay = await relayTo(t, await serve(t, new MemoryDevice({ lengthBytes: MIB })));
    const reason = new Error('not any more');
    const aborted = { signal: AbortSignal.abort(reason) };
    await assert.rejects(connect(relay.port, OPTIONS, aborted), reason);
    assert.equal(relay.accepted, 0, 'aborted before it began');

    relay.refuse();
    const clock = new FakeClock();
    const abort = new AbortController();
    const connecting = connect(relay.port, { ...OPTIONS, clock }, { signal: abort.signal });
    connecting.catch(() => {});
    await until('the first attempt', () => relay.accepted >= 1);
    abort.abort(reason);
    await assert.rejects(connecting, reason);
    assert.equal(clock.pendingTimers, 0);
    const { accepted } = relay;
    await clock.run(60_000);
    await sleep(20);
    assert.equal(relay.accepted, accepted);
  });

  test(`${name}: the pauses between attempts double, and begin anew after a connection that carried something`, async (t) => {
    const relay = await relayTo(t, await serve(t, new MemoryDevice({ lengthBytes: MIB })));
    relay.refuse();
    const { clock, pausesMs } = hastyClock();
    // The longest pause that chance allows.
    const random = { ...systemRandom, below: (limit: number) => limit - 1 };
    const options = { ...OPTIONS, clock, random, backoffMs: 50, backoffMsMax: 3_000 };
    const disk = peer.open(relay.port, MIB, options);
    t.after(() => disk.close());
    await until('nine pauses', () => pausesMs.length >= 9);
    assert.deepEqual(pausesMs.slice(0, 9), [50, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
    assert.equal(disk.state, 'connecting');
    relay.resume();
    await disk.read(0, Buffer.alloc(4096));
    assert.equal(disk.statistics.reconnects, 0, 'the first connection is no reconnection');
    const before = pausesMs.length;
    relay.cut();
    await disk.read(0, Buffer.alloc(4096));
    assert.equal(pausesMs[before], 50);
  });

  test(`${name}: another disk behind the address is refused for good, and so is all that waits`, async (t) => {
    const first = await serve(t, new MemoryDevice({ lengthBytes: MIB }));
    const second = await serve(t, new MemoryDevice({ lengthBytes: 2 * MIB }));
    let upstream = first;
    const relay = await relayTo(t, () => upstream);
    const disk = await connect(relay.port, OPTIONS);
    t.after(() => disk.close());
    await disk.read(0, Buffer.alloc(4096));
    const changed = (error: unknown) => isGodwitError(error, codes.changed);
    upstream = second;
    relay.refuse();
    const waiting = [
      assert.rejects(disk.read(0, Buffer.alloc(4096)), changed),
      assert.rejects(disk.write(0, Buffer.alloc(4096)), changed),
    ];
    await reached(disk, 'lost');
    relay.resume();
    await Promise.all(waiting);
    assert.equal(disk.state, 'failed');
    assert.equal(disk.lastError?.code, codes.changed);
    await assert.rejects(disk.read(0, Buffer.alloc(4096)), changed);
    await assert.rejects(disk.flush(), changed);
    await assert.rejects(disk.extents(0, MIB, 4), changed);
    await assert.rejects(disk.vouch(), changed);
    const { accepted } = relay;
    await sleep(20);
    assert.equal(relay.accepted, accepted, 'it is not tried again');
  });

  test(`${name}: a write that is cut in the middle is sent again on another connection, all of it`, async (t) => {
    const device = new MemoryDevice({ lengthBytes: 4 * MIB });
    const relay = await relayTo(t, await serve(t, device));
    const disk = await connect(relay.port, OPTIONS);
    t.after(() => disk.close());
    let cutAt = relay.bytes + 256 * 1024;
    let cuts = 0;
    relay.onBytes = () => {
      if (relay.bytes < cutAt || cuts === 2) return;
      cuts += 1;
      cutAt = relay.bytes + 512 * 1024;
      relay.cut();
    };
    const data = Buffer.from(systemRandom.bytes(2 * MIB));
    await disk.write(MIB, data);
    const stored = Buffer.alloc(data.length);
    await device.read(MIB, stored);
    assert.ok(stored.equals(data));
    assert.equal(cuts, 2);
    assert.ok(disk.statistics.replayed >= 2);
    assert.equal(disk.statistics.inFlight, 0);
    // The others may have carried it to its end before that one is there again.
    await until('another connection', () => disk.statistics.reconnects >= 1);
  });

  test(`${name}: a peer that says nothing under a read is left, and the read goes on elsewhere`, async (t) => {
    const content = systemRandom.bytes(MIB);
    const relay = await relayTo(t, await serve(t, new MemoryDevice({ lengthBytes: MIB, content })));
    const disk = await connect(relay.port, OPTIONS);
    t.after(() => disk.close());
    relay.stall();
    const into = Buffer.alloc(65536);
    const reading = disk.read(4096, into);
    await reached(disk, 'lost');
    assert.equal(disk.lastError?.code, codes.silent);
    assert.notEqual(disk.lostSinceMs, null);
    assert.ok(disk.statistics.oldestWaitMs > 0);
    relay.cut();
    relay.resume();
    await reading;
    assert.ok(into.equals(Buffer.from(content).subarray(4096, 4096 + 65536)));
    assert.equal(disk.lostSinceMs, null);
  });

  test(`${name}: close in the middle of everything rejects all of it, and touches no buffer afterwards`, async (t) => {
    const device = new WatchedDevice({ lengthBytes: 4 * MIB, content: Buffer.alloc(4 * MIB, 0x11) });
    const relay = await relayTo(t, await serve(t, device));
    const disk = await connect(relay.port, { ...OPTIONS, queueDepth: 8 });
    t.after(() => disk.close());
    let comes = 0;
    relay.onBytes = (chunk) => {
      comes += chunk.length;
    };
    const reads = Array.from({ length: 12 }, () => Buffer.alloc(256 * 1024));
    const writes = Array.from({ length: 4 }, () => Buffer.alloc(MIB, 0x22));
    const all = [
      ...reads.map((into) => disk.read(0, into)),
      disk.read(0, Buffer.alloc(4096), { priority: 'background' }),
      ...writes.map((from) => disk.write(2 * MIB, from)),
      disk.flush(),
      disk.discard(0, 4096),
      disk.extents(0, MIB, 4),
    ].map((each) =>
      each.then(
        () => 'done',
        (error: unknown) => (closed(error) ? 'closed' : error),
      ),
    );
    await until('bytes on the way', () => comes > 64 * 1024);
    const closing = disk.close();
    const outcomes = await Promise.all(all);
    // From here on the buffers are their owner's.
    for (const each of [...reads, ...writes]) each.fill(0x33);
    await closing;
    assert.ok(outcomes.includes('closed'));
    assert.ok(
      outcomes.every((outcome) => outcome === 'done' || outcome === 'closed'),
      String(outcomes),
    );
    assert.equal(disk.state, 'closed');
    await sleep(letPass(50));
    for (const each of reads)
      assert.ok(
        each.every((byte) => byte === 0x33),
        'nothing lands',
      );
    const stored = Buffer.alloc(4 * MIB);
    await device.read(0, stored);
    assert.ok(!stored.includes(0x33), 'nothing is sent of a buffer that was given back');
    await assert.rejects(disk.read(0, Buffer.alloc(512)), closed);
    await assert.rejects(disk.flush(), closed);
    await disk.close();
  });

  test(`${name}: close leaves no timer, whether it was ever connected or not`, async (t) => {
    const relay = await relayTo(t, await serve(t, new MemoryDevice({ lengthBytes: MIB })));
    for (const isThere of [true, false]) {
      if (!isThere) relay.refuse();
      const clock = new FakeClock();
      const disk = peer.open(relay.port, MIB, { ...OPTIONS, clock });
      if (isThere) await reached(disk, 'connected');
      else await until('an attempt', () => disk.lastError !== null);
      await disk.close();
      assert.equal(clock.pendingTimers, 0);
    }
  });

  test(`${name}: a signal takes back what is not on the wire, also what came back from it`, async (t) => {
    const device = new WatchedDevice({ lengthBytes: MIB });
    let asked = 0;
    const held = Promise.withResolvers<void>();
    // Before the server is closed, which waits for its reads.
    t.after(() => held.resolve());
    const relay = await relayTo(t, await serve(t, device));
    const disk = await connect(relay.port, { ...OPTIONS, queueDepth: 1 });
    t.after(() => disk.close());
    device.onRead = () => {
      asked += 1;
      return held.promise;
    };
    const abort = new AbortController();
    const onWire = disk.read(0, Buffer.alloc(4096), { signal: abort.signal });
    const queued = disk.read(4096, Buffer.alloc(4096), { signal: abort.signal });
    let isOver = false;
    onWire.catch(() => {
      isOver = true;
    });
    await until('the read to be on the wire', () => asked >= 1);
    abort.abort(new Error('not any more'));
    await assert.rejects(queued, /not any more/);
    await assert.rejects(disk.read(0, Buffer.alloc(512), { signal: abort.signal }), /not any more/);
    assert.equal(isOver, false, 'on the wire it is waited for');
    relay.refuse();
    await assert.rejects(onWire, /not any more/);
    assert.equal(disk.statistics.queued, 0);
  });

  test(`${name}: a request for which the peer always ends the connection fails by name, and no other does`, async (t) => {
    const device = new WatchedDevice({ lengthBytes: MIB });
    const relay = await relayTo(t, await serve(t, device));
    const disk = await connect(relay.port, OPTIONS);
    t.after(() => disk.close());
    device.onRead = (offsetBytes) => {
      if (offsetBytes === 64 * 1024) relay.cut();
    };
    const reads = Array.from({ length: 32 }, (_, index) => disk.read(index * 8192, Buffer.alloc(8192)));
    await until('why it waits', () => disk.trouble !== null);
    const outcomes = await Promise.allSettled(reads);
    assert.equal(disk.trouble, null, 'nothing waits any more');
    const rejected = outcomes.flatMap(({ status }, index) => (status === 'rejected' ? [index] : []));
    assert.deepEqual(rejected, [8]);
    const { reason } = outcomes[8] as PromiseRejectedResult;
    assert.ok(isGodwitError(reason, codes.failed), String(reason));
    await disk.read(0, Buffer.alloc(4096));
    assert.equal(disk.state, 'connected');
  });

  test(`${name}: a request that is never answered, and whose connections ended, holds up no other`, async (t) => {
    const device = new WatchedDevice({ lengthBytes: MIB });
    const relay = await relayTo(t, await serve(t, device));
    const held = Promise.withResolvers<void>();
    t.after(() => held.resolve());
    let asked = 0;
    device.onRead = (offsetBytes) => {
      if (offsetBytes !== 64 * 1024) return;
      asked += 1;
      return held.promise;
    };
    // Nobody is kept waiting for three seconds.
    const clock: Clock = {
      ...hastyClock().clock,
      timer: (delayMs, callback) => systemClock.timer(delayMs === 3_000 ? patient(50) : delayMs, callback),
    };
    const disk = await connect(relay.port, { ...OPTIONS, clock });
    t.after(() => disk.close());
    const reading = disk.read(64 * 1024, Buffer.alloc(4096));
    for (let count = 1; count <= 3; count += 1) {
      await until('the read at the peer', () => asked >= count);
      relay.cut();
    }
    await until('the read at the peer again', () => asked >= 4);
    await Promise.all(Array.from({ length: 16 }, (_, index) => disk.read(index * 2048, Buffer.alloc(2048))));
    assert.notEqual(disk.trouble, null);
    held.resolve();
    await reading;
    assert.equal(disk.trouble, null);
  });

  test(`${name}: guests pass the background, which never takes the last quarter of the queue`, async (t) => {
    const device = new WatchedDevice({ lengthBytes: MIB });
    const asked = new Map<number, (() => void)[]>();
    const answered = new Set<number>();
    const answer = (at: number): void => {
      answered.add(at);
      for (const resolve of asked.get(at) ?? []) resolve();
    };
    const open = (): void => {
      for (let at = 0; at <= 8; at += 1) answer(at);
    };
    t.after(open);
    const disk = await connect((await serve(t, device)).port, { ...OPTIONS, queueDepth: 4 });
    t.after(() => disk.close());
    // On a slow machine some are asked again on the next connection; and the first block by nobody here, of a
    // connection that comes later.
    answered.add(0);
    device.onRead = (offsetBytes) => {
      const at = offsetBytes / 4096;
      if (answered.has(at)) return;
      const { promise, resolve } = Promise.withResolvers<void>();
      asked.set(at, [...(asked.get(at) ?? []), resolve]);
      return promise;
    };
    const read = (priority: 'guest' | 'background', at: number) =>
      disk.read(at * 4096, Buffer.alloc(4096), { priority });
    const all = Array.from({ length: 6 }, (_, index) => read('background', index + 1));
    assert.equal(disk.statistics.inFlight, 3);
    all.push(read('guest', 7), read('guest', 8));
    assert.equal(disk.statistics.inFlight, 4);
    await until('four reads', () => asked.size === 4);
    answer([...asked.keys()][0]!);
    await until('a fifth one', () => asked.size === 5);
    assert.equal([...asked.keys()].at(-1), 8);
    open();
    await Promise.all(all);
    assert.equal(disk.statistics.bytesRead, 8 * 4096);
  });
}
