import type { DrainMachine, DrainStatus, Interruption, Plan } from '../contract/schemas.ts';
import type { Style } from './style.ts';
import { displayWidth, printable, table, truncate } from './table.ts';
import { formatDuration, formatSize, shortDigest } from './units.ts';

/**
 * How a drain looks: pure functions from its status to lines. On a terminal one line a machine, drawn over
 * again (`renderDrain`); elsewhere a line for every change (`describeChanges`); at the end a table
 * (`renderSummary`).
 */
export type RenderOptions = {
  /** Columns of the terminal. */
  width: number;
  /** Rows of the terminal; machines that do not fit are counted instead. */
  height: number;
  style: Style;
  nowMs: number;
};

const BAR_WIDTH = 20;

export function renderDrain(status: DrainStatus, options: RenderOptions): string[] {
  const { style, width } = options;
  const shown = mostTelling(status.machines, Math.max(1, options.height - 3));
  const rows = shown.map((machine) => cellsOf(machine, style));
  const columns = fitColumns(rows, width);

  const lines = [truncateStyled(style.bold(headline(status, options.nowMs)), width)];
  for (const [index, machine] of shown.entries()) {
    const cells = rows[index]!;
    lines.push(
      columns
        .map(({ column, columnWidth }) => {
          const cell = cells[column]!;
          return cell.paint(cell.text) + ' '.repeat(columnWidth - displayWidth(cell.text));
        })
        .join('  ')
        .trimEnd(),
    );
    if (machine.reason !== null && machine.state !== 'moved') {
      lines.push(style.yellow(truncate(`  ${reasonOf(machine)}`, width)));
    }
  }
  const hidden = status.machines.length - shown.length;
  if (hidden > 0) lines.push(style.dim(truncate(`… and ${hidden} more`, width)));
  // A reason takes a line of its own: with many of them the page is still not to scroll.
  return lines.slice(0, Math.max(2, options.height - 1));
}

function headline(status: DrainStatus, nowMs: number): string {
  const count = (state: DrainMachine['state']) =>
    status.machines.filter((machine) => machine.state === state).length;
  const parts = [`${count('moved')} of ${status.machines.length} gone`];
  for (const state of ['moving', 'hydrating', 'waiting', 'failed'] as const) {
    if (count(state) > 0) parts.push(`${count(state)} ${state}`);
  }
  const elapsed =
    status.sinceMs === null
      ? ''
      : `  ${formatDuration(Math.max(0, (status.endedAtMs ?? nowMs) - status.sinceMs))}`;
  return `${status.worker} ${status.state}: ${parts.join(', ')}${elapsed}`;
}

type Cell = { text: string; paint: (text: string) => string };

/**
 * In the order of the line; `keep` is the order in which columns are given up when the terminal is narrow,
 * lowest last.
 */
const COLUMNS = [
  { name: 'name', keep: 0 },
  { name: 'phase', keep: 1 },
  { name: 'bar', keep: 5 },
  { name: 'percent', keep: 2 },
  { name: 'rate', keep: 6 },
  { name: 'eta', keep: 4 },
  { name: 'target', keep: 7 },
  { name: 'interruption', keep: 3 },
] as const;

function cellsOf(machine: DrainMachine, style: Style): Cell[] {
  const plain = (text: string): Cell => ({ text, paint: (shown) => shown });
  const fraction = machine.state === 'moved' ? 1 : machine.hydratedFraction;
  const moves = machine.state === 'hydrating' && fraction !== 1;
  const paintPhase =
    machine.state === 'moved'
      ? style.green
      : machine.state === 'failed'
        ? style.red
        : machine.state === 'waiting'
          ? style.yellow
          : (text: string) => text;
  const interruption = machine.interruptionMs;
  return [
    { text: truncate(printable(machine.name), 24), paint: style.bold },
    { text: truncate(phaseOf(machine), 14), paint: paintPhase },
    plain(fraction === null ? '' : bar(fraction)),
    plain(fraction === null ? '' : `${Math.floor(fraction * 100)}%`.padStart(4)),
    plain(moves && machine.bytesPerSecond !== null ? `${formatSize(machine.bytesPerSecond)}/s` : ''),
    plain(moves && machine.etaMs !== null ? `eta ${formatDuration(machine.etaMs)}` : ''),
    plain(machine.target === null ? '' : `→ ${truncate(printable(machine.target), 24)}`),
    {
      text: interruption === null ? '' : `interrupted ${interruptionText(interruption)}`,
      paint: style.dim,
    },
  ];
}

function fitColumns(rows: readonly Cell[][], width: number): { column: number; columnWidth: number }[] {
  let columns = COLUMNS.map(({ keep }, column) => ({
    column,
    keep,
    columnWidth: Math.max(0, ...rows.map((cells) => displayWidth(cells[column]!.text))),
  })).filter(({ columnWidth }) => columnWidth > 0);
  const total = () => columns.reduce((sum, { columnWidth }) => sum + columnWidth + 2, -2);
  while (total() > width && columns.length > 1) {
    const least = Math.max(...columns.map(({ keep }) => keep));
    columns = columns.filter(({ keep }) => keep !== least);
  }
  const only = columns[0];
  if (columns.length === 1 && only && only.columnWidth > width) {
    for (const cells of rows) cells[only.column]!.text = truncate(cells[only.column]!.text, width);
    only.columnWidth = width;
  }
  return columns;
}

function phaseOf(machine: DrainMachine): string {
  if (machine.state === 'moving') return printable(machine.phase ?? 'moving');
  return machine.state === 'moved' ? 'done' : machine.state;
}

function bar(fraction: number): string {
  const full = Math.floor(Math.min(1, Math.max(0, fraction)) * BAR_WIDTH);
  return '█'.repeat(full) + '░'.repeat(BAR_WIDTH - full);
}

/** The whole, or what is known of it so far followed by `…`. */
function interruptionText(interruption: Interruption): string {
  if (interruption.total !== null) return formatDuration(interruption.total);
  const { stop, seal, handoff, attach, boot } = interruption;
  const soFar = [stop, seal, handoff, attach, boot].reduce((sum: number, phase) => sum + (phase ?? 0), 0);
  return `${formatDuration(soFar)} …`;
}

function reasonOf(machine: DrainMachine): string {
  const next = machine.nextAction === null ? '' : `; next: ${printable(machine.nextAction)}`;
  return `${printable(machine.reason ?? '')}${next}`;
}

/** The `limit` machines that there is most to say about, in their own order. */
function mostTelling(machines: readonly DrainMachine[], limit: number): DrainMachine[] {
  if (machines.length <= limit) return [...machines];
  const order: DrainMachine['state'][] = ['failed', 'waiting', 'moving', 'hydrating', 'queued', 'moved'];
  const chosen = new Set(
    [...machines]
      .sort((left, right) => order.indexOf(left.state) - order.indexOf(right.state))
      .slice(0, limit),
  );
  return machines.filter((machine) => chosen.has(machine));
}

/** Cuts a line that is one styled piece. */
function truncateStyled(text: string, width: number): string {
  return displayWidth(text) <= width ? text : truncate(text.replace(/\p{Cc}\[[0-9;]*m/gu, ''), width);
}

/** A line for everything that is new since `previous` (null: nothing was said yet). */
export function describeChanges(previous: DrainStatus | null, next: DrainStatus): string[] {
  const lines: string[] = [];
  if (previous?.state !== next.state) lines.push(`${next.worker}: ${next.state}`);
  for (const machine of next.machines) {
    const before = previous?.machines.find((candidate) => candidate.machineId === machine.machineId);
    const line = describeMachine(machine);
    if (before === undefined || describeMachine(before) !== line) lines.push(line);
  }
  return lines;
}

/** What is said about a machine; progress in steps of 25 %, so that a log stays readable. */
function describeMachine(machine: DrainMachine): string {
  const name = printable(machine.name);
  const to = machine.target === null ? '' : ` to ${printable(machine.target)}`;
  switch (machine.state) {
    case 'queued':
      return `${name}: queued`;
    case 'moving':
      return `${name}: moving${to}, ${phaseOf(machine)}`;
    case 'hydrating': {
      const quarter = Math.floor((machine.hydratedFraction ?? 0) * 4) * 25;
      const interrupted =
        machine.interruptionMs === null ? '' : `, interrupted ${interruptionText(machine.interruptionMs)}`;
      return `${name}: runs on ${printable(machine.target ?? 'its target')}, ${quarter}% hydrated${interrupted}`;
    }
    case 'moved': {
      const interrupted =
        machine.interruptionMs === null ? '' : `, interrupted ${interruptionText(machine.interruptionMs)}`;
      const avoided = machine.bytesAvoided ? `, ${formatSize(machine.bytesAvoided)} avoided` : '';
      return `${name}: moved${to}, ${formatSize(machine.wireBytes)} over the wire${avoided}${interrupted}`;
    }
    case 'waiting':
    case 'failed':
      return `${name}: ${machine.state}: ${reasonOf(machine)}`;
  }
}

function receiptCell({ root, waivedAtMs }: DrainMachine): string {
  if (root !== null) return shortDigest(root);
  return waivedAtMs === null ? '-' : 'waived';
}

/** The finished drain as a table. */
export function renderSummary(status: DrainStatus): string {
  const phase = (value: number | null | undefined) =>
    value === null || value === undefined ? '-' : formatDuration(value);
  const rows = status.machines.map((machine) => {
    const interruption = machine.interruptionMs;
    return [
      printable(machine.name),
      machine.state,
      printable(machine.target ?? '-'),
      machine.volumeBytes === 0 ? '-' : formatSize(machine.volumeBytes),
      machine.volumeBytes === 0 ? '-' : formatSize(machine.usedBytes),
      formatSize(machine.wireBytes),
      machine.bytesAvoided === null ? '-' : formatSize(machine.bytesAvoided),
      ...(['stop', 'seal', 'handoff', 'attach', 'boot', 'total'] as const).map((name) =>
        phase(interruption?.[name]),
      ),
      phase(machine.hydrationMs),
      receiptCell(machine),
    ];
  });
  const header = [
    'MACHINE',
    'STATE',
    'TARGET',
    'VOLUME',
    'USED',
    'WIRE',
    'AVOIDED',
    'STOP',
    'SEAL',
    'HANDOFF',
    'ATTACH',
    'BOOT',
    'TOTAL',
    'HYDRATION',
    'RECEIPT',
  ];
  return table(header, rows);
}

/** What a drain would do, as a table and a sentence. */
export function renderPlan(plan: Plan): string {
  const volumes = (plan.volumes ?? [])
    .map(
      ({ name, reason, nextAction }) => `\nvolume ${printable(name)} stays: ${reason}; next: ${nextAction}`,
    )
    .join('');
  const warnings = plan.warnings.map((warning) => `\nwarning: ${printable(warning)}`).join('');
  if (plan.steps.length === 0) {
    const nothing = warnings === '' ? ': there is nothing to do.' : '.';
    return `${plan.worker} has no machine${nothing}${volumes}${warnings}`;
  }
  const rows = plan.steps.map((step) => [
    String(step.order),
    printable(step.name),
    printable(step.target ?? 'stays'),
    formatSize(step.bytes),
    step.predictedInterruptionMs === null ? '-' : `~${formatDuration(step.predictedInterruptionMs)}`,
    step.predictedHydrationMs === null ? '-' : `~${formatDuration(step.predictedHydrationMs)}`,
    printable(step.reason),
  ]);
  const stays = plan.steps.filter((step) => step.target === null).length;
  const finish =
    plan.predictedFinishMs === null ? '' : `, finished after about ${formatDuration(plan.predictedFinishMs)}`;
  const sentence = `${plan.steps.length - stays} of ${plan.steps.length} machines can go, ${formatSize(plan.totalBytes)} over the wire${finish}.`;
  return `${table(['ORDER', 'MACHINE', 'TARGET', 'BYTES', 'INTERRUPTION', 'HYDRATION', 'REASON'], rows)}\n\n${sentence}${volumes}${warnings}`;
}
