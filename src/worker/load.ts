import { availableParallelism, freemem, totalmem } from 'node:os';
import { liveMapsBytes } from '../clone/live-map.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { EncryptionNeeds, PlacementRequest, PrepareRequest } from '../contract/peer.ts';
import { assessHost, missingFor, type Plane } from '../host/capabilities.ts';
import { readCgroupLayout } from '../host/cgroup.ts';
import { readHostFacts } from '../host/host-facts.ts';
import { kernelCan } from '../kernel/can.ts';
import type { MachineManager } from '../machine/manager.ts';
import { type DiskReservation, diskNeedBytes, type HostLoad } from '../migration/placement.ts';
import { fileSystemOf } from '../sys/file-system.ts';
import {
  encryptionCapabilities,
  type VolumeStore,
  validityFilesBytes,
  validityPath,
} from '../volume/index.ts';
import type { WorkerOptions } from './options.ts';
import { PLANES } from './planes.ts';

/** What placement looks at in a volume. */
export type PlacedVolume = {
  lengthBytes: number;
  usedBytes: number;
  encryption?: EncryptionNeeds;
  /** Its ciphertext has holes, which dm-crypt reads as noise. */
  hasHoles?: boolean;
};

/** What a machine needs, from its configuration and its volume. */
export function placementOf(
  machine: { id: string; name: string; config: MachineConfig },
  volume: PlacedVolume | null,
): PlacementRequest {
  const userspaceOnly = volume && whyUserspaceOnly(machine.config, volume);
  return {
    machineId: machine.id,
    machineName: machine.name,
    group: machine.config.group ?? null,
    memoryBytes: machine.config.resources.memoryBytes ?? 0,
    cpus: machine.config.resources.cpus ?? 0,
    volumeLengthBytes: volume?.lengthBytes ?? 0,
    volumeUsedBytes: volume?.usedBytes ?? 0,
    ...(volume?.encryption && { encryption: volume.encryption }),
    ...(userspaceOnly && { userspaceOnly }),
  };
}

/** The kernel plane could not open it at another worker. Pure. */
function whyUserspaceOnly(config: MachineConfig, { lengthBytes, hasHoles }: PlacedVolume): string | null {
  const nbd = config.volume?.nbd ? {} : undefined;
  const encryption = hasHoles ? {} : undefined;
  return kernelCan({ kind: 'own', lengthBytes, nbd, encryption })?.reason ?? null;
}

/** What this host lacks for a plane now, when a module may be gone, or iscsid; null: nothing. */
export function lackingOnThisHost(plane: Plane): string | null {
  const missing = missingFor(plane, assessHost(readHostFacts()));
  return missing.map(({ what, detail }) => `${what}: ${detail}`).join('; ') || null;
}

/** Limits of machines for which this host has no control group. */
export function limitsMissingOnThisHost(): ('memory' | 'cpu')[] {
  const { memory, cpu } = readCgroupLayout();
  return [...(memory === null ? (['memory'] as const) : []), ...(cpu === null ? (['cpu'] as const) : [])];
}

/** A volume that is being made of a disk of another system, with what was in use there. */
export type Importing = { volumeId: string; lengthBytes: number; usedBytes: number };

/**
 * What this host has and has promised. Disk that volumes still arriving will take, by a move or an import, is
 * not free any more, though nothing is written there yet.
 */
export async function hostLoad(
  options: Pick<WorkerOptions, 'name' | 'capacity' | 'tls' | 'plane' | 'keys'> & {
    /** Where the live maps of clones are. */
    validityDir: string;
  },
  machines: Pick<MachineManager, 'records'>,
  volumes: Pick<VolumeStore, 'capacity' | 'usedBytes' | 'holdsFileOf'>,
  incoming: readonly PrepareRequest[],
  importing: readonly Importing[],
  draining: boolean,
  host: { lacking: HostLoad['lacks']; limitsMissing: () => ('memory' | 'cpu')[] },
): Promise<HostLoad> {
  const capacity = await volumes.capacity();
  const totalDiskBytes = Math.min(options.capacity.diskBytes ?? capacity.totalBytes, capacity.totalBytes);
  const { validityDir } = options;
  const reserved: DiskReservation[] = [];
  const maps: DiskReservation[] = [];
  const arrives = async (machineId: string | null, { volumeId, lengthBytes, usedBytes }: Importing) => {
    const here = await volumes.usedBytes(volumeId).catch(() => 0);
    const diskBytes = diskNeedBytes({ volumeUsedBytes: usedBytes }) - here;
    reserved.push({ machineId, bytes: Math.max(0, diskBytes) });
    const mapsBytes =
      liveMapsBytes({ lengthBytes, usedBytes }) - validityFilesBytes(validityPath(validityDir, volumeId));
    maps.push({ machineId, bytes: Math.max(0, mapsBytes) });
  };
  for (const { machineId, volume, placement } of incoming) {
    if (!volume) continue;
    const { volumeLengthBytes: lengthBytes, volumeUsedBytes: usedBytes } = placement;
    await arrives(machineId, { volumeId: volume.volumeId, lengthBytes, usedBytes });
  }
  for (const volume of importing) await arrives(null, volume);
  const memory = await fileSystemOf(validityDir).catch(() => null);
  const placed = new Map<string, PlacementRequest>();
  for (const request of incoming) placed.set(request.machineId, request.placement);
  for (const record of machines.records()) placed.set(record.id, placementOf(record, null));
  return {
    worker: options.name,
    draining,
    // The kernel's initiator speaks no TLS.
    tls: options.tls !== null && PLANES[options.plane].tls,
    plane: options.plane,
    lacks: (plane) => host.lacking(plane),
    holdsFileOf: (lengthBytes) => volumes.holdsFileOf(lengthBytes),
    limitsMissing: host.limitsMissing(),
    encryption: options.keys === null ? null : encryptionCapabilities(freemem()),
    memoryBytes: options.capacity.memoryBytes ?? totalmem(),
    cpus: options.capacity.cpus ?? availableParallelism(),
    freeDiskBytes: Math.min(capacity.freeBytes, totalDiskBytes - capacity.usedBytes),
    reserved,
    ...(memory && { maps: { dir: validityDir, freeBytes: memory.availableBytes, reserved: maps } }),
    totalDiskBytes,
    placed: [...placed.values()],
  };
}
