/*
 * How long an answer may be waited for, from how long answers took: the estimator of RFC 6298, which TCP uses
 * for its retransmissions. A smoothed time and a smoothed deviation follow what is measured; the patience is
 * the time plus four deviations, never below a floor, and doubles with each question that nobody answered
 * until one is.
 *
 * Sections: 2.2 (first measurement), 2.3 (each next one; alpha 1/8, beta 1/4), 2.4 (floor), 5.5 (back off).
 */

const ALPHA = 1 / 8;
const BETA = 1 / 4;
const DEVIATIONS = 4;

export type AnswerTimeOptions = {
  /** Patience while nothing was measured, and never less than this afterwards. */
  floorMs: number;
  /** Never more than this, however slow the answers were. */
  ceilingMs: number;
};

/** Measurements of one peer. No timer, no clock: whoever asks tells. */
export class AnswerTime {
  readonly #options: AnswerTimeOptions;
  #smoothedMs: number | null = null;
  #deviationMs = 0;
  #unanswered = 0;

  constructor(options: AnswerTimeOptions) {
    this.#options = options;
  }

  /** An answer came after `ms`. Also a late one counts: it is the measurement of a slow peer. */
  answered(ms: number): void {
    this.#unanswered = 0;
    if (this.#smoothedMs === null) {
      this.#smoothedMs = ms;
      this.#deviationMs = ms / 2;
      return;
    }
    this.#deviationMs = (1 - BETA) * this.#deviationMs + BETA * Math.abs(this.#smoothedMs - ms);
    this.#smoothedMs = (1 - ALPHA) * this.#smoothedMs + ALPHA * ms;
  }

  /** Nobody answered for as long as `patienceMs` said. */
  unanswered(): void {
    this.#unanswered++;
  }

  /** Null: nothing was measured. */
  get smoothedMs(): number | null {
    return this.#smoothedMs;
  }

  /** Questions in a row that nobody answered. */
  get unansweredInRow(): number {
    return this.#unanswered;
  }

  /** For the next question. */
  get patienceMs(): number {
    const { floorMs, ceilingMs } = this.#options;
    const measuredMs = this.#smoothedMs === null ? 0 : this.#smoothedMs + DEVIATIONS * this.#deviationMs;
    const grownMs = Math.max(floorMs, measuredMs) * 2 ** Math.min(this.#unanswered, 30);
    return Math.min(ceilingMs, grownMs);
  }
}
