import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { PeerClient } from '../api/peer-client.ts';
import type { Journal } from '../journal/journal.ts';
import type { DrainController } from '../migration/drain.ts';
import type { EventBus } from './event-bus.ts';
import type { MachineFigures } from './machine-figures.ts';
import type { Meters } from './meters.ts';
import { Counts, type TellsMetrics } from './metric.ts';
import type { WorkerParts } from './parts.ts';

/*
 * What each part declares to be counted and measured: docs/metrics.md is made from these rows.
 */

const NS_PER_SECOND = 1e9;

/** Of the event loop of this process: between two of its ticks, as they come and not only their lateness. */
const TICK_MS = 20;
const ticks = monitorEventLoopDelay({ resolution: TICK_MS });

function latenessSeconds(percentile: number): number {
  if (ticks.count === 0) return 0;
  return Math.max(0, ticks.percentile(percentile) / NS_PER_SECOND - TICK_MS / 1000);
}

export const PROCESS_METRICS: TellsMetrics<WorkerParts, Meters> = {
  process_cpu_seconds_total: {
    type: 'counter',
    help: 'Processor time of the worker process, in user and kernel mode.',
    read() {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1e6;
    },
  },
  process_resident_memory_bytes: {
    type: 'gauge',
    help: 'Resident memory of the worker process.',
    read: () => process.memoryUsage.rss(),
  },
  process_start_time_seconds: {
    type: 'gauge',
    help: 'When the worker process began, since the Unix epoch.',
    read: () => performance.timeOrigin / 1000,
  },
  godwit_event_loop_delay_seconds: {
    type: 'gauge',
    help: 'By how much the event loop of the worker is late, since the last time that this was read.',
    labels: ['percentile'],
    read() {
      // The first reading begins it.
      ticks.enable();
      const percentiles = [50, 99, 100].map((percentile) => ({
        labels: { percentile: String(percentile) },
        value: latenessSeconds(percentile),
      }));
      ticks.reset();
      return percentiles;
    },
  },
};

export const FIGURE_METRICS: TellsMetrics<WorkerParts, MachineFigures> = {
  godwit_machines: {
    type: 'gauge',
    help: 'Machines of this worker, by state, as last heard.',
    labels: ['state'],
    read: (figures) => figures.states(),
  },
  godwit_figures_age_seconds: {
    type: 'gauge',
    help: 'How long ago the machines and the disk were looked at; NaN before the first look.',
    read: (figures) => figures.ageSeconds,
  },
  ...sum('godwit_volume_reads_total', 'reads', 'Reads of guests.'),
  ...sum('godwit_volume_read_bytes_total', 'readBytes', 'Bytes that guests have read.'),
  ...sum('godwit_volume_writes_total', 'writes', 'Writes of guests.'),
  ...sum('godwit_volume_written_bytes_total', 'writeBytes', 'Bytes that guests have written.'),
  ...sum('godwit_volume_flushes_total', 'flushes', 'Flushes of guests.'),
  ...sum('godwit_volume_misses_total', 'misses', 'Reads and writes of guests that waited for a source.'),
  ...sum('godwit_hydration_fetched_bytes_total', 'wireBytes', 'Bytes of volumes that came over the wire.'),
  ...sum('godwit_hydration_refetched_bytes_total', 'twiceBytes', 'Bytes of them that came again.'),
  godwit_hydration_missing_bytes: {
    type: 'gauge',
    help: 'Bytes of volumes here that are still only at their source.',
    read: (figures) => figures.missing.bytes,
  },
  godwit_hydrating_volumes: {
    type: 'gauge',
    help: 'Volumes here that are not whole.',
    read: (figures) => figures.missing.volumes,
  },
  godwit_volumes_without_room: {
    type: 'gauge',
    help: 'Volumes whose writes wait, or fail, because the disk is full.',
    read: (figures) => figures.missing.noRoom,
  },
  godwit_disk_size_bytes: {
    type: 'gauge',
    help: 'Size of the data disk.',
    read: (figures) => figures.disk('totalBytes'),
  },
  godwit_disk_free_bytes: {
    type: 'gauge',
    help: 'Room on the data disk.',
    read: (figures) => figures.disk('availableBytes'),
  },
  godwit_disk_reserve_bytes: {
    type: 'gauge',
    help: 'What of the room volumes leave free.',
    read: (figures) => figures.disk('reserveBytes'),
  },
};

function sum(
  name: string,
  counted: Parameters<MachineFigures['sum']>[0],
  help: string,
): TellsMetrics<WorkerParts, MachineFigures> {
  return { [name]: { type: 'counter', help, read: (figures) => figures.sum(counted) } };
}

export const RUN_METRICS: TellsMetrics<WorkerParts, Journal> = {
  godwit_runs: {
    type: 'gauge',
    help: 'Runs that are not over, by kind and state.',
    labels: ['kind', 'state'],
    read(journal) {
      const open = new Counts();
      for (const { kind, state } of journal.open()) open.add({ kind, state });
      return open.read();
    },
  },
  godwit_runs_ended_total: {
    type: 'counter',
    help: 'Runs that ended, by kind and how.',
    labels: ['kind', 'state'],
    read: (_, { meters }) => meters.runsEnded.read(),
  },
  godwit_run_duration_seconds: {
    type: 'histogram',
    help: 'From the start to the end of runs, by kind and how they ended.',
    labels: ['kind', 'state'],
    read: (_, { meters }) => meters.runs.read(),
  },
  godwit_move_interruption_seconds: {
    type: 'histogram',
    help: 'From the stop of a machine here to its first healthy answer at the target: all of it (total), and its phases.',
    labels: ['phase'],
    read: (_, { meters }) => meters.interruptions.read(),
  },
  godwit_move_skipped_bytes_total: {
    type: 'counter',
    help: 'Bytes of volumes that moved from here and did not have to travel, because their filesystem did not use them.',
    read: (_, { meters }) => meters.bytesAvoided.read(),
  },
};

export const DRAIN_METRICS: TellsMetrics<WorkerParts, DrainController> = {
  godwit_drain_desired: {
    type: 'gauge',
    help: '1: this worker is to be empty.',
    read: (drain) => Number(drain.desired),
  },
};

export const PEER_METRICS: TellsMetrics<WorkerParts, readonly PeerClient[]> = {
  godwit_peer_call_duration_seconds: {
    type: 'histogram',
    help: 'Questions to other workers, by worker and question, answered or not.',
    labels: ['peer', 'question'],
    read: (_, { meters }) => meters.peerCalls.read(),
  },
  godwit_peer_call_failures_total: {
    type: 'counter',
    help: 'Questions to other workers that ended with an error, by worker and code (docs/errors.md).',
    labels: ['peer', 'code'],
    read: (_, { meters }) => meters.peerFailures.read(),
  },
};

export const EVENT_METRICS: TellsMetrics<WorkerParts, EventBus> = {
  godwit_events_total: {
    type: 'counter',
    help: 'What the worker told of (docs/events.md), by code; drains that were asked for and ended among them.',
    labels: ['event'],
    read: (events) => events.counts.read(),
  },
};

export const API_METRICS: TellsMetrics<WorkerParts, unknown> = {
  godwit_api_request_duration_seconds: {
    type: 'histogram',
    help: 'Requests to this worker, by method, route as docs/endpoints.md has it, and class of status.',
    labels: ['method', 'route', 'status'],
    read: (_, { meters }) => meters.requests.read(),
  },
};

/** By part. */
export const METRICS = {
  meters: PROCESS_METRICS,
  figures: FIGURE_METRICS,
  journal: RUN_METRICS,
  drain: DRAIN_METRICS,
  peers: PEER_METRICS,
  events: EVENT_METRICS,
  api: API_METRICS,
};
