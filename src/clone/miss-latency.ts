/** What the guest felt. Latencies in milliseconds, over the last 1024 misses. */
export type MissStatistics = { misses: number; missLatencyP50Ms: number; missLatencyP99Ms: number };

const SAMPLES = 1024;

/** Latencies of the latest misses. */
export class MissLatency {
  readonly #samples = new Float64Array(SAMPLES);
  #misses = 0;

  add(latencyMs: number): void {
    this.#samples[this.#misses % SAMPLES] = latencyMs;
    this.#misses++;
  }

  statistics(): MissStatistics {
    const sorted = this.#samples.slice(0, Math.min(this.#misses, SAMPLES)).sort();
    const at = (share: number) => sorted[Math.floor(share * sorted.length)] ?? 0;
    return { misses: this.#misses, missLatencyP50Ms: at(0.5), missLatencyP99Ms: at(0.99) };
  }
}
