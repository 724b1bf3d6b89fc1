import { setTimeout as sleep } from 'node:timers/promises';
import type { MachineView, VolumeView, WorkerView } from '../../contract/schemas.ts';
import type { Context } from '../context.ts';
import { EXIT, ExitWith } from '../exit.ts';
import type { FleetClient, Gathered } from '../fleet-client.ts';
import { owned } from '../fleet-client.ts';
import { interruption } from '../interruption.ts';
import { LiveRegion } from '../live-region.ts';
import type { Style } from '../style.ts';
import { table, truncate } from '../table.ts';
import { formatDuration, formatSize } from '../units.ts';
import { downLine, ioPausedLine, percent, stateOf, undoneLine } from './machine.ts';

const POLL_MS = 1_000;

type Sample = {
  atMs: number;
  workers: WorkerView[];
  machines: MachineView[];
  volumes: VolumeView[];
  unreachable: Gathered<unknown>['unreachable'];
};

async function sample(fleet: FleetClient): Promise<Sample> {
  const { items, unreachable } = await fleet.gather(async ({ client }) => [
    await Promise.all([client.worker(), client.listMachines(), client.listVolumes()]),
  ]);
  return {
    atMs: Date.now(),
    workers: items.map(([worker]) => worker),
    machines: owned(
      'machine',
      items.flatMap(([, machines]) => machines),
    ),
    volumes: owned(
      'volume',
      items.flatMap(([, , volumes]) => volumes),
    ),
    unreachable,
  };
}

/** A live table on a terminal; elsewhere, with --once and with --json, one look. */
export async function top(context: Context, options: { once?: boolean }): Promise<void> {
  const fleet = context.fleet();
  let before = await sample(fleet);
  if (context.json || options.once || !context.stdout.isTTY) {
    const { unreachable, ...rest } = before;
    context.result({ ...rest, unreachable: unreachable.map(({ worker, url }) => ({ worker, url })) }, () =>
      renderTop(before, null, context.style).join('\n'),
    );
    if (unreachable.length > 0) throw new ExitWith(EXIT.unreachable);
    return;
  }
  const region = new LiveRegion(context.stdout);
  const interrupt = interruption();
  try {
    let previous: Sample | null = null;
    while (!interrupt.signal.aborted) {
      const width = (context.stdout.columns || 80) - 1;
      const height = (context.stdout.rows || 24) - 1;
      const lines = renderTop(before, previous, context.style);
      region.draw(lines.slice(0, height).map((line) => truncate(line, width)));
      await sleep(POLL_MS, undefined, { signal: interrupt.signal }).catch(() => {});
      if (interrupt.signal.aborted) break;
      previous = before;
      before = await sample(fleet);
    }
  } finally {
    interrupt.dispose();
  }
}

/** Pure. Rates come from the difference to the sample before, where there is one. */
function renderTop(now: Sample, before: Sample | null, style: Style): string[] {
  const workers = now.workers
    .sort((left, right) => left.name.localeCompare(right.name))
    .map((worker) => [
      worker.name,
      worker.draining ? 'draining' : 'up',
      String(worker.machines),
      String(worker.volumes),
      `${formatSize(worker.free.memoryBytes)} of ${formatSize(worker.capacity.memoryBytes)}`,
      `${round(worker.free.cpus)} of ${round(worker.capacity.cpus)}`,
      `${formatSize(worker.free.diskBytes)} of ${formatSize(worker.capacity.diskBytes)}`,
    ]);
  for (const { worker } of now.unreachable) workers.push([worker, 'no answer', '-', '-', '-', '-', '-']);

  const machines = now.machines
    .sort((left, right) => left.name.localeCompare(right.name))
    .map((machine) => {
      const find = (volumes: VolumeView[]) => volumes.find((volume) => volume.id === machine.volumeId);
      const volume = find(now.volumes);
      const guest = volume?.guest ?? null;
      const old = before ? (find(before.volumes)?.guest ?? null) : null;
      const seconds = before ? (now.atMs - before.atMs) / 1000 : 0;
      // Counters start anew when a volume server does.
      const rate = (key: 'reads' | 'writes') =>
        guest && old && seconds > 0 && guest[key] >= old[key]
          ? round((guest[key] - old[key]) / seconds)
          : '-';
      const hydration = machine.hydration ?? volume?.hydration ?? null;
      return [
        machine.name,
        machine.worker,
        stateOf(machine, now.atMs),
        volume ? `${formatSize(volume.usedBytes)} of ${formatSize(volume.lengthBytes)}` : '-',
        rate('reads'),
        rate('writes'),
        guest && guest.readLatencyP99Ms !== null ? `${round(guest.readLatencyP99Ms)} ms` : '-',
        hydration && hydration.state !== 'complete'
          ? percent(hydration.blocksPresent, hydration.blocksTotal)
          : '-',
        hydration && hydration.state !== 'complete' ? `${formatSize(hydration.bytesPerSecond)}/s` : '-',
        hydration?.etaMs != null && hydration.state !== 'complete' ? formatDuration(hydration.etaMs) : '-',
      ];
    });
  const workerLines = table(
    ['WORKER', 'STATE', 'MACHINES', 'VOLUMES', 'MEMORY FREE', 'CPUS FREE', 'DISK FREE'],
    workers,
  );
  const machineLines = table(
    ['MACHINE', 'WORKER', 'STATE', 'USED', 'READS/S', 'WRITES/S', 'READ P99', 'HYDRATED', 'RATE', 'ETA'],
    machines,
  );
  const titled = (text: string) =>
    text.split('\n').map((line, index) => (index === 0 ? style.bold(line) : line));
  const notes = [downLine, undoneLine, ioPausedLine].flatMap((line) => line(now.machines, now.atMs) ?? []);
  return [...titled(workerLines), '', ...notes.map((note) => style.yellow(note)), ...titled(machineLines)];
}

function round(value: number): string {
  return String(value >= 100 ? Math.round(value) : Math.round(value * 10) / 10);
}
