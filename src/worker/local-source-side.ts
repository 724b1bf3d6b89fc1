import type { Clock } from '../base/clock.ts';
import { GodwitError, isGodwitError, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import { SEALED_MAP_BYTES_MAX } from '../freemap/sealed-map.ts';
import { type MountNeeds, mountNeeds } from '../host/mount-needs.ts';
import { damagedError } from '../host/mount-occupants.ts';
import { dirtyBoundOf } from '../host/write-back.ts';
import { ailmentOf } from '../machine/ailment.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import { mebibytes } from '../migration/placement.ts';
import type { MoveSubject, SourceSide } from '../migration/source-side.ts';
import type { OperationArgs, OperationResult, VolumeOperation } from '../opening/operations.ts';
import type { HeatHint } from '../opening/spec.ts';
import type { BlockRange, StatedPage, StatedRange } from '../receipt/proof.ts';
import type { ShimClient } from '../shim/client.ts';
import { fileSystemOf } from '../sys/file-system.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import { keptBytes, type NoRoom } from '../volume/disk-room.ts';
import {
  bytesAvoided,
  exportSpec,
  type FreeMapReport,
  freezeFreeMap,
  newGrant,
  readGeometry,
  readImportSource,
  readSealedFreeMap,
  type SourceSpec,
  sourceSpec,
  type VolumeRecord,
  type VolumeStore,
} from '../volume/index.ts';
import { placementOf } from './load.ts';
import type { Openings } from './openings.ts';
import type { WorkerOptions } from './options.ts';
import { PLANES } from './planes.ts';
import type { ShimOwner } from './shim-owner.ts';

export type LocalSourceSideOptions = {
  machines: MachineManager;
  openings: Openings;
  volumes: VolumeStore;
  random: Random;
  clock: Clock;
  /** Where exports listen, and where targets reach them. */
  iscsiHost: string;
  logger: Logger;
  tls: TlsFiles | null;
  plane: WorkerOptions['plane'];
};

/** A filesystem whose map takes longer moves without one. */
const FREE_MAP_TIMEOUT_MS = PATIENCE.freeMap.ms;
/** Before a filesystem that is in use counts as damaged. */
const DAMAGE_LOOKS = 2;
/** Journals and records take a little of what is opened, and a volume stops a little before its end. */
const EDGE_BYTES = 2 * 2 ** 20;

/** A move's source on this host. */
export class LocalSourceSide implements SourceSide {
  readonly #options: LocalSourceSideOptions;

  constructor(options: LocalSourceSideOptions) {
    this.#options = options;
  }

  async describe(machineId: string): Promise<MoveSubject> {
    const { machines, openings, volumes } = this.#options;
    const record = machines.get(machineId);
    this.#refuseEnding(record);
    const volumeId = record.config.volume?.volumeId;
    const volume = volumeId === undefined ? null : await volumes.get(volumeId);
    if (volume && volume.state !== 'ready') {
      const arriving = volume.state === 'clone';
      const imported = arriving && (await readImportSource(volumes.folder(volume.id))) !== null;
      const origin = imported ? 'the disk that it is imported from' : 'the worker that it came from';
      throw new GodwitError(
        'MIGRATION_NOT_MOVABLE',
        arriving
          ? `${record.name} cannot move yet: its volume still arrives from ${origin}`
          : `${record.name} cannot move: its volume is ${volume.state} at generation ${volume.generation}`,
        {
          values: { machineId, volumeId: volume.id, state: volume.state },
          nextAction: arriving
            ? `It goes by itself when its volume is whole. \`godwit why ${record.name}\` says how far that is, and whether it waits for anybody.`
            : '`godwit why` on the machine says which move holds it.',
        },
      );
    }
    if (volume && (await openings.keeper(volume, 'move'))) {
      throw new GodwitError(
        'MIGRATION_NOT_MOVABLE',
        `${record.name} cannot move: its volume is served to other systems`,
        {
          values: { machineId, volumeId: volume.id },
          nextAction: `End that first: godwit volume serve ${volume.name} --stop.`,
        },
      );
    }
    const usedBytes = volume ? await volumes.usedBytes(volume.id) : 0;
    const encryption = volume?.encryption && {
      uuid: volume.encryption.uuid,
      geometry: await readGeometry(volumes.folder(volume.id)),
    };
    const { shim } = await machines.show(machineId);
    const workload = shim?.workload ?? null;
    // What is counts, not what was wanted: one that has ended, and that its policy does not start again,
    // moves as one that has ended.
    const hasEnded = workload?.state === 'exited' || workload?.state === 'failed';
    const running = record.desired === 'running' && !hasEnded;
    const ailment = running ? ailmentOf(workload, this.#options.clock.wallMs()) : null;
    const mount =
      running && shim?.volume?.mounted && volume
        ? await this.#mountNeeds(machineId, volume.filesystem)
        : null;
    return {
      machineId: record.id,
      machineName: record.name,
      ...(mount && { mount }),
      config: record.config,
      running,
      ...(ailment && { ailing: ailment.message }),
      placement: placementOf(
        record,
        volume && {
          lengthBytes: volume.lengthBytes,
          usedBytes,
          ...(encryption && { encryption, hasHoles: volume.encryption?.holes !== 'none' }),
        },
      ),
      volume: volume && {
        volumeId: volume.id,
        name: volume.name,
        lengthBytes: volume.lengthBytes,
        usedBytes,
        filesystem: volume.filesystem,
        generation: volume.generation,
        ...(volume.encryption && { encryption: volume.encryption }),
      },
    };
  }

  /**
   * Of the filesystem that is mounted; null: it could not be read, and then the target does not prove that it
   * can mount it.
   */
  async #mountNeeds(machineId: string, filesystem: VolumeRecord['filesystem']): Promise<MountNeeds | null> {
    if (filesystem === 'none') return null;
    try {
      const client = await this.#options.machines.client(machineId);
      // A server that hangs has its own trouble: nobody else waits for it.
      const { ms } = PATIENCE.superblock;
      const reply = await client?.volume('superblock', {}, { volumeTimeoutMs: ms, timeoutMs: ms });
      return reply === undefined ? null : mountNeeds(filesystem, Buffer.from(reply.bytes, 'base64'));
    } catch (error) {
      // A volume server of an earlier version, or one of the kernel plane, does not know the question.
      this.#options.logger.debug({ machineId, error: toWireError(error) }, 'the superblock was not read');
      return null;
    }
  }

  /**
   * Its owner stops it, which may take all the time that it has for that: a move would wait behind it
   * without a word. Rejects `MIGRATION_NOT_MOVABLE`.
   */
  #refuseEnding({ id, name, config }: MachineRecord): void {
    if (this.#options.machines.endingSinceMs(id) === null) return;
    const { signal, timeoutMs } = config.stop;
    throw new GodwitError(
      'MIGRATION_NOT_MOVABLE',
      `${name} cannot move now: it is being stopped (${signal}, then it is killed after ${timeoutMs / 1000} s)`,
      {
        values: { machineId: id },
        nextAction: `It goes when it has stopped. \`godwit machine destroy ${name} --force\` ends it now, and gives the machine up; its volume stays.`,
      },
    );
  }

  async claim(machineId: string, runId: string | null): Promise<void> {
    const { machines } = this.#options;
    const record = machines.records().find(({ id }) => id === machineId);
    if (record && runId !== null) this.#refuseEnding(record);
    // The undo of a choice that did not get that far waits for nobody.
    if (record && runId === null && record.claimedBy === null) return;
    try {
      await this.#options.machines.update(machineId, { claimedBy: runId });
    } catch (error) {
      // The undo of a choice that failed because there is no such machine.
      if (runId === null && isGodwitError(error, 'MACHINE_NOT_FOUND')) return;
      throw error;
    }
  }

  async openExport(
    runId: string,
    subject: MoveSubject,
    target: { worker: string; tls: boolean },
    known: SourceSpec | null,
  ): Promise<SourceSpec> {
    const { openings, volumes, random, iscsiHost, plane } = this.#options;
    // An export that is opened again is what the target knows it as.
    const wantsTls = known ? known.tls === true : target.tls && PLANES[plane].tls;
    const tls = wantsTls ? this.#options.tls : null;
    if (!subject.volume) throw new Error('a machine without a volume has no export');
    const exporter = exporterOf(runId);
    const running = await openings.client(exporter);
    if (known && running && (await running.call('status', {})).volume !== null) return known;
    // A shim of an attempt whose grant nobody wrote down.
    if (!known && running) await openings.end(exporter);

    const record = await volumes.get(subject.volume.volumeId);
    const grant = known
      ? {
          initiatorIqn: known.initiatorIqn,
          chapUser: known.chapUser,
          chapSecret: known.chapSecret,
          generation: subject.volume.generation,
        }
      : newGrant(record, target.worker, random);
    const spec = exportSpec(
      { ...record, generation: subject.volume.generation },
      {
        volumeDir: volumes.folder(record.id),
        access: record.state === 'ready' ? 'standby' : 'readonly',
        listenHost: iscsiHost,
        ...(known ? { listenPort: known.port } : {}),
        grants: [grant],
        tls,
      },
    );
    const client = await openings.ensure(exporter);
    const { exportPort } = await client.open(PLANES[plane].choose(spec));
    if (exportPort === null) throw new Error('an export has a port');
    return sourceSpec({ ...record, generation: subject.volume.generation }, grant, {
      host: iscsiHost,
      port: exportPort,
      ...(tls ? { tls: true } : {}),
    });
  }

  async releaseExport(runId: string): Promise<void> {
    const client = await this.#options.openings.client(exporterOf(runId));
    if (client === null) throw exportGone(runId);
    const { volume } = await client.call('status', {});
    if (volume?.spec.access === 'readonly') return;
    await client.volume('activate', { access: 'readonly' });
  }

  async closeExport(runId: string): Promise<void> {
    await this.#options.openings.end(exporterOf(runId));
  }

  async syncEarly(machineId: string): Promise<void> {
    const { machines, volumes } = this.#options;
    const client = await machines.client(machineId);
    if (client === null) return;
    const { volume } = await client.call('status', {});
    if (volume === null) return;
    if (!volume.mounted) {
      // A guest that comes through NBD has a page cache of its own, and here is what it has written out.
      await client.volume('flush', {});
      return;
    }
    // What its page cache holds needs room on a disk that may have none but for those who leave. First: a
    // filesystem whose journal waits for room looks like a frozen one.
    await machines.openReserve(machineId, 'running');
    try {
      // Whoever holds it now holds it after the stop, when the machine waits for that.
      const obstacle = await this.#unlessFull(
        machineId,
        client,
        machines.obstacle(machineId, { frozen: true }),
      );
      if (obstacle !== null) throw obstacle;
      // The second pass has only what was written during the first.
      for (let pass = 0; pass < 2; pass++)
        await this.#unlessFull(machineId, client, client.call('fs.sync', {}));
    } catch (error) {
      const waits = isGodwitError(error, 'VOLUME_DISK_FULL');
      const device = volume.loopDevice;
      const boundBytes = waits && device !== null ? dirtyBoundOf(device) : null;
      if (boundBytes === null || (await this.#leftForWhoStopped()) < boundBytes) {
        await machines.openReserve(machineId, 'no');
        throw error;
      }
      // It writes on as fast as there is room. What it may have in its page cache is bounded, and that fits
      // when it has stopped.
      const obstacle = await machines.obstacle(machineId, { frozen: false });
      if (obstacle !== null) throw obstacle;
    }
    const volumeId = machines.get(machineId).config.volume?.volumeId;
    const filesystem = volumeId === undefined ? 'none' : (await volumes.get(volumeId)).filesystem;
    if (filesystem === 'none') return;
    await this.#primeFreeMap(machineId, client, filesystem);
  }

  /**
   * What the disk has for the last writes of a machine that has stopped. Less than what is kept for that
   * where others filled the disk meanwhile, or moves that were undone had it: then a machine that is stopped
   * would never end.
   */
  async #leftForWhoStopped(): Promise<number> {
    const { totalBytes, availableBytes } = await fileSystemOf(this.#options.volumes.directory);
    return availableBytes - keptBytes(totalBytes, 'stopped') + EDGE_BYTES;
  }

  /** Rejects `MACHINE_FS_DAMAGED` for what no kernel would mount again. */
  async #primeFreeMap(machineId: string, client: ShimClient, filesystem: 'ext4' | 'xfs'): Promise<void> {
    let damage: string | undefined;
    for (let look = 0; look < DAMAGE_LOOKS; look++) {
      try {
        // What was on its way to the disk in the last look is there in the next.
        if (look > 0) await client.call('fs.sync', {});
        ({ damage } = await client.volume('prime-free-map', { filesystem }));
      } catch (error) {
        // A help for the seal, and no more: the volume server may be of an earlier version, or the disk in
        // trouble.
        this.#options.logger.warn({ machineId, error: toWireError(error) }, 'could not prepare the free map');
        return;
      }
      if (damage === undefined) return;
    }
    if (damage !== undefined) throw damagedError(damage);
  }

  async heat(machineId: string): Promise<HeatHint> {
    const client = await this.#options.machines.client(machineId);
    if (client === null) return { regions: [] };
    return await client.volume('heat', {});
  }

  /**
   * What `work` resolves with. Rejects `VOLUME_DISK_FULL` when it waits for more than what is kept back:
   * found before the stop, that costs the machine nothing more than it waits for already.
   */
  async #unlessFull<Value>(machineId: string, client: ShimClient, work: Promise<Value>): Promise<Value> {
    const { clock } = this.#options;
    const done = work.then((value) => ({ value }));
    for (;;) {
      const looked = clock.sleep(PAUSE.fullLook.ms).then(() => null);
      const result = await Promise.race([done, looked]);
      if (result !== null) return result.value;
      const noRoom = (await client.call('status', {})).volume?.status?.noRoom;
      if (!noRoom || noRoom.waiting === 0) continue;
      done.catch(() => {});
      throw new GodwitError(
        'VOLUME_DISK_FULL',
        'the disk of this worker is full, and what the machine has in its page cache does not fit into what is kept back for that',
        {
          values: { machineId, freeBytes: noRoom.freeBytes, reserveBytes: noRoom.reserveBytes },
          retry: 'never',
          nextAction: `Free some space on this worker's data disk (\`godwit volume list --all\` shows retained copies that can be given up); the machine waits until then, and loses nothing.`,
        },
      );
    }
  }

  async stop(machineId: string, kill: AbortSignal): Promise<void> {
    const { machines, logger } = this.#options;
    const killed = () => {
      machines
        .kill(machineId)
        .catch((error: unknown) => logger.warn({ machineId, error: toWireError(error) }, 'not killed'));
    };
    if (kill.aborted) killed();
    kill.addEventListener('abort', killed, { once: true });
    try {
      await machines.stopWorkload(machineId);
    } finally {
      kill.removeEventListener('abort', killed);
    }
  }

  async stuck(machineId: string): Promise<GodwitError | null> {
    const { machines } = this.#options;
    const stuck = await machines.stuck(machineId);
    if (stuck === null) return null;
    const status = await machines
      .client(machineId)
      .then((client) => client?.call('status', {}))
      .catch(() => null);
    const noRoom = status?.volume?.status?.noRoom;
    return noRoom && noRoom.waiting > 0 ? noRoomToEnd(machineId, stuck, noRoom) : stuck;
  }

  async seal(machineId: string, volumeId: string, generation: number): Promise<FreeMapReport> {
    const { machines, volumes } = this.#options;
    const client = await machines.client(machineId);
    if (client) {
      const { volume } = await client.call('status', {});
      if (volume) {
        // Again: a shim of an earlier version does not tell it to the server that follows one that died.
        void machines.openReserve(machineId, 'stopped');
        await unmountOrName(machines, machineId, client);
        // The record first: when the server lets its lock go, nobody may pass the fence any more.
        await volumes.apply(volumeId, { kind: 'seal', generation });
        await client.volume('seal', {});
        const { filesystem } = await volumes.get(volumeId);
        if (filesystem === 'none') return { unusedBytes: 0, reason: null };
        const report = await readFreeMap(client, filesystem);
        try {
          // One that was given up may come later.
          await freezeFreeMap(volumes.folder(volumeId), generation);
          return report;
        } catch (error) {
          this.#options.logger.warn({ volumeId, error: toWireError(error) }, 'cannot freeze the free map');
          return report;
        }
      }
    }
    // A server of other systems that came up since the move began: the record must not be sealed under its
    // writes.
    await this.#options.openings.refuseKept(await volumes.get(volumeId), 'move');
    // What a server wrote that died is in the page cache, or the disk refused it: then nothing is sealed.
    await volumes.makeDataDurable(volumeId);
    await volumes.apply(volumeId, { kind: 'seal', generation });
    // Nothing has it open, so there is nobody to read the map. Its holes stay behind.
    return { unusedBytes: 0, reason: null };
  }

  async freeMap(volumeId: string): Promise<string | null> {
    const { volumes } = this.#options;
    const { generation } = await volumes.get(volumeId);
    const bytes = await readSealedFreeMap(volumes.folder(volumeId), generation);
    return bytes && bytes.length <= SEALED_MAP_BYTES_MAX ? bytes.toString('base64') : null;
  }

  async bytesAvoided(volumeId: string, generation: number): Promise<number> {
    const { volumes } = this.#options;
    const { lengthBytes } = await volumes.get(volumeId);
    try {
      return await bytesAvoided(volumes.folder(volumeId), { volumeId, generation, lengthBytes });
    } catch (error) {
      // Only a number of the report.
      this.#options.logger.warn({ volumeId, error: toWireError(error) }, 'cannot tell the bytes avoided');
      return 0;
    }
  }

  async digests(runId: string, ranges: readonly BlockRange[]): Promise<string[]> {
    // The target's ranges have more to them than the server takes.
    const args = { ranges: ranges.map(({ first, blocks }) => ({ first, blocks })) };
    const { digests } = await this.#askExport(runId, 'digests', args);
    return digests;
  }

  owed(
    runId: string,
    range: BlockRange,
    cursor: number,
  ): Promise<{ ranges: StatedRange[]; next: number | null }> {
    return this.#askExport(runId, 'owed', { ...range, cursor });
  }

  stated(runId: string, cursor: number): Promise<StatedPage> {
    return this.#askExport(runId, 'stated', { cursor });
  }

  async #askExport<Op extends VolumeOperation>(
    runId: string,
    op: Op,
    args: OperationArgs<Op>,
  ): Promise<OperationResult<Op>> {
    const client = await this.#options.openings.client(exporterOf(runId));
    if (client === null) throw exportGone(runId);
    return client.volume(op, args);
  }

  async unseal(machineId: string, volumeId: string, generation: number): Promise<void> {
    const { machines, volumes } = this.#options;
    const record = await volumes.get(volumeId);
    // What the seal could not unmount is not unmounted for going back: the machine starts on it as it is.
    if (record.state !== 'sealed') return;
    // The open volume is of the sealed generation: it is opened anew at the next start.
    await machines.shutdownShim(machineId);
    await volumes.apply(volumeId, { kind: 'unseal', generation });
  }

  async start({ machineId, machineName, config, volume }: MoveSubject): Promise<void> {
    const { machines, volumes, clock } = this.#options;
    if (machines.records().some(({ id }) => id === machineId)) {
      await machines.update(machineId, { claimedBy: null });
    } else {
      // An operator has it back after the target had taken it over.
      await machines.adopt({
        formatVersion: 1,
        id: machineId,
        name: machineName,
        config,
        desired: 'running',
        createdAtMs: clock.wallMs(),
        claimedBy: null,
      });
      if (volume) await volumes.assignMachine(volume.volumeId, machineId);
    }
    await machines.start(machineId);
  }

  async detach(machineId: string): Promise<void> {
    const { machines } = this.#options;
    await machines.shutdownShim(machineId);
    await machines.forget(machineId);
  }

  async retain(_machineId: string, volumeId: string | null, destroyAfterMs: number): Promise<void> {
    if (volumeId === null) return;
    const { volumes } = this.#options;
    const record = await volumes.get(volumeId);
    await volumes.apply(volumeId, { kind: 'retain', generation: record.generation, destroyAfterMs });
    await volumes.assignMachine(volumeId, null);
  }
}

/** Rejects with who holds it, where somebody does. */
async function unmountOrName(machines: MachineManager, machineId: string, client: ShimClient): Promise<void> {
  try {
    await client.call('fs.unmount', {});
  } catch (error) {
    throw (await machines.obstacle(machineId, { frozen: false }).catch(() => null)) ?? error;
  }
}

/** A move does not fail for want of a map, nor wait long for one: its machine is stopped. */
async function readFreeMap(client: ShimClient, filesystem: 'ext4' | 'xfs'): Promise<FreeMapReport> {
  try {
    return await client.volume('free-map', { filesystem }, { volumeTimeoutMs: FREE_MAP_TIMEOUT_MS });
  } catch (error) {
    return { unusedBytes: 0, reason: toWireError(error) };
  }
}

function exportGone(runId: string): GodwitError {
  return new GodwitError('WORKER_EXPORT_GONE', `the export of move ${runId} has ended`, {
    values: { runId },
    retry: 'later',
    nextAction: 'Nothing to do: it is opened again.',
  });
}

export function exporterOf(runId: string): ShimOwner {
  return { kind: 'export', runId };
}

/** `stuck`: what is left of a machine that was killed, and waits to write. */
function noRoomToEnd(
  machineId: string,
  stuck: GodwitError,
  { freeBytes, reserveBytes }: NoRoom,
): GodwitError {
  return new GodwitError(
    'VOLUME_DISK_FULL',
    `its last writes wait for room on the data disk of this worker (${mebibytes(freeBytes)} free, ${mebibytes(reserveBytes)} are kept back); ${stuck.message}`,
    {
      values: { machineId, freeBytes, reserveBytes },
      nextAction:
        'Free some space there (`godwit volume list --all` shows retained copies that can be given up): it ends then, and loses nothing.',
    },
  );
}
