import { readFileSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { PAUSE } from '../base/patience.ts';
import { advanced } from '../base/progress.ts';
import { kernelNameOf } from './block-statistics.ts';

/**
 * The kernel's counters of a block device as they stand (Documentation/block/stat.rst); null: it has none.
 * They are compared, not understood.
 */
export function readDeviceCounters(device: string): string | null {
  try {
    return readFileSync(`/sys/block/${kernelNameOf(device)}/stat`, 'utf8');
  } catch {
    return null;
  }
}

/**
 * Waits for work on a device, as long as the device does something. `late` when it did nothing for `quietMs`;
 * the work goes on then, and is the caller's to wait for again. Rejects as the work does.
 */
export async function whileDeviceMoves(
  work: Promise<unknown>,
  options: {
    device: string | null;
    quietMs: number;
    clock: Clock;
    read?: (device: string) => string | null;
  },
): Promise<'done' | 'late'> {
  const { device, quietMs, clock, read = readDeviceCounters } = options;
  const settled = work.then(() => 'done' as const);
  settled.catch(() => {});
  let before = device === null ? null : read(device);
  let movedMs = clock.monotonicMs();
  for (;;) {
    const lookedMs = clock.monotonicMs();
    const look = new AbortController();
    const pause = clock.sleep(PAUSE.deviceLook.ms, look.signal).then(
      () => null,
      () => null,
    );
    try {
      const end = await Promise.race([settled, pause]);
      if (end !== null) return end;
    } finally {
      look.abort();
    }
    const nowMs = clock.monotonicMs();
    // While this process did not run, nobody looked.
    movedMs += Math.max(0, nowMs - lookedMs - 2 * PAUSE.deviceLook.ms);
    const now = device === null ? null : read(device);
    if (now !== before) {
      movedMs = nowMs;
      advanced(`input and output of ${device}`, 1, 'steps');
    }
    before = now;
    if (nowMs - movedMs >= quietMs) return 'late';
  }
}
