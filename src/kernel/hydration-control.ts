import { BLOCK_BYTES } from '../block/block-device.ts';

/**
 * How much dm-clone copies in the background. Its own rules are two numbers and one fault: it only looks for
 * more to copy at a moment without any guest I/O in flight (drivers/md/dm-clone-target.c, `do_hydration`), so
 * that a guest that always has one outstanding starves it. So there are three decisions here, taken every
 * tick and pure: how many regions may be in flight, from what the guest's reads take; whether the guest is
 * held for a moment so that the copy can go on at all, from how far it came; and, where a rate is asked for,
 * how long the copy runs at all.
 */
export type HydrationControl = {
  /** Regions in flight (`hydration_threshold`). */
  threshold: number;
  /**
   * Mean read latency of the guest in the best of the last ticks, in milliseconds; null: nothing was read
   * yet.
   */
  calmReadMs: number | null;
  /** Regions at the last tick, and when the floor was last reached. */
  regionsHydrated: number;
  floorSinceMs: number;
};

export type HydrationSample = {
  atMs: number;
  regionsHydrated: number;
  /** Of the guest, since the last sample. */
  reads: number;
  readTimeMs: number;
};

export type HydrationLimits = {
  thresholdMin: number;
  thresholdMax: number;
  /** Reads that take longer than this times the calm ones, and `slackMs` more, make room for the guest. */
  slowFactor: number;
  slackMs: number;
  /** The copy comes at least so far in `floorSpanMs`, whatever the guest does: else a pulse. */
  floorRegions: number;
  floorSpanMs: number;
};

export const HYDRATION_LIMITS: HydrationLimits = {
  thresholdMin: 32,
  thresholdMax: 1024,
  slowFactor: 2,
  slackMs: 2,
  floorRegions: 512,
  floorSpanMs: 500,
};

export function firstControl(
  regionsHydrated: number,
  atMs: number,
  limits: HydrationLimits,
): HydrationControl {
  const threshold = Math.min(limits.thresholdMin * 4, limits.thresholdMax);
  return { threshold, calmReadMs: null, regionsHydrated, floorSinceMs: atMs };
}

/** The next state, and whether the guest is to be held for a moment. */
export function decideHydration(
  before: HydrationControl,
  sample: HydrationSample,
  limits: HydrationLimits,
): { control: HydrationControl; pulse: boolean } {
  const { thresholdMin, thresholdMax, slowFactor, slackMs, floorRegions, floorSpanMs } = limits;
  const readMs = sample.reads > 0 ? sample.readTimeMs / sample.reads : null;
  let { calmReadMs, threshold } = before;
  if (readMs !== null) {
    // It drifts up slowly: what was calm when everything came from the page cache is not the measure for
    // ever.
    calmReadMs = calmReadMs === null ? readMs : Math.min(readMs, calmReadMs * 1.02);
  }
  const slow = readMs !== null && calmReadMs !== null && readMs > calmReadMs * slowFactor + slackMs;
  threshold = slow
    ? Math.max(thresholdMin, Math.floor(threshold / 2))
    : Math.min(thresholdMax, Math.ceil(threshold * 1.25));

  const progress = sample.regionsHydrated - before.regionsHydrated;
  const spanMs = sample.atMs - before.floorSinceMs;
  if (progress >= floorRegions) {
    const control = {
      threshold,
      calmReadMs,
      regionsHydrated: sample.regionsHydrated,
      floorSinceMs: sample.atMs,
    };
    return { control, pulse: false };
  }
  if (spanMs < floorSpanMs) {
    return {
      control: {
        threshold,
        calmReadMs,
        regionsHydrated: before.regionsHydrated,
        floorSinceMs: before.floorSinceMs,
      },
      pulse: false,
    };
  }
  const control = {
    threshold,
    calmReadMs,
    regionsHydrated: sample.regionsHydrated,
    floorSinceMs: sample.atMs,
  };
  return { control, pulse: true };
}

/**
 * What holds the copy to a rate: dm-clone has none of its own, but it can be told to copy and not to copy.
 */
export type HydrationPace = {
  atMs: number;
  /** What may come now; below zero: what came too much, and is waited for. */
  allowanceBytes: number;
  /** What comes in a millisecond while the copy runs, as last seen; null: not known yet. */
  bytesPerMs: number | null;
};

export type PaceSample = {
  atMs: number;
  /** Since the last sample: what was copied, and how long the copy ran for it. */
  copiedBytes: number;
  ranMs: number;
};

/** The least that a run of the copy lasts, and what it lasts before its speed is known. */
const RUN_MS_MIN = 10;
/**
 * What was not used of the rate is used later for so long, not more: a copy that was held up does not make up
 * for it in one go.
 */
const ALLOWANCE_SPAN_MS = 1_000;
/**
 * Regions in flight under a rate: what comes in this time. They arrive also after the copy was told to stop.
 */
const IN_FLIGHT_SPAN_MS = 100;

export function firstPace(atMs: number): HydrationPace {
  return { atMs, allowanceBytes: 0, bytesPerMs: null };
}

/**
 * A duty cycle: for how long the copy runs from now on, 0 to `tickMs`, so that on average no more than
 * `rateBytesPerSecondMax` (above 0) comes. What was too much in one tick is made up for in the next ones.
 */
export function decidePace(
  before: HydrationPace,
  sample: PaceSample,
  rateBytesPerSecondMax: number,
  tickMs: number,
): { pace: HydrationPace; runMs: number } {
  const bytesPerMsMax = rateBytesPerSecondMax / 1000;
  const gained = bytesPerMsMax * (sample.atMs - before.atMs);
  const allowanceBytes = Math.min(
    before.allowanceBytes + gained - sample.copiedBytes,
    bytesPerMsMax * ALLOWANCE_SPAN_MS,
  );
  const bytesPerMs = sample.ranMs > 0 ? sample.copiedBytes / sample.ranMs : before.bytesPerMs;
  const pace = { atMs: sample.atMs, allowanceBytes, bytesPerMs };
  if (allowanceBytes <= 0) return { pace, runMs: 0 };
  const neededMs = bytesPerMs === null ? RUN_MS_MIN : allowanceBytes / bytesPerMs;
  return { pace, runMs: Math.min(tickMs, Math.max(RUN_MS_MIN, neededMs)) };
}

/** Under a rate: no more in flight than it allows, and a floor below it. */
export function limitsAtRate(limits: HydrationLimits, rateBytesPerSecondMax: number): HydrationLimits {
  if (rateBytesPerSecondMax === 0) return limits;
  const regionsIn = (spanMs: number) => Math.floor((rateBytesPerSecondMax * spanMs) / 1000 / BLOCK_BYTES);
  return {
    ...limits,
    thresholdMax: Math.max(limits.thresholdMin, Math.min(limits.thresholdMax, regionsIn(IN_FLIGHT_SPAN_MS))),
    floorRegions: Math.min(limits.floorRegions, Math.ceil(regionsIn(limits.floorSpanMs) / 2)),
  };
}
