import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HOST_PARTS } from './host-parts.ts';
import { Counts, Durations, expositionOf, type MetricReading, type MetricRow, RisingSums } from './metric.ts';
import { METRICS } from './metric-rows.ts';
import { MOVE_PARTS } from './move-parts.ts';
import { SURFACE_PARTS } from './surface-parts.ts';

/** Prometheus's text exposition format 0.0.4, without timestamps: throws for what is not of it. */
function parse(text: string): Map<string, { type: string; samples: Map<string, number> }> {
  assert.ok(text.endsWith('\n'), 'the last line ends');
  const metrics = new Map<string, { type: string; samples: Map<string, number> }>();
  let current = '';
  for (const line of text.slice(0, -1).split('\n')) {
    const help = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ((?:[^\\]|\\\\|\\n)*)$/.exec(line);
    if (help) {
      assert.ok(!metrics.has(help[1]!), `one HELP of ${help[1]}`);
      current = help[1]!;
      continue;
    }
    const type = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)$/.exec(line);
    if (type) {
      assert.equal(type[1], current, 'TYPE after HELP of the same');
      metrics.set(current, { type: type[2]!, samples: new Map() });
      continue;
    }
    const sample =
      /^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"(?:,|(?=\})))+\})? (NaN|[+-]Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)$/.exec(
        line,
      );
    assert.ok(sample, `a sample: ${line}`);
    const { type: kind, samples } = metrics.get(current)!;
    const suffixes = kind === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
    assert.ok(
      suffixes.some((suffix) => sample[1] === current + suffix),
      `${line} belongs to ${current}`,
    );
    const key = sample[1]! + (sample[2] ?? '');
    assert.ok(!samples.has(key), `${key} once`);
    samples.set(key, Number(sample[3]!.replace('Inf', 'Infinity')));
  }
  return metrics;
}

const row = (change: Partial<MetricReading>): MetricReading => ({
  ...{ name: 'x_total', type: 'counter', help: 'x', samples: [] },
  ...change,
});

test('text, labels and numbers of every kind are written so that they are read again', () => {
  const labels = { peer: 'a"b\\c\nd', code: 'ü' };
  const text = expositionOf([
    row({ help: 'a \\ and\na line', samples: [{ labels, value: 1e21 }] }),
    row({
      name: 'y',
      type: 'gauge',
      samples: [
        { labels: {}, value: Number.NaN },
        { labels: { a: '' }, value: -0.5 },
      ],
    }),
    row({ name: 'z', type: 'gauge', samples: [{ labels: {}, value: Number.POSITIVE_INFINITY }] }),
    row({ name: 'none_total' }),
  ]);
  assert.match(text, /^# HELP x_total a \\\\ and\\na line\n# TYPE x_total counter\n/);
  const read = parse(text);
  assert.equal(read.get('x_total')?.samples.get('x_total{peer="a\\"b\\\\c\\nd",code="ü"}'), 1e21);
  assert.ok(Number.isNaN(read.get('y')?.samples.get('y')));
  assert.equal(read.get('z')?.samples.get('z'), Number.POSITIVE_INFINITY);
  assert.equal(read.get('none_total')?.samples.size, 0);
});

test('the buckets of a histogram rise to its count, and a bound belongs to its own bucket', () => {
  const durations = new Durations([0.5, 1]);
  for (const ms of [500, 750, 5_000, -3]) durations.observe({ kind: 'a' }, ms);
  const { samples } = parse(
    expositionOf([row({ name: 'h', type: 'histogram', samples: durations.read() })]),
  ).get('h')!;
  assert.deepEqual(Object.fromEntries(samples), {
    'h_bucket{kind="a",le="0.5"}': 2,
    'h_bucket{kind="a",le="1"}': 3,
    'h_bucket{kind="a",le="+Inf"}': 4,
    'h_sum{kind="a"}': 6.25,
    'h_count{kind="a"}': 4,
  });
});

test('sets of labels have a bound, and what is beyond it counts all the same', () => {
  const counts = new Counts();
  for (let index = 0; index < 1_000; index++) counts.add({ peer: 'w', code: `C${index}` });
  const read = counts.read() as { labels: Record<string, string>; value: number }[];
  assert.equal(read.length, 201);
  assert.deepEqual(read.at(-1), { labels: { peer: 'other', code: 'other' }, value: 800 });
  counts.add({ peer: 'w', code: 'C3' });
  assert.equal((counts.read()[3] as { value: number }).value, 2, 'one that is known goes on by itself');
});

test('a sum over processes never falls, when one begins anew, goes, and comes back', () => {
  const sums = new RisingSums(['reads']);
  const look = (counts: Record<string, number | null>) => {
    const now = Object.entries(counts).map(([id, reads]) => [id, reads === null ? null : { reads }] as const);
    sums.look(new Map(now));
    return sums.sum('reads');
  };
  assert.equal(look({ a: 500, b: 100, silent: null }), 0, 'before anybody looked');
  assert.equal(look({ a: 502, b: 100, silent: 70 }), 2, 'nor was this counted since');
  assert.equal(look({ a: 2, b: 100, silent: 71 }), 5, 'a new process of a');
  assert.equal(look({ b: 100, c: 6 }), 11, 'a new one counts from its beginning');
  assert.equal(look({ b: null, c: null }), 11);
  assert.equal(look({ b: 101, c: 6 }), 12, 'who was silent for a while goes on from where it was');
  assert.equal(look({ a: 3, b: 101 }), 15, 'a has come back, with a new process');
});

test('every metric that a part declares is on the page, by the rules for names, and none twice', () => {
  const tables = [HOST_PARTS, MOVE_PARTS, SURFACE_PARTS] as Record<string, { metrics?: object }>[];
  const declared = tables.flatMap((table) =>
    Object.entries(table).flatMap(([part, { metrics }]) => (metrics ? [[part, metrics] as const] : [])),
  );
  assert.deepEqual(new Map(declared), new Map(Object.entries(METRICS)));
  const rows = declared.flatMap(([, metrics]) => Object.entries(metrics as Record<string, MetricRow>));
  assert.equal(new Set(rows.map(([name]) => name)).size, rows.length);
  for (const [name, { type, help, labels = [] }] of rows) {
    assert.match(name, /^(godwit|process)_[a-z]+(_[a-z]+)*$/);
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    if (type === 'histogram') assert.match(name, /_seconds$/);
    assert.doesNotMatch(name, /_(ms|milliseconds|kib|mib|percent)(_|$)/, 'base units');
    assert.match(help, /\.$/);
    for (const label of labels) assert.match(label, /^(?!le$|quantile$)[a-z]+$/);
  }
});
