/*
 * Metrics are declared by the parts that know them, as rows of a table: docs/metrics.md is made from it, and
 * `/metrics` reads each row when it is asked. What is read is known already: nothing is asked of a process or
 * a disk then.
 */

export type Labels = Readonly<Record<string, string>>;
type MetricType = 'counter' | 'gauge' | 'histogram';

/** One line of a metric, or of a histogram the lines of one set of labels. */
export type Sample = { labels: Labels } & ({ value: number } | HistogramFigures);
type HistogramFigures = {
  /** How many were at most as large as each bound of the histogram, in order. */
  atMost: readonly number[];
  bounds: readonly number[];
  sum: number;
  count: number;
};

export type MetricRow = {
  readonly type: MetricType;
  readonly help: string;
  readonly labels?: readonly string[];
};

/** By name: Prometheus's rules (units in base units, `_total` for counters), checked by metric.test.ts. */
export type TellsMetrics<Parts, Made> = {
  readonly [name: string]: MetricRow & { read(made: Made, parts: Parts): number | readonly Sample[] };
};

/** Sets of labels that one metric may have; what comes after counts under `other`, so that nothing grows. */
const SERIES_MAX = 200;
const OTHER = 'other';

/** What is kept for each set of labels, at most SERIES_MAX and one. */
class Series<Value> {
  readonly #values = new Map<string, { labels: Labels; value: Value }>();
  readonly #make: () => Value;

  constructor(make: () => Value) {
    this.#make = make;
  }

  of(labels: Labels): { labels: Labels; value: Value } {
    const key = JSON.stringify(labels);
    const known = this.#values.get(key);
    if (known) return known;
    if (this.#values.size >= SERIES_MAX && Object.values(labels).some((value) => value !== OTHER))
      return this.of(Object.fromEntries(Object.keys(labels).map((name) => [name, OTHER])));
    const made = { labels, value: this.#make() };
    this.#values.set(key, made);
    return made;
  }

  all(): { labels: Labels; value: Value }[] {
    return [...this.#values.values()];
  }
}

/** Counts that only rise, by labels. */
export class Counts {
  readonly #series = new Series(() => ({ count: 0 }));

  add(labels: Labels, amount = 1): void {
    this.#series.of(labels).value.count += amount;
  }

  read(): Sample[] {
    return this.#series.all().map(({ labels, value }) => ({ labels, value: value.count }));
  }
}

/** Durations in seconds, by labels. */
export class Durations {
  readonly #bounds: readonly number[];
  readonly #series: Series<{ counts: number[]; sum: number }>;

  /** `bounds`: of the buckets, in seconds, rising; the last one has no bound. */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#series = new Series(() => ({ counts: bounds.map(() => 0).concat(0), sum: 0 }));
  }

  observe(labels: Labels, durationMs: number): void {
    const { value } = this.#series.of(labels);
    const seconds = Math.max(0, durationMs / 1000);
    const bucket = this.#bounds.findIndex((bound) => seconds <= bound);
    value.counts[bucket === -1 ? this.#bounds.length : bucket]! += 1;
    value.sum += seconds;
  }

  read(): Sample[] {
    return this.#series.all().map(({ labels, value: { counts, sum } }) => {
      let count = 0;
      const rising = counts.map((each) => {
        count += each;
        return count;
      });
      return { labels, bounds: this.#bounds, atMost: rising.slice(0, -1), sum, count };
    });
  }
}

/**
 * Sums of counters of processes that end and begin anew at nought: a sum only rises, whatever becomes of
 * them. One that is not there any more takes nothing away. What was counted before the first look is of
 * nobody who looks: a sum begins at nought, or the first look of a new worker would be a leap.
 */
export class RisingSums<Name extends string> {
  readonly #sums: Record<Name, number>;
  readonly #last = new Map<string, Record<Name, number>>();
  /** There at the first look, and not heard of since. */
  readonly #unheard = new Set<string>();
  readonly #names: readonly Name[];
  #isFirst = true;

  constructor(names: readonly Name[]) {
    this.#names = names;
    this.#sums = Object.fromEntries(names.map((name) => [name, 0])) as Record<Name, number>;
  }

  /** All that there are now, by id; null: it is there, and says nothing now. */
  look(now: ReadonlyMap<string, Record<Name, number> | null>): void {
    for (const [id, counts] of now) {
      if (counts === null) {
        if (this.#isFirst) this.#unheard.add(id);
        continue;
      }
      const last = this.#last.get(id);
      const isEarlier = this.#isFirst || this.#unheard.delete(id);
      if (!isEarlier) this.#add(counts, last);
      this.#last.set(id, counts);
    }
    this.#isFirst = false;
    for (const id of this.#last.keys()) if (!now.has(id)) this.#last.delete(id);
    for (const id of this.#unheard) if (!now.has(id)) this.#unheard.delete(id);
  }

  #add(counts: Record<Name, number>, last: Record<Name, number> | undefined): void {
    for (const name of this.#names) {
      const before = last?.[name] ?? 0;
      this.#sums[name] += counts[name] >= before ? counts[name] - before : counts[name];
    }
  }

  sum(name: Name): number {
    return this.#sums[name];
  }
}

export type MetricReading = MetricRow & { name: string; samples: readonly Sample[] };

/** What `/metrics` answers: Prometheus's text exposition format, version 0.0.4. Pure. */
export function expositionOf(readings: readonly MetricReading[]): string {
  return readings.map(textOf).join('');
}

function textOf({ name, type, help, samples }: MetricReading): string {
  const lines = [
    `# HELP ${name} ${help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}`,
    `# TYPE ${name} ${type}`,
  ];
  for (const sample of samples) {
    const { labels } = sample;
    if ('value' in sample) {
      lines.push(`${name}${labelsText(labels)} ${numberText(sample.value)}`);
      continue;
    }
    for (const [index, bound] of sample.bounds.entries())
      lines.push(`${name}_bucket${labelsText({ ...labels, le: numberText(bound) })} ${sample.atMost[index]}`);
    lines.push(`${name}_bucket${labelsText({ ...labels, le: '+Inf' })} ${sample.count}`);
    lines.push(`${name}_sum${labelsText(labels)} ${numberText(sample.sum)}`);
    lines.push(`${name}_count${labelsText(labels)} ${sample.count}`);
  }
  return `${lines.join('\n')}\n`;
}

function labelsText(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`);
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}

function escaped(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}

function numberText(value: number): string {
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? '+Inf' : '-Inf';
  return String(value);
}

/** Of all parts, in their order. */
export function readMetrics(
  tellers: readonly { metrics: TellsMetrics<never, never>; made: unknown }[],
  parts: object,
): MetricReading[] {
  return tellers.flatMap(({ metrics, made }) =>
    Object.entries(metrics).map(([name, { type, help, labels, read }]) => {
      const said = read(made as never, parts as never);
      const samples = typeof said === 'number' ? [{ labels: {}, value: said }] : said;
      return { name, type, help, ...(labels && { labels }), samples };
    }),
  );
}
