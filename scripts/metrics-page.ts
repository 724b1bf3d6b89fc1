/**
 * docs/metrics.md, made from what the parts of a worker declare in src/worker/metric-rows.ts. `npm run pages`
 * writes it; scripts/tidy.ts compares.
 */
import { writeFileSync } from 'node:fs';
import type { MetricRow } from '../src/worker/metric.ts';
import { METRICS } from '../src/worker/metric-rows.ts';

export const METRICS_PAGE = 'docs/metrics.md';

const HEAD = `# Metrics

*Made from \`src/worker/metric-rows.ts\` by \`npm run pages\`; \`npm run check\` says when it is out of date.*

\`GET /metrics\` on every worker, in Prometheus's text exposition format 0.0.4. It asks for the token of the fleet, like every question of an operator (\`authorization\` of a scrape
configuration); no client certificate. Histograms have \`_bucket\`, \`_sum\` and \`_count\`. What is counted begins at nought with the worker's process.

The answer says what is known already: no shim, volume server, disk or other worker is asked while somebody waits for it, so that one that hangs costs nothing. Machines, their volumes and the disk are looked
at after the answer, at most every ten seconds, and \`godwit_figures_age_seconds\` says how old that is. Sums over volumes only rise, also when a volume server begins anew or a machine
leaves. No label has the name of a machine or volume, and a metric has at most 200 sets of labels: what comes after counts under \`other\`.

A question of one worker to another that belongs to a move has the header \`traceparent\` of W3C Trace Context: its trace is derived from the id of the move (\`src/base/trace-context.ts\`), and is
\`traceId\` in the log of the worker that answers and in the events of the run on both; events of a run on either side have the move's id as \`moveId\`.

| metric | type | labels | what |
|---|---|---|---|`;

export function metricsPage(): string {
  const rows = Object.values(METRICS).flatMap((table) =>
    Object.entries(table as Record<string, MetricRow>).map(([name, { type, labels = [], help }]) => {
      const names = labels.map((label) => `\`${label}\``).join(', ');
      return `| \`${name}\` | ${type} | ${names} | ${help} |`;
    }),
  );
  return `${[HEAD, ...rows].join('\n')}\n`;
}

if (import.meta.filename === process.argv[1]) writeFileSync(METRICS_PAGE, metricsPage());
