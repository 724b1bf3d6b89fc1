/**
 * For `--import` in a process that is measured: the longest turn of its event loop, in
 * `GODWIT_LOOP_DELAY_DIR`/<pid>, in milliseconds, as it is so far: as the loop was delayed, and as processor
 * time of the thread, which other programs on a busy machine do not lengthen. A request for a reset is a file
 * <pid>.reset.
 */
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { isMainThread } from 'node:worker_threads';

const RESOLUTION_MS = 1;
const TELL_EVERY_MS = 50;
const dir = process.env.GODWIT_LOOP_DELAY_DIR;
if (dir !== undefined && isMainThread) measure(join(dir, String(process.pid)));

function measure(path: string): void {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  let usedMs = threadMs();
  let longestMs = 0;
  let toldMs = 0;
  // At most one turn lies between two ticks, or some that were short.
  setInterval(() => {
    const nowMs = threadMs();
    longestMs = Math.max(longestMs, nowMs - usedMs);
    usedMs = nowMs;
    if (performance.now() - toldMs < TELL_EVERY_MS) return;
    toldMs = performance.now();
    if (existsSync(`${path}.reset`)) {
      delay.reset();
      longestMs = 0;
      rmSync(`${path}.reset`);
    }
    const said = { delayMs: Math.max(0, delay.max / 1e6 - RESOLUTION_MS), longestMs };
    writeFileSync(`${path}.new`, JSON.stringify(said));
    renameSync(`${path}.new`, path);
    usedMs = threadMs();
  }, RESOLUTION_MS).unref();
}

function threadMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}
