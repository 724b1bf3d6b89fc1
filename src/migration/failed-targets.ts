import type { Clock } from '../base/clock.ts';
import { PAUSE } from '../base/patience.ts';
import type { RunView } from '../journal/run.ts';
import type { MigrateOutInput, MigrateOutOutput } from './migrate-out.ts';
import { lastStepOf } from './move-watch.ts';

/**
 * Targets that refused or failed a machine of late. For a while each goes behind every other that accepts the
 * machine; it stays better than none. Kept in memory, on the monotonic clock; `learn` at the start from what
 * the journal has.
 */
export class FailedTargets {
  readonly #clock: Clock;
  readonly #failed = new Map<string, { worker: string; reason: string; untilMs: number }[]>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** A run of kind migrate-out that is over. */
  learn(run: RunView): void {
    if (run.endedAtMs === null || run.state === 'done' || run.cancelRequested || !run.error) return;
    const { target } = run.output as MigrateOutOutput;
    if (target === undefined || !lastStepOf(run)?.blamesTarget) return;
    // The wall clock may have been set since: not longer than it was meant to be.
    const agoMs = Math.max(0, this.#clock.wallMs() - run.endedAtMs);
    const leftMs = PAUSE.failedTarget.ms - agoMs;
    if (leftMs <= 0) return;
    const { machineId } = run.input as MigrateOutInput;
    const others = this.#live(machineId).filter(({ worker }) => worker !== target);
    const untilMs = this.#clock.monotonicMs() + leftMs;
    this.#failed.set(machineId, [...others, { worker: target, reason: run.error.message, untilMs }]);
  }

  /** By worker, what it failed with. */
  of(machineId: string): ReadonlyMap<string, string> {
    return new Map(this.#live(machineId).map(({ worker, reason }) => [worker, reason]));
  }

  #live(machineId: string): { worker: string; reason: string; untilMs: number }[] {
    const nowMs = this.#clock.monotonicMs();
    const live = (this.#failed.get(machineId) ?? []).filter(({ untilMs }) => untilMs > nowMs);
    if (live.length > 0) this.#failed.set(machineId, live);
    else this.#failed.delete(machineId);
    return live;
  }
}
