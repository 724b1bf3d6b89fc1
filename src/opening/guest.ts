import type { GuestStatistics } from './status.ts';

/** What the guest touches, in units of this many bytes. */
export const HEAT_REGION_BYTES = 64 * 1024;
/** Regions that one answer holds at most: 64 MiB of volume. */
export const HEAT_REGIONS_MAX = 256;

/** Of a volume that no guest has. */
export const NO_GUEST: GuestStatistics = {
  reads: 0,
  readBytes: 0,
  writes: 0,
  writeBytes: 0,
  flushes: 0,
  misses: 0,
  readLatencyP50Ms: 0,
  readLatencyP99Ms: 0,
  missLatencyP50Ms: 0,
  missLatencyP99Ms: 0,
};
