/**
 * How much of the background copy may be on the wire, from what the guest feels: additive increase,
 * multiplicative decrease (Chiu and Jain, 1989) against the latency that a miss has without hydration. Pure:
 * a state goes in with an observation, the next state comes out.
 */
export type HydrationWindow = {
  /**
   * Bytes of background fetches that may be in flight. Below the smallest region it is a share of time: see
   * `restMs`.
   */
  windowBytes: number;
  /**
   * What a miss costs that begins with no background fetch in flight, smoothed; null until enough was seen.
   */
  baselineMs: number | null;
  /** Samples that went into the baseline since the last probe. */
  baselineSamples: number;
  /** What misses cost lately, smoothed; null after a quiet time. */
  smoothedMs: number | null;
  lastMissAtMs: number;
  lastDecreaseAtMs: number;
  /** The window is held at the floor to measure the baseline since then; null: not now. */
  probingSinceMs: number | null;
  lastProbeAtMs: number;
};

export type WindowLimits = {
  /** The share that hydration always has. */
  floorBytes: number;
  maxBytes: number;
};

export type MissObservation = {
  nowMs: number;
  latencyMs: number;
  /** Background bytes that were in flight when the miss began. */
  backgroundBytes: number;
};

/**
 * Hydration costs a miss at most this factor, then the window shrinks. Below the 1.5 that is promised for the
 * 99th percentile.
 */
const LATENCY_FACTOR_MAX = 1.2;
/** Differences below this are noise of timers and scheduling. */
const LATENCY_NOISE_MS = 0.03;
const SMOOTHING = 1 / 8;
const BASELINE_SAMPLES_MIN = 16;
/** The source or the network may have become faster or slower: measure the baseline again this often. */
const PROBE_EVERY_MS = 15_000;
/**
 * A guest that misses too rarely to fill a probe does not hold hydration at its floor for longer than this.
 */
const PROBE_LENGTH_MAX_MS = 500;
/** Without a miss for so long nobody is in the way. */
const QUIET_AFTER_MS = 250;
/** A miss that took so long met an outage, or a very slow network: neither belongs into an average. */
const OUTAGE_MS = 1_000;
/** A single slow fetch must not put hydration to sleep. */
const REST_MS_MAX = 1_000;
/**
 * A fresh copy begins with this part of its largest window; while nobody misses, it has all of it within a
 * fifth of a second.
 */
const INITIAL_DIVISOR = 16;
const INCREASE_BYTES = 8 * 1024;
const REGION_BYTES_MIN = 64 * 1024;
const REGION_BYTES_WITH_MISSES_MAX = 128 * 1024;
export const REGION_BYTES_MAX = 1024 * 1024;

export function initialWindow(limits: WindowLimits): HydrationWindow {
  return {
    windowBytes: Math.max(limits.floorBytes, limits.maxBytes / INITIAL_DIVISOR),
    baselineMs: null,
    baselineSamples: 0,
    smoothedMs: null,
    lastMissAtMs: Number.NEGATIVE_INFINITY,
    lastDecreaseAtMs: Number.NEGATIVE_INFINITY,
    probingSinceMs: null,
    lastProbeAtMs: Number.NEGATIVE_INFINITY,
  };
}

/** A read or write of the guest waited for the source and got its answer. */
export function windowAfterMiss(
  window: HydrationWindow,
  miss: MissObservation,
  limits: WindowLimits,
): HydrationWindow {
  const next = { ...window, lastMissAtMs: miss.nowMs };
  if (miss.latencyMs >= OUTAGE_MS) {
    if (miss.backgroundBytes > 0) next.windowBytes = Math.max(limits.floorBytes, next.windowBytes / 2);
    return next;
  }
  if (miss.backgroundBytes === 0) observeBaseline(next, miss);
  if (next.probingSinceMs !== null) return afterProbe(next, miss.nowMs, limits);
  if (next.baselineMs === null || miss.nowMs - next.lastProbeAtMs >= PROBE_EVERY_MS) {
    next.probingSinceMs = miss.nowMs;
    next.baselineSamples = 0;
    next.windowBytes = limits.floorBytes;
    return next;
  }
  next.smoothedMs = smooth(window.smoothedMs, miss.latencyMs);
  if (next.smoothedMs <= next.baselineMs * LATENCY_FACTOR_MAX + LATENCY_NOISE_MS) {
    next.windowBytes = Math.min(limits.maxBytes, next.windowBytes + INCREASE_BYTES);
  } else if (miss.nowMs - window.lastDecreaseAtMs >= 2 * next.smoothedMs) {
    // Not again before misses can have felt it.
    next.windowBytes = Math.max(limits.floorBytes, next.windowBytes / 2);
    next.lastDecreaseAtMs = miss.nowMs;
  }
  return next;
}

/** Time has passed; call it some ten times a second. */
export function windowAfterTick(
  window: HydrationWindow,
  nowMs: number,
  limits: WindowLimits,
): HydrationWindow {
  const next = { ...window };
  if (next.probingSinceMs !== null) return afterProbe(next, nowMs, limits);
  if (nowMs - next.lastMissAtMs < QUIET_AFTER_MS) return next;
  next.smoothedMs = null;
  next.windowBytes = Math.min(limits.maxBytes, next.windowBytes * 2);
  return next;
}

/**
 * How much one background fetch takes: small while the guest misses, so that a miss does not stand behind a
 * large one.
 */
export function regionBytes(window: HydrationWindow, nowMs: number): number {
  const quiet = nowMs - window.lastMissAtMs >= QUIET_AFTER_MS;
  const maxBytes = quiet ? REGION_BYTES_MAX : REGION_BYTES_WITH_MISSES_MAX;
  let bytes = REGION_BYTES_MIN;
  while (bytes * 2 <= maxBytes && bytes * 8 <= window.windowBytes) bytes *= 2;
  return bytes;
}

/**
 * How long to leave the source alone after a background fetch that took `fetchMs`, so that one region in
 * flight at a time is as much as the window says: a window of a sixteenth of a region is a sixteenth of the
 * time. 0 for windows of a region and more.
 */
export function restMs(window: HydrationWindow, fetchMs: number): number {
  if (window.windowBytes >= REGION_BYTES_MIN) return 0;
  return Math.min(REST_MS_MAX, fetchMs * (REGION_BYTES_MIN / window.windowBytes - 1));
}

function observeBaseline(window: HydrationWindow, miss: MissObservation): void {
  window.baselineMs = smooth(window.baselineMs, miss.latencyMs);
  window.baselineSamples++;
}

function afterProbe(window: HydrationWindow, nowMs: number, limits: WindowLimits): HydrationWindow {
  const measured = window.baselineSamples >= BASELINE_SAMPLES_MIN;
  const tooLong = nowMs - window.probingSinceMs! >= PROBE_LENGTH_MAX_MS;
  if (!measured && !tooLong) return window;
  window.probingSinceMs = null;
  window.lastProbeAtMs = nowMs;
  window.smoothedMs = null;
  window.windowBytes = limits.floorBytes;
  return window;
}

function smooth(before: number | null, sample: number): number {
  return before === null ? sample : before + (sample - before) * SMOOTHING;
}
