import type { Clock } from '../base/clock.ts';
import type { HealthCheck } from '../contract/machine-config.ts';
import type { Probe, ProbeResult } from '../shim/runtime.ts';

export type HealthState = 'none' | 'starting' | 'healthy' | 'unhealthy';
export type Health = { state: HealthState; sinceMs: number; message: string };

/**
 * The first probes come this close together: the time to the first success is part of the interruption of a
 * move.
 */
const FAST_INTERVAL_MS_MIN = 10;
const FAST_INTERVAL_MS_MAX = 100;
/**
 * A pause is about a tenth of the time that the machine has taken so far: so much too late may its health be
 * seen.
 */
const FAST_INTERVAL_GROWTH = 1.1;

/**
 * The state of a machine's health, from the results of its probes; pure.
 *
 *   starting ── success ──> healthy ── `retries` failures in a row ──> unhealthy ── success ──> healthy
 *   starting ── `retries` failures in a row, all after the start period ──> unhealthy
 */
export class HealthTracker {
  readonly #check: Pick<HealthCheck, 'intervalMs' | 'retries' | 'startPeriodMs'>;
  readonly #startedAtMs: number;
  #state: HealthState = 'starting';
  #failures = 0;
  #probes = 0;

  /** Times are on one clock, any; `startedAtMs` is when the workload started. */
  constructor(check: Pick<HealthCheck, 'intervalMs' | 'retries' | 'startPeriodMs'>, startedAtMs: number) {
    this.#check = check;
    this.#startedAtMs = startedAtMs;
  }

  get state(): HealthState {
    return this.#state;
  }

  /** Takes a result in; true when the state changed. */
  apply(ok: boolean, nowMs: number): boolean {
    const before = this.#state;
    this.#probes++;
    if (ok) {
      this.#failures = 0;
      this.#state = 'healthy';
    } else if (this.#state !== 'starting' || nowMs - this.#startedAtMs >= this.#check.startPeriodMs) {
      this.#failures++;
      if (this.#failures >= this.#check.retries) this.#state = 'unhealthy';
    }
    return this.#state !== before;
  }

  /** Pause before the next probe, from the end of the last one. */
  nextDelayMs(): number {
    if (this.#state !== 'starting') return this.#check.intervalMs;
    return Math.min(
      FAST_INTERVAL_MS_MAX,
      FAST_INTERVAL_MS_MIN * FAST_INTERVAL_GROWTH ** Math.max(0, this.#probes - 1),
    );
  }
}

/** Probes one run of a workload, one probe at a time, until it is stopped. */
export class HealthMonitor {
  readonly #probe: Probe;
  readonly #check: HealthCheck;
  readonly #clock: Clock;
  readonly #onChange: (health: Health) => void;
  readonly #stop = new AbortController();
  #health: Health;
  #loop: Promise<void> | undefined;

  constructor(options: {
    check: HealthCheck;
    probe: Probe;
    clock: Clock;
    /** Called at every change of state. */
    onChange: (health: Health) => void;
  }) {
    this.#check = options.check;
    this.#probe = options.probe;
    this.#clock = options.clock;
    this.#onChange = options.onChange;
    this.#health = {
      state: 'starting',
      sinceMs: options.clock.wallMs(),
      message: 'no probe has succeeded yet',
    };
  }

  get health(): Health {
    return this.#health;
  }

  start(): void {
    this.#loop ??= this.#run();
  }

  /** Resolves when no probe runs any more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#loop;
  }

  async #run(): Promise<void> {
    const tracker = new HealthTracker(this.#check, this.#clock.monotonicMs());
    while (!this.#stop.signal.aborted) {
      const result = await this.#once();
      if (this.#stop.signal.aborted) return;
      const changed = tracker.apply(result.ok, this.#clock.monotonicMs());
      this.#health = {
        state: tracker.state,
        sinceMs: changed ? this.#clock.wallMs() : this.#health.sinceMs,
        message: result.message,
      };
      if (changed) this.#onChange(this.#health);
      await this.#clock.sleep(tracker.nextDelayMs(), this.#stop.signal).catch(() => {});
    }
  }

  async #once(): Promise<ProbeResult> {
    const { timeoutMs } = this.#check;
    const timeout = new AbortController();
    const cancel = this.#clock.timer(timeoutMs, () => timeout.abort());
    try {
      const result = await this.#probe(AbortSignal.any([this.#stop.signal, timeout.signal]));
      return timeout.signal.aborted && !result.ok
        ? { ok: false, message: `no answer within ${timeoutMs} ms` }
        : result;
    } catch (error) {
      return { ok: false, message: error instanceof Error ? error.message : String(error) };
    } finally {
      cancel();
    }
  }
}
