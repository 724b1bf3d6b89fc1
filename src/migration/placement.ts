import { liveMapsBytes } from '../clone/live-map.ts';
import { wordsOf } from '../contract/endpoint.ts';
import {
  type HostRoom,
  type Offer,
  type OfferRequest,
  PEER,
  type PlacementRequest,
} from '../contract/peer.ts';
import { assessGeometry, type HostCapabilities } from '../crypt/geometry.ts';
import type { Plane } from '../host/capabilities.ts';

/** What a worker knows about itself when it is asked for an offer. */
export type HostLoad = {
  worker: string;
  draining: boolean;
  /** It has certificates: blocks may come over TLS. */
  tls: boolean;
  /** The plane that volumes of this worker are in, unless they need the other one. */
  plane: Plane;
  /** What its host lacks for a plane; null: nothing. Looks at the host when it is asked. */
  lacks: (plane: Plane) => string | null;
  /** Its filesystem can hold a file of this length. Looks at the host when it is asked. */
  holdsFileOf: (lengthBytes: number) => boolean;
  /** Limits that its kernel cannot keep: it has no cgroup controller for them. Left out: none. */
  limitsMissing?: readonly ('memory' | 'cpu')[];
  /** Which encrypted volumes it could open; null: none, it has nobody to ask for keys. */
  encryption: HostCapabilities | null;
  memoryBytes: number;
  cpus: number;
  /** Free now on the filesystem of the volumes, with what is promised of it. */
  freeDiskBytes: number;
  /** What volumes that are still arriving will take of it. */
  reserved: readonly DiskReservation[];
  /**
   * The memory that live maps of clones are in, where the userspace plane has them. Left out: it is not
   * known.
   */
  maps?: { dir: string; freeBytes: number; reserved: readonly DiskReservation[] };
  totalDiskBytes: number;
  /** Machines that are here and moves that have been promised room, without the machine in question. */
  placed: readonly PlacementRequest[];
};

/** `machineId`: null for an import, which is of no machine. */
export type DiskReservation = { machineId: string | null; bytes: number };

/** Bytes of memory that the maps of a machine's volume will take at most while it arrives. */
function mapsNeedBytes(machine: Pick<PlacementRequest, 'volumeLengthBytes' | 'volumeUsedBytes'>): number {
  const { volumeLengthBytes: lengthBytes, volumeUsedBytes: usedBytes } = machine;
  return lengthBytes === 0 ? 0 : liveMapsBytes({ lengthBytes, usedBytes });
}

/** Why there is no memory for the maps of a clone; null: there is, as far as anybody knows. */
export function mapsProblem(
  { maps }: Pick<HostLoad, 'maps'>,
  volume: Pick<PlacementRequest, 'volumeLengthBytes' | 'volumeUsedBytes'>,
  others: { machineId?: string; planned?: readonly PlacementRequest[] } = {},
): string | null {
  if (maps === undefined) return null;
  const { machineId, planned = [] } = others;
  const need = mapsNeedBytes(volume);
  const { freeBytes, reserved } = maps;
  const free =
    unpromisedDiskBytes({ freeDiskBytes: freeBytes, reserved }, machineId) - sum(planned, mapsNeedBytes);
  if (need <= Math.max(0, free)) return null;
  return `memory: its map of blocks needs ${mebibytes(need)} in ${maps.dir}, which has ${mebibytes(free)} that are neither used nor promised`;
}

/** Free disk that is promised to nobody, or only to this machine. */
export function unpromisedDiskBytes(
  { freeDiskBytes, reserved }: Pick<HostLoad, 'freeDiskBytes' | 'reserved'>,
  machineId?: string,
): number {
  const others = reserved.filter((each) => machineId === undefined || each.machineId !== machineId);
  return freeDiskBytes - others.reduce((total, { bytes }) => total + bytes, 0);
}

/** Disk that stays free whatever comes: the host's own logs and journal must go on. */
export const DISK_RESERVE_BYTES = 256 * 1024 * 1024;

/** Room that a machine's volume gets beyond what it holds today, as a fraction of that. */
const DISK_HEADROOM_FRACTION = 0.1;

/** CPUs may be promised this many times over; memory is never. */
const CPU_OVERCOMMIT = 4;

/**
 * Bytes of disk that must be free for a machine to be taken. Volumes are thin, so this follows the use, not
 * the length.
 */
export function diskNeedBytes(machine: Pick<PlacementRequest, 'volumeUsedBytes'>): number {
  return Math.ceil(machine.volumeUsedBytes * (1 + DISK_HEADROOM_FRACTION));
}

/**
 * A worker's answer to "can you take this machine?". Pure: the same question and load give the same answer.
 */
export function evaluateOffer(host: HostLoad, request: OfferRequest): Offer {
  const others = [...host.placed, ...request.planned].filter(
    (placed) => placed.machineId !== request.machine.machineId,
  );
  const freeMemoryBytes = host.memoryBytes - sum(others, (placed) => placed.memoryBytes);
  const freeCpus = host.cpus * CPU_OVERCOMMIT - sum(others, (placed) => placed.cpus);
  // A volume that is on its way here is not in its own way.
  const unpromisedBytes = unpromisedDiskBytes(host, request.machine.machineId);
  const freeDiskBytes = unpromisedBytes - sum(request.planned, diskNeedBytes) - DISK_RESERVE_BYTES;
  const groupMembers =
    request.machine.group === null
      ? 0
      : others.filter((placed) => placed.group === request.machine.group).length;
  const facts = {
    worker: host.worker,
    tls: host.tls,
    knows: wordsOf(PEER),
    freeMemoryBytes,
    freeCpus,
    freeDiskBytes,
    groupMembers,
  };
  const refuse = (reason: string): Offer => ({ ...facts, accepted: false, reason, score: 0 });

  if (host.worker === request.sourceWorker) return refuse('is the worker that the machine leaves');
  if (host.draining) return refuse('is draining');
  // More may be promised than there is (machines that rest were admitted one at a time): who asks for none
  // takes none.
  if (request.machine.memoryBytes > Math.max(0, freeMemoryBytes)) {
    return refuse(
      `memory: needs ${mebibytes(request.machine.memoryBytes)}, has ${mebibytes(freeMemoryBytes)}`,
    );
  }
  if (request.machine.cpus > Math.max(0, freeCpus)) {
    return refuse(`cpus: needs ${request.machine.cpus}, has ${Math.max(0, freeCpus).toFixed(2)}`);
  }
  for (const limit of host.limitsMissing ?? []) {
    const asked = limit === 'memory' ? request.machine.memoryBytes > 0 : request.machine.cpus > 0;
    if (asked) return refuse(`${limit}: it has no cgroup controller to keep the limit of the machine`);
  }
  const need = diskNeedBytes(request.machine);
  if (need > freeDiskBytes) {
    return refuse(`disk: needs ${mebibytes(need)}, has ${mebibytes(freeDiskBytes)}`);
  }
  const { volumeLengthBytes } = request.machine;
  if (!host.holdsFileOf(volumeLengthBytes)) {
    return refuse(
      `disk: the filesystem of its volumes cannot hold a file of ${mebibytes(volumeLengthBytes)}`,
    );
  }
  const plane = request.machine.userspaceOnly === undefined ? host.plane : 'userspace';
  const lacking = volumeLengthBytes === 0 ? null : host.lacks(plane);
  if (lacking !== null) return refuse(planeProblem(plane, lacking, request.machine));
  const { machineId } = request.machine;
  const unmapped =
    plane === 'kernel' ? null : mapsProblem(host, request.machine, { machineId, planned: request.planned });
  if (unmapped !== null) return refuse(unmapped);
  const locked = encryptionProblem(host, request.machine);
  if (locked !== null) return refuse(locked);
  const score = Math.min(
    fraction(freeMemoryBytes - request.machine.memoryBytes, host.memoryBytes),
    fraction(freeCpus - request.machine.cpus, host.cpus * CPU_OVERCOMMIT),
    fraction(freeDiskBytes - need, host.totalDiskBytes),
    1 / (1 + others.length),
  );
  return { ...facts, accepted: true, reason: `room left: ${Math.round(score * 100)} %`, score };
}

/** What of a load goes to another worker (`FitReply`). */
export function roomOf(host: HostLoad): HostRoom {
  const { worker, draining, tls, plane, limitsMissing, memoryBytes, cpus, maps } = host;
  return {
    ...{ worker, draining, tls, plane, memoryBytes, cpus },
    ...(limitsMissing && { limitsMissing: [...limitsMissing] }),
    freeDiskBytes: host.freeDiskBytes,
    reserved: [...host.reserved],
    ...(maps && { maps: { ...maps, reserved: [...maps.reserved] } }),
    totalDiskBytes: host.totalDiskBytes,
    placed: [...host.placed],
  };
}

/**
 * The offer of a worker that has said its room, and why it would refuse the machine without planned ones
 * (null: it would not).
 */
export function offerFrom(room: HostRoom, request: OfferRequest, refusal: string | null): Offer {
  // What its host can do is in the refusal.
  const host = { ...room, lacks: () => null, holdsFileOf: () => true, encryption: null };
  const { encryption, ...machine } = request.machine;
  const offer = evaluateOffer(host, { ...request, machine });
  return refusal === null || !offer.accepted ? offer : refused(offer, refusal);
}

export function refused(offer: Offer, reason: string): Offer {
  return { ...offer, accepted: false, score: 0, reason };
}

function planeProblem(plane: Plane, lacking: string, { userspaceOnly }: PlacementRequest): string {
  const why = userspaceOnly === undefined ? '' : `, which the volume needs because it ${userspaceOnly}`;
  return `cannot do the ${plane} plane${why}: ${lacking}`;
}

/**
 * Why the host could not open the machine's volume; null when it could, given its key, or when the volume is
 * not encrypted.
 */
function encryptionProblem(host: HostLoad, machine: PlacementRequest): string | null {
  const { encryption, volumeLengthBytes } = machine;
  if (encryption === undefined) return null;
  if (host.encryption === null) return 'encryption: it has no keys (--key-file, --key-exec)';
  const problems = assessGeometry(encryption.geometry, host.encryption, {
    uuid: encryption.uuid,
    plainLengthBytes: volumeLengthBytes,
    deviceLengthBytes: volumeLengthBytes,
  });
  if (problems.length === 0) return null;
  return `encryption: ${problems.map(({ what, message }) => `${what}: ${message}`).join('; ')}`;
}

/**
 * The best of the offers, or why there is none. A worker that failed the machine of late (`failed`, with its
 * reason) goes behind all others; then one without a member of the machine's group always goes before one
 * with a member; within that the higher score, then the name, so that the choice is the same every time.
 */
export function chooseOffer(
  offers: readonly Offer[],
  failed: ReadonlyMap<string, string> = new Map(),
): { chosen: Offer } | { chosen: null; reasons: { worker: string; reason: string }[] } {
  const accepted = offers.filter((offer) => offer.accepted);
  accepted.sort(
    (left, right) =>
      Number(failed.has(left.worker)) - Number(failed.has(right.worker)) ||
      left.groupMembers - right.groupMembers ||
      right.score - left.score ||
      (left.worker < right.worker ? -1 : 1),
  );
  const chosen = accepted[0];
  if (chosen) return { chosen };
  return { chosen: null, reasons: offers.map(({ worker, reason }) => ({ worker, reason })) };
}

function sum(machines: readonly PlacementRequest[], of: (machine: PlacementRequest) => number): number {
  return machines.reduce((total, machine) => total + of(machine), 0);
}

function fraction(part: number, whole: number): number {
  return whole <= 0 ? 0 : Math.max(0, part / whole);
}

/** Whole ones, as people read them. */
export function mebibytes(bytes: number): string {
  return `${Math.max(0, Math.floor(bytes / 2 ** 20))} MiB`;
}
