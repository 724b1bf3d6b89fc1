export type DemoReport = {
  machines: {
    name: string;
    volumeBytes: number;
    usedBytes: number;
    wireBytes: number;
    /** Data of files that were deleted: it did not travel. */
    avoidedBytes: number | null;
    interruptionMs: Record<'stop' | 'seal' | 'handoff' | 'attach' | 'boot' | 'total', number | null>;
    hydrationMs: number | null;
    ackedWrites: number;
    lostWrites: number;
    /** Of the receipt that both workers signed. */
    receiptRoot: string | null;
  }[];
  statelessRestartMs: number;
  interruptionRatio: number | null;
  blocksFetchedTwice: number;
  drainMs: number | null;
  clientGapMs: Record<string, number>;
  readLatencyP99Ms: { before: number | null; during: number | null; after: number | null };
  problems: string[];
  ok: boolean;
};

/** The table of the README. */
export function moveTable(report: DemoReport): string {
  const header = [
    'machine',
    'volume',
    'used',
    'on the wire',
    'avoided',
    'stop',
    'seal',
    'handoff',
    'attach',
    'boot',
    'total ms',
    'hydrated in',
    'acked',
    'lost',
    'receipt',
  ];
  const rows = report.machines.map((machine) => [
    machine.name,
    size(machine.volumeBytes),
    size(machine.usedBytes),
    size(machine.wireBytes),
    machine.avoidedBytes === null ? '-' : size(machine.avoidedBytes),
    ...(['stop', 'seal', 'handoff', 'attach', 'boot', 'total'] as const).map((phase) =>
      whole(machine.interruptionMs[phase]),
    ),
    machine.hydrationMs === null ? '-' : `${whole(machine.hydrationMs)} ms`,
    String(machine.ackedWrites),
    String(machine.lostWrites),
    machine.receiptRoot?.slice(0, 16) ?? '-',
  ]);
  return markdown(header, rows);
}

/** What the machine `files` felt: single reads of 4 KiB around its page cache. */
export function latencyTable(
  report: DemoReport,
  windows: Record<'before' | 'during' | 'after', number[]>,
): string {
  const rows = (['before', 'during', 'after'] as const).map((window) => [
    window,
    String(windows[window].length),
    precise(percentile(windows[window], 0.5)),
    precise(report.readLatencyP99Ms[window]),
  ]);
  return markdown(['guest reads, hydration', 'reads', 'p50 ms', 'p99 ms'], rows);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

export function percentile(values: readonly number[], fraction: number): number | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((left, right) => left - right);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))]!;
}

function markdown(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]!.length)),
  );
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column]!)).join(' | ')} |`;
  return [
    line(header),
    `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`,
    ...rows.map(line),
  ].join('\n');
}

function size(bytes: number): string {
  if (bytes >= 2 ** 30) return `${round(bytes / 2 ** 30)} GiB`;
  if (bytes >= 2 ** 20) return `${round(bytes / 2 ** 20)} MiB`;
  return `${round(bytes / 2 ** 10)} KiB`;
}

function round(value: number): string {
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

function whole(value: number | null): string {
  return value === null ? '-' : value.toFixed(0);
}

function precise(value: number | null): string {
  return value === null ? '-' : value.toFixed(2);
}
