import type { Clock } from '../base/clock.ts';
import { PATIENCE } from '../base/patience.ts';
import type { PrepareRequest } from '../contract/peer.ts';

/**
 * Room that this worker is about to promise: a move that asks for it holds its part while its answer is being
 * made, so that two that come at once do not get the same room. Once it is promised, the target's own run
 * holds it (migrate-in.ts), for as long as that is open. Held by run id, in the order in which they came, and
 * not for longer than an answer may take.
 */
export class Reservations {
  readonly #clock: Clock;
  readonly #held = new Map<string, { request: PrepareRequest; untilMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Idempotent: who asks again keeps its place. */
  hold(request: PrepareRequest): void {
    const untilMs = this.#clock.monotonicMs() + PATIENCE.reservation.ms;
    const place = this.#held.get(request.runId);
    if (place) place.untilMs = untilMs;
    else this.#held.set(request.runId, { request, untilMs });
  }

  release(runId: string): void {
    this.#held.delete(runId);
  }

  /**
   * What is held; with `before`, what was held before that run asked: nothing for one that was promised its
   * room since. Who asks now counts that one, and two that count each other would both be refused.
   */
  held(before?: string): PrepareRequest[] {
    if (before !== undefined && !this.#held.has(before)) return [];
    const nowMs = this.#clock.monotonicMs();
    const requests: PrepareRequest[] = [];
    for (const [runId, { request, untilMs }] of this.#held) {
      if (runId === before) break;
      if (untilMs <= nowMs) this.#held.delete(runId);
      else requests.push(request);
    }
    return requests;
  }
}
