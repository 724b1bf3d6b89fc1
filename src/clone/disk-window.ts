/**
 * How much of what was fetched may be on its way to the local disk, from what the guest waits for there: its
 * flushes, its reads and its writes stand in the same queue. Pure, as hydration-window.ts: a state goes in
 * with an observation, the next state comes out.
 *
 * A disk is busy with no more in flight than its rate times its latency; what is beyond that only waits, and
 * makes others wait. So while the guest uses the disk the window stays near that product. It is measured,
 * because disks differ by a factor of a thousand: now and then for half a second with nothing in flight (what
 * the guest's own requests cost without us), then in steps of a tenth of a second, each with twice as much in
 * flight, until twice as much is not much faster (the latency of the first, and the rate of the last): the
 * guest stands behind twice the product at most. Then it shrinks while the guest's requests cost more than
 * they did alone, as long as the copy has three quarters of the rate, and else grows, to twice the product at
 * most. While the guest does not use the disk, the window is as large as it may be.
 *
 *   free ──guest──▶ baseline ──▶ rate ──▶ shared ──30 s──▶ baseline …
 *     ◀───────────── a second without the guest ─────────────┘
 */
export type DiskWindow = {
  /** Fetched bytes that may be on their way to the disk. */
  readonly windowBytes: number;
  readonly phase: 'free' | 'baseline' | 'rate' | 'shared';
  readonly phaseSinceMs: number;
  readonly lastGuestAtMs: number;
  /** When the last baseline began. */
  readonly baselineAtMs: number;
  /** What a write of ours takes with hardly another beside it; null until it was measured. */
  readonly latencyMs: number | null;
  /** What the disk takes when it has enough to do, in bytes per millisecond; null until it was measured. */
  readonly bytesPerMs: number | null;
  /** The same of the step before, with half of the window; null: this is the first. */
  readonly stepBytesPerMs: number | null;
  /** Of this phase; and since the last tick; and lately, in bytes per millisecond. */
  readonly placedBytes: number;
  readonly tickBytes: number;
  readonly tickAtMs: number;
  readonly recentBytesPerMs: number;
  readonly first: { readonly atMs: number; readonly bytes: number; readonly tookMs: number } | null;
  /** What the guest's requests cost in the last baseline, and lately. */
  readonly baseline: Costs;
  readonly recent: Costs;
};

/** Kinds of requests of the guest that a disk of its own makes wait. */
const WAIT_KINDS = ['flush', 'read', 'write'] as const;
export type WaitKind = (typeof WAIT_KINDS)[number];

/** What the guest waited for since the last look; all but what needed the source. */
export type GuestWaits = Record<WaitKind, { count: number; totalMs: number }> & {
  /** How long the oldest flush that has no answer yet has been waiting. 0: none waits. */
  oldestFlushMs: number;
};

type Costs = Readonly<Record<WaitKind, { readonly count: number; readonly totalMs: number }>>;

const NOTHING: Costs = {
  flush: { count: 0, totalMs: 0 },
  read: { count: 0, totalMs: 0 },
  write: { count: 0, totalMs: 0 },
};

/** Smallest piece that is worth its way, and the smallest window: one of them at a time. */
export const DISK_PIECE_BYTES = 64 * 1024;
/** Requests that cost less came from memory, or went there: no disk made them wait. */
const DISK_MS_MIN = 0.2;
const QUIET_AFTER_MS = 1_000;
const SETTLE_MS = 50;
const BASELINE_SAMPLES = 16;
const BASELINE_MAX_MS = 500;
const RATE_MS = 100;
/** A disk that took nothing for so long is past measuring. */
const RATE_MAX_MS = 5_000;
/** At a disk that takes long: a step must see some of what it asked for come. */
const STEP_LATENCIES = 3;
/** Twice as much in flight was worth it: the disk was not busy before. */
const STEP_GAIN_MIN = 1.25;
/** A measurement is felt; so rarely that it is in no 99th percentile. */
const SHARED_MS = 30_000;
const RATE_SMOOTHING = 1 / 8;
/** The share of the disk's rate that the copy always has. Above the 70 % that are promised. */
const USED_MIN = 0.76;
/**
 * More than this above the baseline, on average, and the window shrinks. Below the 1.5 that is promised for
 * the 99th percentile.
 */
const COST_FACTOR_MAX = 1.15;
const SHRINK = 0.94;
const GROW = 1.03;
const PRODUCTS_MAX = 2;
/** Averages are over so many requests, of those that came last. */
const RECENT_SAMPLES = 32;
const SAMPLES_MIN = 4;
/** Of a disk that was not measured yet; of any; and how many times what a window takes. */
const FLUSH_HOLD_FIRST_MS = 20;
const FLUSH_HOLD_MAX_MS = 100;
const FLUSH_HOLDS = 3;
/** A flush that has been waiting for so long has all of the disk. */
const STARVING_FLUSH_MS = 400;

export function initialDiskWindow(maxBytes: number): DiskWindow {
  return {
    windowBytes: maxBytes,
    phase: 'free',
    phaseSinceMs: 0,
    lastGuestAtMs: Number.NEGATIVE_INFINITY,
    baselineAtMs: Number.NEGATIVE_INFINITY,
    latencyMs: null,
    bytesPerMs: null,
    stepBytesPerMs: null,
    placedBytes: 0,
    tickBytes: 0,
    tickAtMs: 0,
    recentBytesPerMs: 0,
    first: null,
    baseline: NOTHING,
    recent: NOTHING,
  };
}

/** The disk has bytes of ours, `durationMs` after they were handed to it. */
export function diskWindowAfterPlaced(
  window: DiskWindow,
  { nowMs, bytes, durationMs }: { nowMs: number; bytes: number; durationMs: number },
): DiskWindow {
  return {
    ...window,
    placedBytes: window.placedBytes + bytes,
    tickBytes: window.tickBytes + bytes,
    first: window.first ?? { atMs: nowMs, bytes, tookMs: durationMs },
  };
}

/** Time has passed; call it some twenty times a second. */
export function diskWindowAfterTick(
  window: DiskWindow,
  { nowMs, waits, inFlightBytes }: { nowMs: number; waits: GuestWaits; inFlightBytes: number },
  maxBytes: number,
): DiskWindow {
  const lastGuestAtMs = usesDisk(waits) ? nowMs : window.lastGuestAtMs;
  const tickMs = Math.max(1, nowMs - window.tickAtMs);
  const next = {
    ...window,
    lastGuestAtMs,
    recent: withWaits(window.recent, waits),
    recentBytesPerMs:
      window.recentBytesPerMs + (window.tickBytes / tickMs - window.recentBytesPerMs) * RATE_SMOOTHING,
    tickBytes: 0,
    tickAtMs: nowMs,
  };
  if (nowMs - lastGuestAtMs >= QUIET_AFTER_MS) {
    return next.phase === 'free' ? next : { ...begun(next, 'free', nowMs), windowBytes: maxBytes };
  }
  const phaseMs = nowMs - next.phaseSinceMs;
  switch (next.phase) {
    case 'free':
      return afterFree(next, nowMs, maxBytes);
    case 'baseline':
      // What was on its way when this began is felt until it is there.
      if (inFlightBytes > 0) return { ...next, phaseSinceMs: nowMs };
      return afterBaseline(next, nowMs, phaseMs);
    case 'rate':
      return measures(next, nowMs, inFlightBytes) ? starved(next, waits) : afterRate(next, nowMs, maxBytes);
    case 'shared':
      if (phaseMs >= SHARED_MS) return baseline(next, nowMs);
      return starved(shared(next, waits, maxBytes), waits);
  }
}

/** How much one background fetch takes at most, so that no request of the guest stands behind a large one. */
export function diskRegionBytes(window: DiskWindow): number {
  let bytes = DISK_PIECE_BYTES;
  if (window.phase === 'rate') return bytes;
  while (bytes * 8 <= window.windowBytes) bytes *= 2;
  return bytes;
}

/** How long what is on its way to the disk may take: nothing follows it while the guest flushes. */
export function flushHoldMs({ latencyMs, bytesPerMs, windowBytes }: DiskWindow): number {
  if (latencyMs === null || bytesPerMs === null || bytesPerMs === 0) return FLUSH_HOLD_FIRST_MS;
  return Math.min(FLUSH_HOLD_MAX_MS, FLUSH_HOLDS * (latencyMs + windowBytes / bytesPerMs));
}

function usesDisk(waits: GuestWaits): boolean {
  if (waits.oldestFlushMs > 0 || waits.flush.count > 0) return true;
  return WAIT_KINDS.some((kind) => waits[kind].totalMs > DISK_MS_MIN * Math.max(1, waits[kind].count));
}

function begun(window: DiskWindow, phase: DiskWindow['phase'], nowMs: number): DiskWindow {
  const fresh = { placedBytes: 0, first: null, recent: NOTHING };
  return { ...window, ...fresh, phase, phaseSinceMs: nowMs };
}

/** Once in a while only, also for a guest that comes and goes: the copy has nothing meanwhile. */
function afterFree(window: DiskWindow, nowMs: number, maxBytes: number): DiskWindow {
  if (nowMs - window.baselineAtMs >= SHARED_MS) return baseline(window, nowMs);
  const product = productOf(window.latencyMs, window.bytesPerMs);
  if (product > 0)
    return { ...begun(window, 'shared', nowMs), windowBytes: between(product, DISK_PIECE_BYTES, maxBytes) };
  return firstStep(window, nowMs);
}

function firstStep(window: DiskWindow, nowMs: number): DiskWindow {
  return { ...begun(window, 'rate', nowMs), windowBytes: DISK_PIECE_BYTES, stepBytesPerMs: null };
}

function baseline(window: DiskWindow, nowMs: number): DiskWindow {
  return { ...begun(window, 'baseline', nowMs), baselineAtMs: nowMs, windowBytes: 0 };
}

/** The rate is being measured still: from the first write that the disk took on, however slow it is. */
function measures({ first, phaseSinceMs }: DiskWindow, nowMs: number, inFlightBytes: number): boolean {
  if (first !== null) return nowMs - first.atMs < Math.max(RATE_MS, STEP_LATENCIES * first.tookMs);
  return nowMs - phaseSinceMs < (inFlightBytes > 0 ? RATE_MAX_MS : RATE_MS);
}

function afterBaseline(window: DiskWindow, nowMs: number, phaseMs: number): DiskWindow {
  if (phaseMs <= SETTLE_MS) return { ...window, recent: NOTHING };
  const samples = WAIT_KINDS.reduce((sum, kind) => sum + window.recent[kind].count, 0);
  if (phaseMs < BASELINE_MAX_MS && samples < BASELINE_SAMPLES) return window;
  return { ...firstStep(window, nowMs), latencyMs: null, baseline: window.recent };
}

/**
 * The first write of a baseline's first measurement found the disk idle but for the guest: its time is the
 * latency. The rate is that of what followed.
 */
function afterRate(window: DiskWindow, nowMs: number, maxBytes: number): DiskWindow {
  const { first, windowBytes, stepBytesPerMs } = window;
  // A copy that is paused, or starved by the network, tells nothing of the disk.
  if (first === null || nowMs <= first.atMs)
    return { ...begun(window, 'free', nowMs), windowBytes: maxBytes };
  const step = (window.placedBytes - first.bytes) / (nowMs - first.atMs);
  const latencyMs = window.latencyMs ?? first.tookMs;
  // What is measured through a window that is too small is the window's own rate.
  if (windowBytes < maxBytes && (stepBytesPerMs === null || step > STEP_GAIN_MIN * stepBytesPerMs)) {
    const larger = Math.min(maxBytes, 2 * windowBytes);
    return { ...begun(window, 'rate', nowMs), latencyMs, stepBytesPerMs: step, windowBytes: larger };
  }
  const bytesPerMs = Math.max(step, stepBytesPerMs ?? 0);
  const product = latencyMs * bytesPerMs;
  const shared = { ...begun(window, 'shared', nowMs), latencyMs, bytesPerMs };
  return { ...shared, windowBytes: between(product, DISK_PIECE_BYTES, maxBytes) };
}

function shared(window: DiskWindow, waits: GuestWaits, maxBytes: number): DiskWindow {
  if (WAIT_KINDS.every((kind) => waits[kind].count === 0)) return window;
  const product = productOf(window.latencyMs, window.bytesPerMs);
  const highest = between(PRODUCTS_MAX * product, 2 * DISK_PIECE_BYTES, maxBytes);
  const enough = window.recentBytesPerMs >= USED_MIN * (window.bytesPerMs ?? 0);
  const step = enough && costFactor(window) > COST_FACTOR_MAX ? SHRINK : GROW;
  return { ...window, windowBytes: between(window.windowBytes * step, DISK_PIECE_BYTES, highest) };
}

/** Nobody's flush waits for long because of a measurement, or because one was wrong. */
function starved(window: DiskWindow, waits: GuestWaits): DiskWindow {
  if (waits.oldestFlushMs < STARVING_FLUSH_MS) return window;
  return { ...window, windowBytes: DISK_PIECE_BYTES };
}

/** How many times its baseline the guest's requests cost lately: those of the kind for which it is most. */
function costFactor({ baseline, recent }: DiskWindow): number {
  let factor = 1;
  for (const kind of WAIT_KINDS) {
    if (baseline[kind].count < SAMPLES_MIN || recent[kind].count < SAMPLES_MIN) continue;
    const before = Math.max(DISK_MS_MIN, baseline[kind].totalMs / baseline[kind].count);
    factor = Math.max(factor, recent[kind].totalMs / recent[kind].count / before);
  }
  return factor;
}

function withWaits(costs: Costs, waits: GuestWaits): Costs {
  const added = (kind: WaitKind) => {
    const count = costs[kind].count + waits[kind].count;
    const totalMs = costs[kind].totalMs + waits[kind].totalMs;
    const share = Math.min(1, RECENT_SAMPLES / Math.max(1, count));
    return { count: count * share, totalMs: totalMs * share };
  };
  return { flush: added('flush'), read: added('read'), write: added('write') };
}

function productOf(latencyMs: number | null, bytesPerMs: number | null): number {
  return latencyMs === null || bytesPerMs === null ? 0 : latencyMs * bytesPerMs;
}

function between(value: number, lowest: number, highest: number): number {
  return Math.min(highest, Math.max(lowest, value));
}
