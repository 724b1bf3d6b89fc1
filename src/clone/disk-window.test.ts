import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  DISK_PIECE_BYTES,
  type DiskWindow,
  diskRegionBytes,
  diskWindowAfterPlaced,
  diskWindowAfterTick,
  type GuestWaits,
  initialDiskWindow,
} from './disk-window.ts';

const MIB = 2 ** 20;
const MAX_BYTES = 8 * MIB;
const TICK_MS = 50;
const quiet = (): GuestWaits => ({
  flush: { count: 0, totalMs: 0 },
  read: { count: 0, totalMs: 0 },
  write: { count: 0, totalMs: 0 },
  oldestFlushMs: 0,
});

/**
 * A disk that serves what it gets one after the other at its rate, each answer `latencyMs` later; a copy that
 * always has more; and a guest that flushes every 20 ms, three small writes one after the other, and reads
 * every 5 ms. One step is 0.1 ms.
 */
function share(disk: { bytesPerMs: number; latencyMs: number }, seconds: number, windowBytes: number | null) {
  let window: DiskWindow = initialDiskWindow(MAX_BYTES);
  const events: { atMs: number; run: () => void }[] = [];
  let freeAtMs = 0;
  let nowMs = 0;
  const submit = (bytes: number, done: () => void) => {
    freeAtMs = Math.max(freeAtMs, nowMs) + bytes / disk.bytesPerMs;
    events.push({ atMs: freeAtMs + disk.latencyMs, run: done });
  };
  const flushes: number[] = [];
  const reads: number[] = [];
  let waits = quiet();
  let flushSinceMs: number | null = null;
  let inFlightBytes = 0;
  let copied = 0;
  const guestWrites = (left: number, done: () => void) => {
    if (left === 0) done();
    else submit(4096, () => guestWrites(left - 1, done));
  };
  const fill = () => {
    const limit = windowBytes ?? window.windowBytes;
    for (;;) {
      const bytes = windowBytes === null ? Math.min(MIB, diskRegionBytes(window)) : DISK_PIECE_BYTES;
      if (inFlightBytes + bytes > Math.max(limit, bytes) || limit === 0) return;
      const startMs = nowMs;
      inFlightBytes += bytes;
      submit(bytes, () => {
        inFlightBytes -= bytes;
        copied += bytes;
        window = diskWindowAfterPlaced(window, { nowMs, bytes, durationMs: nowMs - startMs });
      });
    }
  };
  const measured = seconds * 500; // the second half
  for (let step = 0; step < seconds * 10_000; step++) {
    nowMs = step / 10;
    for (let index = events.length - 1; index >= 0; index--) {
      if (events[index]!.atMs <= nowMs) events.splice(index, 1)[0]!.run();
    }
    if (nowMs === measured) copied = 0;
    if (step % 200 === 0 && flushSinceMs === null) {
      const startMs = nowMs;
      flushSinceMs = nowMs;
      guestWrites(3, () => {
        flushSinceMs = null;
        waits.flush.count++;
        waits.flush.totalMs += nowMs - startMs;
        if (startMs >= measured) flushes.push(nowMs - startMs);
      });
    }
    if (step % 50 === 0) {
      const startMs = nowMs;
      submit(4096, () => {
        waits.read.count++;
        waits.read.totalMs += nowMs - startMs;
        if (startMs >= measured) reads.push(nowMs - startMs);
      });
    }
    if (step % (TICK_MS * 10) === 0) {
      waits.oldestFlushMs = flushSinceMs === null ? 0 : nowMs - flushSinceMs;
      window = diskWindowAfterTick(window, { nowMs, waits, inFlightBytes }, MAX_BYTES);
      waits = quiet();
    }
    fill();
  }
  const p99 = (values: number[]) =>
    values.sort((left, right) => left - right)[Math.floor(values.length * 0.99)]!;
  return {
    flush: p99(flushes),
    read: p99(reads),
    worst: Math.max(...flushes, ...reads),
    used: copied / measured / disk.bytesPerMs,
  };
}

for (const [mbps, latencyMs] of [
  [50, 5],
  [100, 2],
  [400, 1],
  [2000, 0.1],
] as const) {
  test(`a disk of ${mbps} MB/s that takes ${latencyMs} ms: the guest hardly feels it, and the copy has most of it`, (t) => {
    const disk = { bytesPerMs: mbps * 1000, latencyMs };
    const alone = share(disk, 20, 0);
    const both = share(disk, 40, null);
    const plenty = share(disk, 20, MAX_BYTES);
    t.diagnostic(JSON.stringify({ alone, both, plenty }));
    assert.ok(both.used > 0.7, `${both.used} of the disk`);
    assert.ok(both.flush < 1.5 * alone.flush, 'flushes');
    assert.ok(both.read < 1.6 * alone.read, 'reads');
    assert.ok(plenty.flush > 10 * alone.flush, 'a window that nobody governs is felt');
    assert.ok(both.worst < 1_000);
  });
}

test('without a guest at the disk the window is as large as it may be, and is again soon', () => {
  let window = initialDiskWindow(MAX_BYTES);
  const busy = { ...quiet(), flush: { count: 1, totalMs: 5 } };
  for (let nowMs = 0; nowMs < 500; nowMs += TICK_MS)
    window = diskWindowAfterTick(window, { nowMs, waits: quiet(), inFlightBytes: 0 }, MAX_BYTES);
  assert.equal(window.windowBytes, MAX_BYTES);
  window = diskWindowAfterTick(window, { nowMs: 500, waits: busy, inFlightBytes: 0 }, MAX_BYTES);
  assert.equal(window.windowBytes, 0);
  // Reads that come from memory are no use of the disk.
  const cached = { ...quiet(), read: { count: 1000, totalMs: 20 } };
  for (let nowMs = 550; nowMs < 1_700; nowMs += TICK_MS)
    window = diskWindowAfterTick(window, { nowMs, waits: cached, inFlightBytes: 0 }, MAX_BYTES);
  assert.equal(window.windowBytes, MAX_BYTES);
});

test('a flush that waits for long has the disk for itself', () => {
  let window: DiskWindow = {
    ...initialDiskWindow(MAX_BYTES),
    phase: 'shared',
    windowBytes: 4 * MIB,
    latencyMs: 10,
    bytesPerMs: 400_000,
  };
  const waits = { ...quiet(), flush: { count: 1, totalMs: 5 } };
  window = diskWindowAfterTick(window, { nowMs: 100, waits, inFlightBytes: 0 }, MAX_BYTES);
  assert.ok(window.windowBytes > 2 * MIB);
  window = diskWindowAfterTick(
    window,
    { nowMs: 150, waits: { ...quiet(), oldestFlushMs: 500 }, inFlightBytes: 0 },
    MAX_BYTES,
  );
  assert.equal(window.windowBytes, DISK_PIECE_BYTES);
  // And is over it when the flush is.
  for (let nowMs = 200; nowMs < 8_000; nowMs += TICK_MS)
    window = diskWindowAfterTick(window, { nowMs, waits, inFlightBytes: 0 }, MAX_BYTES);
  assert.ok(window.windowBytes > 2 * MIB);
});

test('a disk that takes half a second for a write is measured, and not left idle', () => {
  let window = initialDiskWindow(MAX_BYTES);
  const waits = { ...quiet(), read: { count: 4, totalMs: 8 } };
  const pending: { atMs: number; bytes: number }[] = [];
  let placed = 0;
  for (let nowMs = 0; nowMs < 60_000; nowMs += TICK_MS) {
    for (const done of pending.splice(0)) {
      if (done.atMs > nowMs) pending.push(done);
      else {
        placed += done.bytes;
        window = diskWindowAfterPlaced(window, { nowMs, bytes: done.bytes, durationMs: 500 });
      }
    }
    const inFlight = () => pending.reduce((sum, { bytes }) => sum + bytes, 0);
    while (inFlight() + DISK_PIECE_BYTES <= window.windowBytes) {
      pending.push({ atMs: nowMs + 500, bytes: DISK_PIECE_BYTES });
    }
    window = diskWindowAfterTick(window, { nowMs, waits, inFlightBytes: inFlight() }, MAX_BYTES);
  }
  assert.ok(
    placed > 500 * MIB,
    `${placed / MIB} MiB in a minute; with all that the window allows it would be 960`,
  );
});

test('a copy that begins while the guest is at the disk is measured at once', () => {
  let window = initialDiskWindow(MAX_BYTES);
  const waits = { ...quiet(), flush: { count: 1, totalMs: 5 }, read: { count: 4, totalMs: 8 } };
  const tick = (nowMs: number) => {
    window = diskWindowAfterTick(window, { nowMs, waits, inFlightBytes: 0 }, MAX_BYTES);
  };
  for (let nowMs = 0; nowMs < 60_000; nowMs += TICK_MS) tick(nowMs);
  for (let nowMs = 60_000; nowMs < 62_000; nowMs += TICK_MS) {
    if (window.windowBytes > 0) {
      window = diskWindowAfterPlaced(window, { nowMs: nowMs - 25, bytes: 5 * MIB, durationMs: 10 });
    }
    tick(nowMs);
  }
  assert.equal(window.phase, 'shared');
  assert.ok(window.windowBytes > MIB / 2, `${window.windowBytes}`);
});
