import type { Clock } from '../base/clock.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import { MIGRATE_OUT, type MigrateOutOutput } from '../migration/migrate-out.ts';
import { Counts, Durations } from './metric.ts';

/** Seconds. */
const CALLS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];
const INTERRUPTIONS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 30, 60, 300];
const RUNS = [1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400];

const CODE = /^[A-Z][A-Z0-9_]{1,60}$/;

/** What is counted as it happens, since this process began. */
export class Meters {
  readonly runs = new Durations(RUNS);
  readonly runsEnded = new Counts();
  readonly interruptions = new Durations(INTERRUPTIONS);
  readonly bytesAvoided = new Counts();
  readonly peerCalls = new Durations(CALLS);
  readonly peerFailures = new Counts();
  readonly requests = new Durations(CALLS);
  readonly #clock: Clock;
  /** Of this process, on both clocks. */
  readonly #beginning: { wallMs: number; monotonicMs: number };
  /** When those runs began that did so in this process and are not over, on the monotonic clock. */
  readonly #began = new Map<string, number>();

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#beginning = { wallMs: clock.wallMs(), monotonicMs: clock.monotonicMs() };
  }

  /** Whenever something of a run has changed. */
  note(run: RunView, { body }: Parameters<Parameters<Journal['subscribe']>[0]>[1]): void {
    if (body.type === 'started') this.#began.set(run.id, this.#clock.monotonicMs());
    if (body.type === 'finished') {
      const labels = { kind: run.kind, state: run.state };
      this.runsEnded.add(labels);
      this.runs.observe(labels, this.#durationMs(run));
      this.#began.delete(run.id);
    }
    if (body.type !== 'put' || run.kind !== MIGRATE_OUT) return;
    const { interruptionMs, bytesAvoided } = body.values as MigrateOutOutput;
    for (const [phase, ms] of Object.entries(interruptionMs ?? {})) this.interruptions.observe({ phase }, ms);
    if (bytesAvoided) this.bytesAvoided.add({}, bytesAvoided);
  }

  /**
   * By the monotonic clock, because the wall clock may be set. Of a run that an earlier process began only
   * the time before this one is by the wall clock.
   */
  #durationMs(run: RunView): number {
    const nowMs = this.#clock.monotonicMs();
    const beganMs = this.#began.get(run.id);
    if (beganMs !== undefined) return nowMs - beganMs;
    const { wallMs, monotonicMs } = this.#beginning;
    return Math.max(0, wallMs - run.createdAtMs) + (nowMs - monotonicMs);
  }

  /** A question to another worker is over; `code` of what it failed with. */
  peerCalled(peer: string, question: string, durationMs: number, code: string | null): void {
    this.peerCalls.observe({ peer, question }, durationMs);
    // What another worker calls its errors is foreign.
    const label = code !== null && CODE.test(code) ? code : 'other';
    if (code !== null) this.peerFailures.add({ peer, code: label });
  }

  /** `route`: as declared, without names; `none`, of whatever method, for what is not. */
  answered(method: string, route: string, status: number, durationMs: number): void {
    const labels = { method: route === 'none' ? 'any' : method, route };
    this.requests.observe({ ...labels, status: `${Math.floor(status / 100)}xx` }, durationMs);
  }
}
