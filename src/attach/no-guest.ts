import type { GuestStatistics } from './server-spec.ts';

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
