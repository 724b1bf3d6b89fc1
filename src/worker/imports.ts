import { realpathSync } from 'node:fs';
import { isAbsolute, sep } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import { SerialByKey } from '../base/serial.ts';
import type { ImportVolumeRequest } from '../contract/schemas.ts';
import type { MachineManager } from '../machine/manager.ts';
import {
  DISK_RESERVE_BYTES,
  diskNeedBytes,
  type HostLoad,
  mapsProblem,
  mebibytes,
  unpromisedDiskBytes,
} from '../migration/placement.ts';
import type { ShimClient } from '../shim/client.ts';
import type { ShimStatus } from '../shim/protocol.ts';
import {
  readImportSource,
  removeValidityFile,
  type VolumeRecord,
  type VolumeStore,
  validityPath,
} from '../volume/index.ts';
import type { Importing } from './load.ts';
import type { Openings } from './openings.ts';
import { ownerOf, type ShimOwner } from './shim-owner.ts';
import type { VolumeAccess } from './volume-access.ts';

export type ImportsOptions = {
  machines: MachineManager;
  openings: Openings;
  volumes: VolumeStore;
  access: VolumeAccess;
  validityDir: string;
  /** Folders that no machine may see, so no volume may be made of what is in them. */
  hidden: readonly string[];
  /** What the host has and has not promised. */
  load: () => Promise<Pick<HostLoad, 'freeDiskBytes' | 'reserved' | 'maps'>>;
  clock: Clock;
  random: Random;
  logger: Logger;
  /** A volume is whole. */
  onWhole: (record: VolumeRecord) => void;
};

/** Between two looks at the volumes that are not whole; events make most of them earlier. */
const LOOK_MS = PAUSE.importLook.ms;
const CONNECT_TIMEOUT_MS = PATIENCE.importConnect.ms;

/**
 * Volumes that are made of disks of other systems, until they are whole. A volume hydrates wherever it is
 * open: in the shim of its machine, or, while no machine has it open, in a shim of its own without a
 * workload. What is to be done is found by looking, so a worker may end at any moment: records and
 * `source.json` say which volumes these are, the shims what is open where.
 */
export class Imports {
  readonly #options: ImportsOptions;
  /** Volumes that are not whole, with what was in use at their sources. */
  readonly #open = new Map<string, Importing>();
  readonly #turns = new SerialByKey();
  #cancelLook: () => void = () => {};
  #closed = false;

  constructor(options: ImportsOptions) {
    this.#options = options;
    options.machines.onEvent((shimId, event, data) => {
      const hydrated = event === 'volume' && (data as { event?: string } | null)?.event === 'hydrated';
      if (hydrated || (event === 'shim-closed' && ownerOf(shimId)?.kind === 'import')) this.#look();
    });
  }

  /** Finds the volumes that an earlier process was importing, and goes on with them. */
  async start(): Promise<void> {
    const { volumes } = this.#options;
    for (const record of (await volumes.list()).volumes) {
      if (record.state !== 'clone') continue;
      const source = await readImportSource(volumes.folder(record.id)).catch((error: unknown) => {
        this.#options.logger.error(
          { volumeId: record.id, error: toWireError(error) },
          'cannot go on importing',
        );
        return null;
      });
      const { id: volumeId, lengthBytes } = record;
      if (source) this.#open.set(volumeId, { volumeId, lengthBytes, usedBytes: source.usedBytes });
    }
    if (this.#open.size > 0) this.#look();
  }

  close(): void {
    this.#closed = true;
    this.#cancelLook();
  }

  /**
   * Looks at the source, and makes the volume. It hydrates from now on. Rejects with the errors of the
   * source's client, `VOLUME_BAD_SOURCE`, `WORKER_IMPORT_NO_SPACE` and those of `VolumeStore.createImported`.
   */
  async create(request: ImportVolumeRequest): Promise<VolumeRecord> {
    const { clock, random, logger, volumes } = this.#options;
    // Clients of two protocols, which a worker that imports nothing does without.
    const { connectImportSource, detectFilesystem, measureUse, parseImportSource } = await import(
      '../volume/import-source.ts'
    );
    const location = request.source;
    const source = parseImportSource(location);
    if (source.kind === 'file') this.#checkPath(source.path);
    const look = await connectImportSource(source, { clock, random, logger }, CONNECT_TIMEOUT_MS);
    let record: VolumeRecord;
    try {
      const filesystem = request.filesystem ?? (await detectFilesystem(look, clock));
      const { dataBytes, unknownBytes } = await measureUse(look, clock);
      const usedBytes = dataBytes + unknownBytes;
      const { lengthBytes, sourceLengthBytes, unit, nbdExport } = look;
      // One after the other: what one reserves is not free for the next.
      record = await this.#turns.run('', async () => {
        await this.#checkRoom(request.name, { lengthBytes, dataBytes });
        const identity = { ...(unit && { unit }), ...(nbdExport && { nbdExport }) };
        const source = { location, sourceLengthBytes, usedBytes, ...identity };
        const made = await volumes.createImported({ name: request.name, lengthBytes, filesystem, source });
        this.#open.set(made.id, { volumeId: made.id, lengthBytes, usedBytes });
        return made;
      });
    } finally {
      await look.close();
    }
    await this.#turns
      .run(record.id, () => this.#tend(record.id))
      .catch((error: unknown) => {
        // It is tried again; the volume is there.
        logger.warn({ volumeId: record.id, error: toWireError(error) }, 'an import does not hydrate yet');
      });
    this.#look();
    return record;
  }

  /** The volumes that are not whole: disk that is promised to them. */
  arriving(): Importing[] {
    return [...this.#open.values()];
  }

  /** True until the volume is whole. */
  isImporting(volumeId: string): boolean {
    return this.#open.has(volumeId);
  }

  /** What the shim says that hydrates the volume for no machine; null where there is none. */
  async status(volumeId: string): Promise<ShimStatus['volume']> {
    if (!this.#open.has(volumeId)) return null;
    return (await this.#options.openings.look(importerOf(volumeId))).status?.volume ?? null;
  }

  /** Lets the volume go, for a machine that is about to open it. */
  async release(volumeId: string): Promise<void> {
    await this.without(volumeId, async () => {});
  }

  /** `work` has the volume to itself: its import lets it go before, and goes on afterwards. */
  async without<T>(volumeId: string, work: () => Promise<T>): Promise<T> {
    if (!this.#open.has(volumeId)) return work();
    return this.#turns.run(volumeId, async () => {
      await this.#options.openings.end(importerOf(volumeId));
      return work();
    });
  }

  /**
   * Ends the import, and runs `destroy`, which ends the volume. An import whose volume could not be destroyed
   * goes on.
   */
  async destroy(volumeId: string, destroy: () => Promise<void>): Promise<void> {
    await this.without(volumeId, async () => {
      await destroy();
      this.#open.delete(volumeId);
      removeValidityFile(validityPath(this.#options.validityDir, volumeId));
    });
  }

  /** Soon: looks at every volume that is not whole. */
  #look(): void {
    if (this.#closed) return;
    this.#cancelLook();
    this.#cancelLook = this.#options.clock.timer(0, () => void this.#lookNow());
  }

  async #lookNow(): Promise<void> {
    for (const volumeId of [...this.#open.keys()]) {
      if (this.#closed) return;
      await this.#turns
        .run(volumeId, () => this.#tend(volumeId))
        .catch((error: unknown) => {
          if (this.#closed) return;
          const { logger } = this.#options;
          logger.warn({ volumeId, error: toWireError(error) }, 'an import is looked after later');
        });
    }
    if (this.#closed || this.#open.size === 0) return;
    this.#cancelLook();
    this.#cancelLook = this.#options.clock.timer(LOOK_MS, () => void this.#lookNow());
  }

  /** The next thing that the volume needs: somebody who has it open, or its end as a clone. */
  async #tend(volumeId: string): Promise<void> {
    if (!this.#open.has(volumeId) || this.#closed) return;
    const { machines, openings, volumes, access } = this.#options;
    const record = await volumes.get(volumeId);
    const importer = await openings.client(importerOf(volumeId));
    const machine = record.machineId === null ? null : await machines.client(record.machineId);
    for (const client of [machine, importer]) {
      const volume = client && (await client.call('status', {})).volume;
      if (!client || volume?.spec.volumeId !== volumeId) continue;
      // Of now: what the shim was told last is some moments old.
      const status = await client.volume('status', {});
      if (status.hydration === undefined || status.hydration.state === 'complete')
        await this.#finish(record, client);
      return;
    }
    // The start of a machine opens the volume itself.
    if (record.machineId !== null && this.#isWanted(record.machineId)) return;
    const client = await openings.ensure(importerOf(volumeId));
    await client.open(await access.spec(record, 'writable'));
  }

  #isWanted(machineId: string): boolean {
    return this.#options.machines
      .records()
      .some(
        ({ id, desired, claimedBy }) => id === machineId && (desired === 'running' || claimedBy !== null),
      );
  }

  /** Every step may be repeated, after a crash in between. */
  async #finish(record: VolumeRecord, client: ShimClient): Promise<void> {
    const { volumes, validityDir, onWhole } = this.#options;
    await client.volume('finish', {});
    const whole = await volumes.apply(record.id, { kind: 'complete', generation: record.generation });
    removeValidityFile(validityPath(validityDir, record.id));
    await this.#options.openings.end(importerOf(record.id));
    this.#open.delete(record.id);
    onWhole(whole);
  }

  /** As an offer to take a machine does. */
  async #checkRoom(
    name: string,
    { lengthBytes, dataBytes }: { lengthBytes: number; dataBytes: number },
  ): Promise<void> {
    const needBytes = diskNeedBytes({ volumeUsedBytes: dataBytes });
    const load = await this.#options.load();
    const freeBytes = Math.max(0, Math.floor(unpromisedDiskBytes(load) - DISK_RESERVE_BYTES));
    const unmapped = mapsProblem(load, { volumeLengthBytes: lengthBytes, volumeUsedBytes: dataBytes });
    if (needBytes <= freeBytes && unmapped === null) return;
    throw new GodwitError(
      'WORKER_IMPORT_NO_SPACE',
      needBytes <= freeBytes
        ? `no room for ${name}: ${unmapped}`
        : `no room for ${name}: it needs ${mebibytes(needBytes)}, and ${mebibytes(freeBytes)} are neither used nor promised`,
      {
        values: { name, needBytes, freeBytes },
        nextAction: 'Make room on this worker, or import it on another one (--worker).',
      },
    );
  }

  #checkPath(path: string): void {
    const real = isAbsolute(path) ? realPath(path) : null;
    const { hidden } = this.#options;
    const inside = hidden.map(realPath).find((folder) => real === folder || real?.startsWith(folder + sep));
    if (real !== null && inside === undefined) return;
    throw new GodwitError(
      'VOLUME_BAD_SOURCE',
      `nothing can be imported from this: ${real === null ? 'the path is not absolute' : 'the folder is closed to machines'}`,
      { values: { path }, nextAction: 'Give the whole path of an image on the host of the worker.' },
    );
  }
}

/** The shim that hydrates a volume for no machine. */
function importerOf(volumeId: string): ShimOwner {
  return { kind: 'import', volumeId };
}

/** One that cannot be followed is left to whoever opens it. */
function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}
