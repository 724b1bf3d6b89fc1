/**
 * How much dm-clone copies in the background. Its own rules are two numbers and one fault: it only looks for more to copy at a moment without any
 * guest I/O in flight (drivers/md/dm-clone-target.c, `do_hydration`), so that a guest that always has one outstanding starves it. So there
 * are two decisions here, taken every tick and pure: how many regions may be in flight, from what the guest's reads take; and whether the guest is
 * held for a moment so that the copy can go on at all, from how far it came.
 */
export type HydrationControl = {
  /** Regions in flight (`hydration_threshold`). */
  threshold: number;
  /** Mean read latency of the guest in the best of the last ticks, in milliseconds; null: nothing was read yet. */
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
  return { threshold: limits.thresholdMin * 4, calmReadMs: null, regionsHydrated, floorSinceMs: atMs };
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
    // It drifts up slowly: what was calm when everything came from the page cache is not the measure for ever.
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
