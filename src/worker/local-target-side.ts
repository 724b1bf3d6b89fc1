import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import type { Offer, Peer, PrepareRequest, TargetStatus } from '../contract/peer.ts';
import { type Ailment, ailmentOf } from '../machine/ailment.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import { evaluateOffer, type HostLoad, refused } from '../migration/placement.ts';
import type { TargetSide } from '../migration/target-side.ts';
import { askingVolume, type VolumeQuestion } from '../migration/volume-questions.ts';
import type { OperationArgs, OperationResult } from '../opening/operations.ts';
import type { HeatHint } from '../opening/spec.ts';
import type { ShimClient } from '../shim/client.ts';
import type { ShimOps, ShimStatus } from '../shim/protocol.ts';
import {
  freeMapDigest,
  type KeySource,
  noKeysError,
  removeValidityFile,
  type VolumeRecord,
  type VolumeStore,
  validityPath,
  writeFreeMap,
} from '../volume/index.ts';
import type { HostCheck } from './host-check.ts';
import type { VolumeAccess } from './volume-access.ts';

export type LocalTargetSideOptions = {
  check: HostCheck;
  machines: MachineManager;
  volumes: VolumeStore;
  access: VolumeAccess;
  validityDir: string;
  /** With what was promised before `forRun` asked; left out: with all. */
  load: (forRun?: string) => Promise<HostLoad>;
  peers: () => readonly Peer[];
  /** LUKS2 header of a volume of another worker. */
  headerOf: (sourceWorker: string, volumeId: string) => Promise<Buffer>;
  keys: KeySource | null;
  hydrationRateBytesPerSecondMax: number;
  clock: Clock;
};

/** A move's target on this host. */
export class LocalTargetSide extends askingVolume<PrepareRequest>() implements TargetSide {
  readonly #options: LocalTargetSideOptions;

  constructor(options: LocalTargetSideOptions) {
    super();
    this.#options = options;
  }

  async offer(request: PrepareRequest): Promise<Offer> {
    const load = await this.#options.load(request.runId);
    const offer = evaluateOffer(load, {
      sourceWorker: request.sourceWorker,
      machine: request.placement,
      planned: [],
    });
    if (!offer.accepted) return offer;
    const { machineId: id, machineName: name, config } = request;
    const reason = await this.#options.check({ id, name }, { config });
    return reason === null ? offer : refused(offer, reason);
  }

  async createVolume(request: PrepareRequest): Promise<void> {
    const volume = volumeOf(request);
    const { encryption } = volume;
    const { keys } = this.#options;
    if (encryption && !keys) throw noKeysError(volume);
    await this.#options.volumes.createIncoming({
      id: volume.volumeId,
      name: volume.name,
      lengthBytes: volume.lengthBytes,
      filesystem: volume.filesystem,
      generation: volume.sealedGeneration + 1,
      machineId: request.machineId,
      ...(encryption && {
        luks2: {
          uuid: encryption.uuid,
          ...(encryption.keyGeneration !== undefined && { keyGeneration: encryption.keyGeneration }),
          ...(encryption.keyVolumeId !== undefined && { keyVolumeId: encryption.keyVolumeId }),
          ...(encryption.holes && { holes: encryption.holes }),
          ...(encryption.rekey && keys && { rekey: keys }),
          header: await this.#options.headerOf(request.sourceWorker, volume.volumeId),
        },
      }),
    });
  }

  async standDown(request: PrepareRequest): Promise<void> {
    const { machines } = this.#options;
    await machines.update(request.machineId, { claimedBy: request.runId });
    await machines.stopWorkload(request.machineId);
  }

  async destroyVolume(request: PrepareRequest, { opened }: { opened: boolean }): Promise<void> {
    const volume = volumeOf(request);
    const { volumes, validityDir } = this.#options;
    const { volumes: all } = await volumes.list();
    const ours = all.find(
      (record) =>
        record.id === volume.volumeId &&
        (opened || record.state === 'incoming') &&
        record.generation === volume.sealedGeneration + 1,
    );
    if (!ours) return;
    await volumes.destroy(ours.id, { force: true });
    removeValidityFile(validityPath(validityDir, ours.id));
  }

  async volumeState(volumeId: string, generation: number): Promise<'waits' | 'opened' | 'absent'> {
    let record: VolumeRecord;
    try {
      record = await this.#options.volumes.get(volumeId);
    } catch (error) {
      if (isGodwitError(error, 'VOLUME_NOT_FOUND')) return 'absent';
      throw error;
    }
    if (record.generation < generation) return 'absent';
    return record.generation === generation && record.state === 'incoming' ? 'waits' : 'opened';
  }

  async attachStandby(request: PrepareRequest): Promise<void> {
    const { machines, clock } = this.#options;
    const record: MachineRecord = {
      formatVersion: 1,
      id: request.machineId,
      name: request.machineName,
      config: request.config,
      desired: request.startMachine ? 'running' : 'stopped',
      createdAtMs: clock.wallMs(),
      claimedBy: request.runId,
    };
    await machines.adopt(record);
    const client = await this.#attached(request, 'standby');
    // The jail stands by too; and one that cannot be made here is better known before the machine stops
    // there.
    if (request.startMachine) await client.call('workload.prepare', workloadOf(request));
  }

  async warm(request: PrepareRequest, heat: HeatHint): Promise<void> {
    if (!request.volume) return;
    const client = await this.#attached(request, 'standby');
    await client.volume('warm', heat);
  }

  async detach(request: PrepareRequest): Promise<void> {
    const { machines } = this.#options;
    await machines.shutdownShim(request.machineId);
    await machines.forget(request.machineId);
  }

  async keepFreeMap(request: PrepareRequest, freeMap: string): Promise<void> {
    const { volumeId } = volumeOf(request);
    await writeFreeMap(this.#options.volumes.folder(volumeId), Buffer.from(freeMap, 'base64'));
  }

  async activate(request: PrepareRequest): Promise<void> {
    if (!request.volume) return;
    const { volumes } = this.#options;
    await volumes.apply(request.volume.volumeId, {
      kind: 'activate',
      generation: request.volume.sealedGeneration + 1,
    });
    const client = await this.#attached(request, 'standby');
    await client.volume('activate', { access: 'writable' });
  }

  async boot(request: PrepareRequest, onMounted: () => void): Promise<void> {
    const client = await this.#attached(request, 'writable');
    const filesystem = request.volume?.filesystem ?? 'none';
    const isMounted = request.config.volume?.mountPath !== undefined && filesystem !== 'none';
    // Of one that its owner has stopped, nothing stands in the way of the blocks that follow.
    if (isMounted && this.#isWanted(request)) await this.#options.machines.mount(client, filesystem);
    onMounted();
    if (request.startMachine) await this.#options.machines.startWorkload(request.machineId, client);
  }

  async awaitHealthy(request: PrepareRequest, timeoutMs: number): Promise<void> {
    // Its owner may stop it at any time.
    if (!this.#isWanted(request)) return;
    await this.#bootAgain(request);
    try {
      await this.#options.machines.awaitHealthy(request.machineId, timeoutMs);
    } catch (error) {
      if (!isGodwitError(error, 'MACHINE_NOT_HEALTHY')) throw error;
      // It has ended, and its policy starts it no more: there is nothing to wait for.
      const { state } = error.values;
      if (state !== 'exited' && state !== 'failed' && this.#isWanted(request)) throw error;
    }
  }

  async ailment(request: PrepareRequest): Promise<Ailment | null> {
    const { machines, clock } = this.#options;
    if (!this.#isWanted(request)) return null;
    const { shim } = await machines.show(request.machineId);
    return ailmentOf(shim?.workload ?? null, clock.wallMs());
  }

  async hydrate(request: PrepareRequest): Promise<void> {
    if (!request.volume) return;
    const client = await this.#attached(request, 'writable');
    const args = { paused: false, rateBytesPerSecondMax: this.#options.hydrationRateBytesPerSecondMax };
    await client.volume('hydration', args);
  }

  async settle(request: PrepareRequest): Promise<void> {
    if (this.#isWanted(request)) await this.#bootAgain(request);
    await this.#options.machines.update(request.machineId, { claimedBy: null });
  }

  async hydration(request: PrepareRequest): Promise<TargetStatus['hydration']> {
    if (!request.volume) return null;
    const client = await this.#attached(request, 'writable');
    const status = await client.volume('status', {});
    const { hydration } = status;
    if (!hydration) return null;
    return {
      state: hydration.state,
      totalBytes: hydration.blocksTotal * BLOCK_BYTES,
      presentBytes: hydration.blocksPresent * BLOCK_BYTES,
      exposedBytes: hydration.exposedBytes,
      wireBytes: hydration.wireBytes,
      blocksFetchedTwice: hydration.blocksFetchedTwice,
      bytesPerSecond: hydration.bytesPerSecond,
      etaMs: hydration.etaMs,
    };
  }

  async freeMapDigest(request: PrepareRequest): Promise<string | null> {
    return freeMapDigest(this.#options.volumes.folder(volumeOf(request).volumeId));
  }

  override async askVolume<Op extends VolumeQuestion>(
    request: PrepareRequest,
    op: Op,
    args: OperationArgs<Op>,
  ): Promise<OperationResult<Op>> {
    const client = await this.#attached(request, 'writable');
    return client.volume(op, args);
  }

  async finish(request: PrepareRequest): Promise<void> {
    const volume = volumeOf(request);
    const { volumes, validityDir, machines } = this.#options;
    const client = await this.#attached(request, 'writable');
    await client.volume('finish', {});
    await volumes.apply(volume.volumeId, { kind: 'complete', generation: volume.sealedGeneration + 1 });
    removeValidityFile(validityPath(validityDir, volume.volumeId));
    // A machine that is stopped holds nothing open.
    if (!request.startMachine && machines.get(request.machineId).desired === 'stopped') {
      await machines.shutdownShim(request.machineId);
    }
  }

  async sourceRun(request: PrepareRequest, signal: AbortSignal): Promise<{ state: string } | null> {
    const peer = this.#options.peers().find(({ name }) => name === request.sourceWorker);
    if (!peer) throw new Error(`worker ${request.sourceWorker} is not among the peers of this worker`);
    return peer.run(request.runId, { signal });
  }

  #isWanted({ startMachine, machineId }: PrepareRequest): boolean {
    return startMachine && this.#options.machines.get(machineId).desired === 'running';
  }

  /**
   * A host that went down since the boot took the machine along, and nobody else starts it while the move has
   * it.
   */
  async #bootAgain(request: PrepareRequest): Promise<void> {
    const { status } = await this.#open(request, 'writable');
    if (status.workload === null) await this.boot(request, () => {});
  }

  /** The machine's shim with its volume open; opened again when the host or the shim went down in between. */
  async #attached(request: PrepareRequest, access: 'standby' | 'writable'): Promise<ShimClient> {
    // A machine without a volume has nothing to ask for.
    if (!request.volume) return this.#options.machines.ensureShim(request.machineId);
    return (await this.#open(request, access)).client;
  }

  /** `status` is the shim's from before its volume was opened, where it was not. */
  async #open(
    request: PrepareRequest,
    access: 'standby' | 'writable',
  ): Promise<{ client: ShimClient; status: ShimStatus }> {
    const { machines, volumes } = this.#options;
    const client = await machines.ensureShim(request.machineId);
    const status = await client.call('status', {});
    if (request.volume && status.volume === null) {
      const record = await volumes.get(request.volume.volumeId);
      const spec = await this.#options.access.spec(record, access);
      await client.open(machines.withSocket(spec, request.machineId, request.config));
    }
    return { client, status };
  }
}

function workloadOf(request: PrepareRequest): ShimOps['workload.start']['args'] {
  return { machineId: request.machineId, name: request.machineName, config: request.config };
}

function volumeOf(request: PrepareRequest): NonNullable<PrepareRequest['volume']> {
  if (!request.volume) throw new Error('this machine has no volume');
  return request.volume;
}
