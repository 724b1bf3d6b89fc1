import { closeSync, constants, openSync } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import type { FreeMapFilesystem } from '../freemap/free-map-reader.ts';
import { type BlockStatistics, kernelNameOf } from '../host/block-statistics.ts';
import { MAPPER_FOLDER } from '../host/device-mapper.ts';
import type { IscsiSession } from '../host/iscsiadm.ts';
import { attachLoop } from '../host/losetup.ts';
import { type MapperTable, SECTOR_BYTES } from '../host/mapper-table.ts';
import { NO_GUEST } from '../opening/guest.ts';
import type { OpenVolume } from '../opening/open-volume.ts';
import type { AnswersOf } from '../opening/perform.ts';
import type { Access, AttachSpec, HydrationSettings, SourceSpec } from '../opening/spec.ts';
import type {
  FreeMapReport,
  GuestStatistics,
  HydrationStatus,
  VolumeServerStatus,
} from '../opening/status.ts';
import type { CompareReply, CompareRequest, GuestWrites, ProofFigures } from '../receipt/proof.ts';
import { RootHash } from '../receipt/root.ts';
import { discardRange } from '../sys/discard-range.ts';
import type { DataLock } from '../volume/data-lock.ts';
import type { UnlockedVolume } from '../volume/encryption.ts';
import { passFence } from '../volume/fence.ts';
import { VOLUME_FILES } from '../volume/files.ts';
import { readFreeRuns, removeFreeMap, writeFreeMap } from '../volume/free-map-file.ts';
import { readRecord } from '../volume/record-file.ts';
import { exportSerial } from '../volume/specs.ts';
import {
  addCounts,
  beginCounting,
  type CloneBinding,
  createCloneMetadata,
  endCounting,
  readCloneBinding,
  removeCloneMetadata,
  requireCloneBinding,
  writeCloneBinding,
} from './clone-binding.ts';
import { CloneCopy } from './clone-copy.ts';
import type { openDiskProof } from './disk-proof.ts';
import type { KernelHost } from './host.ts';
import { HYDRATION_LIMITS, type HydrationLimits } from './hydration-control.ts';
import { detachLoops } from './loops.ts';
import { KERNEL_FILES, mapperNames } from './names.ts';
import { startStatistics, statisticsOf } from './nodes.ts';

export type KernelVolumeOptions = {
  host: KernelHost;
  clock: Clock;
  logger: Logger;
  limits?: HydrationLimits;
};

/** Contiguous regions that one copy takes: 256 KiB. */
const BATCH_REGIONS = 64;
/** The guest's requests are counted when none is in flight. */
const COUNT_DEADLINE_MS = PATIENCE.countGuest.ms;
/** Runs of a free map that are discarded while the machine is down; the rest is for fstrim, when it is up. */
const DISCARDS_MAX = 1024;

/** What the kernel does not tell of a guest. */
const UNCOUNTED = {
  misses: null,
  readLatencyP50Ms: null,
  readLatencyP99Ms: null,
  missLatencyP50Ms: null,
  missLatencyP99Ms: null,
};

/**
 * Role `attach` in the kernel plane:
 *
 *     ready   data.raw ── loop ──────────────────────────────────────────── [crypt] ── filesystem
 *     clone   data.raw ── loop ┐
 *             clone.dm ── loop ├─ clone ── gate (linear) ── [crypt] ── filesystem
 *             source ─── iSCSI ┘
 *
 * The gate is what changes under the mounted filesystem when all blocks are here: from the clone to the loop
 * device. It is also where the guest is held for a moment when dm-clone would starve (hydration-control.ts).
 * This process only makes, watches and takes down; no byte passes through it.
 */
export class KernelVolume implements OpenVolume<'attach', 'kernel'> {
  readonly answers: AnswersOf<'attach', 'kernel'> = {
    status: () => this.status(),
    activate: (access) => this.activate(access),
    flush: () => this.flush(),
    seal: () => this.seal(),
    // Its first pass would read the device through the page cache while the guest writes; the one after the
    // seal reads it all.
    'prime-free-map': () => ({}),
    'free-map': (filesystem) => this.sealFreeMap(filesystem),
    hydration: (settings) => this.configureHydration(settings),
    finish: () => this.finish(),
    'give-up-source': () => this.#giveUpSource(),
    // The kernel does not tell which regions were read.
    heat: () => ({ regions: [] }),
    // dm-clone does not keep what is read, so there is no bringing something first.
    warm: () => {},
    // The kernel tells neither what it fetched nor what the guest wrote: the disk itself is held against the
    // source (`compare`).
    fetched: (cursor) => ({ ranges: [], next: cursor, ended: true, untold: true }),
    unfetched: () => ({ ranges: [], next: null }),
    compare: (request) => this.#compare(request),
    figures: (freeMapDigest) => this.#figures(freeMapDigest),
  };
  readonly #spec: AttachSpec;
  readonly #options: KernelVolumeOptions;
  #lock: DataLock | null = null;
  #access: Access = 'standby';
  #dataLoop: string | null = null;
  #session: IscsiSession | null = null;
  #clone: CloneCopy | null = null;
  #top: string | null = null;
  #unlocked: UnlockedVolume | null = null;
  #isClone = false;
  /** What its filesystem did not use at the seal was told to dm-clone, all of it. */
  #trimmed = false;
  #settings: HydrationSettings;
  /** Of a clone that has become whole here. */
  #final: { hydration: HydrationStatus; guest: BlockStatistics | null } | null = null;
  #proof: Awaited<ReturnType<typeof openDiskProof>> | null = null;
  #proving: Promise<unknown> = Promise.resolve();
  /** One change of the stack at a time; a tick too. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(spec: AttachSpec, options: KernelVolumeOptions) {
    this.#spec = spec;
    this.#options = options;
    this.#settings = (spec.kind === 'own' ? null : spec.clone.hydration) ?? {
      paused: true,
      rateBytesPerSecondMax: 0,
    };
  }

  /**
   * `standby`: everything that needs no sealed source (key, files, session). `writable`: the whole stack.
   * Rejects with the errors of the fence, `PLANE_*`, `HOST_*`, those of the key. Nothing is left then.
   */
  static async open(spec: AttachSpec, options: KernelVolumeOptions): Promise<KernelVolume> {
    // What a shim before this one has left. Mounted, it is not ours to take: HOST_MAPPER_BUSY.
    await removeStack({ ...spec, source: sourceOf(spec) }, options);
    const volume = new KernelVolume(spec, options);
    try {
      await volume.#prepare();
      if (spec.access === 'writable') await volume.activate('writable');
      return volume;
    } catch (error) {
      await volume.close().catch((failure: unknown) => {
        options.logger.warn(
          { error: toWireError(failure) },
          'a stack that could not be made could not be removed',
        );
      });
      throw error;
    }
  }

  /** What a filesystem is mounted from; null in standby and after the seal. */
  get device(): string | null {
    return this.#top;
  }

  get access(): Access {
    return this.#access;
  }

  status(): VolumeServerStatus {
    const hydration = this.#clone?.hydration() ?? this.#final?.hydration;
    return {
      role: 'attach',
      volumeId: this.#spec.volumeId,
      generation: this.#spec.generation,
      access: this.#access,
      residentBytes: 0,
      ...(hydration ? { hydration } : {}),
      guest: this.#guestStatistics(),
    };
  }

  /** Makes the stack, once the record says that the volume is this worker's to write. Idempotent. */
  activate(access: Access): Promise<void> {
    return this.#exclusively(async () => {
      if (access === this.#access) return;
      if (access !== 'writable' || this.#access !== 'standby') {
        throw new GodwitError(
          'VOLUME_BAD_ACCESS',
          `a volume that is ${this.#access} does not go to ${access}`,
          {
            values: { access: this.#access, requested: access },
            nextAction: 'Access only opens; seal the volume to end its writes.',
          },
        );
      }
      this.#lock ??= await passFence(this.#spec, 'write', this.#options.clock);
      let below = this.#dataLoop!;
      try {
        if (this.#isClone) below = await this.#makeClone();
        this.#top = this.#unlocked ? await this.#makeCrypt(below, this.#unlocked) : below;
        if (this.#isClone) await startStatistics(this.#top);
      } catch (error) {
        // The next attempt finds nothing half made; data file, session and lock stay.
        this.#clone = null;
        await removeMapper(this.#spec, this.#options);
        throw error;
      }
      this.#access = 'writable';
      this.#clone?.start({
        top: this.#top,
        // dm-crypt passes no discards on.
        trim: !this.#trimmed && this.#unlocked === null,
        exclusively: (tick) => this.#exclusively(tick),
      });
    });
  }

  /**
   * The filesystem is unmounted: takes the whole stack down, so that nobody can write, and makes the data
   * durable. Idempotent.
   */
  seal(): Promise<void> {
    return this.#exclusively(async () => {
      if (this.#access === 'writable') {
        this.#clone?.stop();
        await this.#removeStack();
        this.#top = null;
        this.#dataLoop = null;
        this.#clone = null;
        this.#access = 'readonly';
      }
      await this.flush();
      this.#lock?.release();
      this.#lock = null;
    });
  }

  async flush(): Promise<void> {
    const file = await open(join(this.#spec.volumeDir, VOLUME_FILES.data), 'r');
    try {
      await file.datasync();
    } finally {
      await file.close();
    }
  }

  /**
   * Writes `free.map` of the generation that was sealed here, with the holes of the file: a target whose
   * kernel does the copying cannot ask for them. Rejects `VOLUME_BAD_ACCESS` before the seal.
   */
  async sealFreeMap(filesystem: FreeMapFilesystem): Promise<FreeMapReport> {
    if (this.#access !== 'readonly') {
      throw new GodwitError(
        'VOLUME_BAD_ACCESS',
        'the free map is read when no write can change it any more',
        {
          values: { access: this.#access, requested: 'readonly' },
          nextAction: 'Seal the volume first.',
        },
      );
    }
    const { volumeDir, volumeId, generation, lengthBytes } = this.#spec;
    const { FreeMapReader } = await import('../freemap/free-map-reader.ts');
    const data = await FileDevice.open({
      file: join(volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: SECTOR_BYTES,
      writable: false,
    });
    try {
      const plain = this.#unlocked
        ? (await import('../volume/encryption.ts')).plaintextOf(
            data,
            this.#unlocked,
            this.#spec.encryption?.holes,
          )
        : data;
      const result = await new FreeMapReader(plain, filesystem).finish();
      if (result.kind === 'none') {
        await removeFreeMap(volumeDir);
        return { unusedBytes: 0, reason: result.reason.toWire() };
      }
      const { encodeSealedMap } = await import('../freemap/sealed-map.ts');
      const bytes = encodeSealedMap({ volumeId, generation, lengthBytes }, () => result.map.runs());
      await writeFreeMap(volumeDir, bytes);
      let unusedBlocks = 0;
      for (const { first, end } of result.map.runs()) unusedBlocks += end - first;
      return { unusedBytes: unusedBlocks * BLOCK_BYTES, reason: null };
    } finally {
      await data.close();
    }
  }

  /** In force at the next tick: the trim that comes before the copy may take long. */
  configureHydration(settings: HydrationSettings): void {
    this.#settings = settings;
    this.#clone?.configure(settings);
  }

  /**
   * All blocks are here: the gate goes from the clone to the local file, the source is let go. Rejects
   * `CLONE_NOT_COMPLETE`. Idempotent.
   */
  async finish(): Promise<void> {
    await this.#closeProof();
    await this.#exclusively(async () => {
      if (this.#clone !== null) await this.#collapse(this.#clone);
      if (this.#session === null) return;
      await this.#options.host.iscsi.logout(sourceOf(this.#spec)!);
      this.#session = null;
      await detachLoops(join(this.#spec.volumeDir, KERNEL_FILES.cloneMetadata), {
        readonly: false,
        clock: this.#options.clock,
      });
      await removeFreeMap(this.#spec.volumeDir);
    });
  }

  /**
   * Ends the wait for a source that will not come back: without its session, reads of what is only there are
   * I/O errors. Idempotent. Not in the queue of the others, which may be waiting for the source themselves.
   */
  async #giveUpSource(): Promise<void> {
    const source = sourceOf(this.#spec);
    if (source && this.#session !== null) await this.#options.host.iscsi.logout(source);
  }

  /** Rejects `CLONE_NOT_COMPLETE`, and as DiskProof. */
  #compare(request: CompareRequest): Promise<CompareReply> {
    return this.#prove(async () => {
      this.#clone?.requireWhole();
      if (this.#proof === null) {
        // Code that only the end of a move needs.
        const { openDiskProof } = await import('./disk-proof.ts');
        const { volumeDir, lengthBytes } = this.#spec;
        const guestWrites = () => this.#exclusively(() => this.#guestWrites());
        this.#proof = await openDiskProof(volumeDir, lengthBytes, guestWrites);
      }
      return this.#proof.proof.compare(request);
    });
  }

  #figures(freeMapDigest: string | null): Promise<ProofFigures> {
    return this.#prove(async () => {
      const figures = (await this.#proof?.proof.figures(freeMapDigest)) ?? null;
      if (figures !== null) return figures;
      const digest = freeMapDigest === null ? null : Buffer.from(freeMapDigest, 'hex');
      const root = new RootHash(this.#spec.lengthBytes, digest).hex();
      return { root, ranges: 0, comparedBytes: 0, fetchedBytes: 0 };
    });
  }

  async close(): Promise<void> {
    await this.#closeProof();
    await this.#exclusively(async () => {
      this.#clone?.stop();
      await this.#removeStack();
      this.#top = null;
      this.#clone = null;
      this.#dataLoop = null;
      if (this.#access === 'writable') await this.flush();
      this.#unlocked?.volumeKey.dispose();
      this.#unlocked = null;
      this.#lock?.release();
      this.#lock = null;
    });
  }

  async #prepare(): Promise<void> {
    const { volumeDir, encryption, kind } = this.#spec;
    const record = await readRecord(volumeDir);
    if (encryption) {
      const { unlockVolume } = await import('../volume/encryption.ts');
      this.#unlocked = await unlockVolume({ ...this.#spec, encryption });
    }
    this.#dataLoop = await attachLoop({
      filePath: join(volumeDir, VOLUME_FILES.data),
      sectorBytes: this.#unlocked ? 4096 : 512,
    });
    if (kind === 'own' || record.state === 'ready') {
      await removeCloneMetadata(volumeDir);
      return;
    }
    const source = sourceOf(this.#spec);
    if (source === null) throw new Error('the kernel plane has no such kind');
    const identity = this.#cloneIdentity();
    // Blank metadata says that nothing is here: only as long as nobody can have written.
    if (record.state === 'incoming') await createCloneMetadata(volumeDir, identity);
    const binding = await requireCloneBinding(volumeDir, identity);
    if (binding.whole) return;
    this.#isClone = true;
    // What the stack will need when the machine is down.
    await this.#options.host.mapper.requireTarget('clone');
    if (this.#unlocked) await this.#options.host.mapper.requireTarget('crypt');
    this.#session = await this.#options.host.iscsi.login(source);
  }

  async #makeClone(): Promise<string> {
    const { host } = this.#options;
    const source = sourceOf(this.#spec)!;
    const names = mapperNames(this.#spec.volumeId);
    this.#session = (await host.iscsi.session(source.targetIqn)) ?? (await host.iscsi.login(source));
    const disk = await host.iscsi.disk(this.#session);
    await this.#checkSource(disk);
    const metadataLoop = await attachLoop({
      filePath: join(this.#spec.volumeDir, KERNEL_FILES.cloneMetadata),
      sectorBytes: 512,
    });
    const cloneDevice = await host.mapper.create(names.clone, {
      target: 'clone',
      sectors: this.#sectors,
      metadataDevice: metadataLoop,
      targetDevice: this.#dataLoop!,
      sourceDevice: disk,
      regionSectors: BLOCK_BYTES / SECTOR_BYTES,
      hydrating: false,
      hydrationThreshold: HYDRATION_LIMITS.thresholdMin,
      hydrationBatchRegions: BATCH_REGIONS,
    });
    const clone = new CloneCopy({
      ...this.#options,
      limits: this.#options.limits ?? HYDRATION_LIMITS,
      volumeId: this.#spec.volumeId,
      lengthBytes: this.#spec.lengthBytes,
      disk,
      session: this.#session,
      settings: this.#settings,
    });
    this.#clone = clone;
    await this.#markUnused(cloneDevice);
    // No machine waits for a number: an answer that cannot be read is told, and asked for again in every
    // tick.
    await clone.look().catch((error: unknown) => clone.noteError(error));
    return host.mapper.create(names.gate, this.#linear(cloneDevice));
  }

  /** Rejects `CLONE_NOT_COMPLETE`. After an error it can be done again. */
  async #collapse(clone: CloneCopy): Promise<void> {
    await clone.look();
    clone.requireWhole();
    clone.stop();
    const { mapper } = this.#options.host;
    const names = mapperNames(this.#spec.volumeId);
    await this.flush();
    const binding = await requireCloneBinding(this.#spec.volumeDir, this.#cloneIdentity());
    // From here on a reboot opens the file alone.
    await writeCloneBinding(this.#spec.volumeDir, { ...binding, whole: true });
    await mapper.suspend(names.gate, { flush: true });
    try {
      await mapper.load(names.gate, this.#linear(this.#dataLoop!));
    } finally {
      await mapper.resume(names.gate);
    }
    await mapper.remove(names.clone);
    this.#final = { hydration: clone.hydration(), guest: clone.guest };
    this.#clone = null;
    this.#isClone = false;
  }

  #prove<Reply>(question: () => Promise<Reply>): Promise<Reply> {
    const answered = this.#proving.then(question);
    this.#proving = answered.catch(() => {});
    return answered;
  }

  async #closeProof(): Promise<void> {
    await this.#proving;
    await this.#proof?.close();
    this.#proof = null;
  }

  #makeCrypt(below: string, { header, volumeKey }: UnlockedVolume): Promise<string> {
    const { segment } = header.metadata;
    return this.#options.host.mapper.create(mapperNames(this.#spec.volumeId).crypt, {
      target: 'crypt',
      sectors: this.#sectors,
      device: below,
      // A detached header: the data begin at the beginning.
      startSector: 0,
      cipher: 'aes-xts-plain64',
      key: volumeKey.bytes,
      sectorBytes: segment.sectorBytes,
      // What is discarded would read as zeros in the userspace plane, and as noise here.
      allowDiscards: false,
    });
  }

  /** Another volume behind the same address, or another generation of it, would be silent corruption. */
  async #checkSource(disk: string): Promise<void> {
    const { volumeId, generation, lengthBytes } = this.#spec;
    const folder = `/sys/block/${kernelNameOf(disk)}`;
    const page = await readFile(`${folder}/device/vpd_pg80`).catch(() => Buffer.alloc(0));
    // SPC-4 table 591: page code, length in bytes 2 and 3, then the serial number.
    const serialBytes = page.length >= 4 ? page.readUInt16BE(2) : 0;
    // LIO counts a final zero byte.
    const serial = page
      .toString('latin1', 4, 4 + serialBytes)
      .replaceAll('\0', '')
      .trim();
    const sectors = Number(await readFile(`${folder}/size`, 'utf8'));
    const expected = exportSerial(volumeId, generation - 1);
    if (serial === expected && sectors === lengthBytes / SECTOR_BYTES) return;
    throw new GodwitError(
      'PLANE_SOURCE_CHANGED',
      `the source is ${serial || 'without a serial number'} with ${sectors} sectors, not ${expected} with ${lengthBytes / SECTOR_BYTES}`,
      {
        values: { expected, serial, sectors, sectorsExpected: lengthBytes / SECTOR_BYTES },
        retry: 'never',
        nextAction: 'Nothing was read. Look at what listens at the address of the source.',
      },
    );
  }

  /**
   * The map that came with the handoff, once: it is noted durably, as is that a guest's writes are counted
   * from now on, before anything is mounted, because what was free at the seal is soon in use. A map that
   * cannot be used is none: past the point of no return nothing may hang on it.
   */
  async #markUnused(cloneDevice: string): Promise<void> {
    const { volumeDir, volumeId, generation, lengthBytes } = this.#spec;
    const { logger } = this.#options;
    const binding = await requireCloneBinding(volumeDir, this.#cloneIdentity());
    const counted: CloneBinding = { ...binding, freeMapTaken: true, guestWrites: beginCounting(binding) };
    this.#trimmed = binding.freeMapWhole === true;
    if (binding.freeMapTaken) return writeCloneBinding(volumeDir, counted);
    try {
      const runs = await readFreeRuns(volumeDir, { volumeId, generation: generation - 1, lengthBytes });
      const longest = [...(runs ?? [])]
        .sort((left, right) => right.end - right.first - (left.end - left.first))
        .slice(0, DISCARDS_MAX);
      const fd = openSync(cloneDevice, constants.O_RDWR);
      let blocks = 0;
      try {
        for (const { first, end } of longest) {
          await discardRange(fd, first * BLOCK_BYTES, (end - first) * BLOCK_BYTES);
          blocks += end - first;
        }
      } finally {
        closeSync(fd);
      }
      // Then a trim finds nothing more, and no discard of ours is counted as one of the guest's.
      counted.freeMapWhole = runs !== null && longest.length === runs.length;
      this.#trimmed = counted.freeMapWhole;
      logger.info({ runs: longest.length, blocks }, 'blocks that the filesystem does not use stay behind');
    } catch (error) {
      logger.warn({ error: toWireError(error) }, 'the free map cannot be used; everything is fetched');
    }
    await writeCloneBinding(volumeDir, counted);
  }

  /**
   * Of all devices that the guest had, whatever is in flight included: it is held until that has ended. Null:
   * not known.
   */
  async #guestWrites(): Promise<GuestWrites | null> {
    const { control, mapper } = this.#options.host;
    const past = (await readCloneBinding(this.#spec.volumeDir))?.guestWrites?.past;
    if (!past || this.#top === null) return null;
    const names = mapperNames(this.#spec.volumeId);
    const top = this.#unlocked ? names.crypt : names.gate;
    let now: BlockStatistics | null;
    try {
      await mapper.suspend(top, { flush: false, deadlineMs: COUNT_DEADLINE_MS });
      now = await statisticsOf(this.#top);
      await control.resume(top);
    } finally {
      // Whatever went wrong, the guest is not left held.
      if (await control.suspended(top)) await mapper.resume(top);
    }
    return now && { ...addCounts(past, now), sectorBytes: this.#unlocked ? 4096 : 512 };
  }

  #guestStatistics(): GuestStatistics {
    const guest = this.#clone?.guest ?? this.#final?.guest;
    const { reads, readBytes, writes, writeBytes, flushes } = guest ?? NO_GUEST;
    return { ...UNCOUNTED, reads, readBytes, writes, writeBytes, flushes };
  }

  get #sectors(): number {
    return this.#spec.lengthBytes / SECTOR_BYTES;
  }

  #linear(device: string): MapperTable {
    return { target: 'linear', sectors: this.#sectors, device, startSector: 0 };
  }

  #cloneIdentity(): { volumeId: string; generation: number; lengthBytes: number } {
    const { volumeId, generation, lengthBytes } = this.#spec;
    return { volumeId, generation, lengthBytes };
  }

  #removeStack(): Promise<void> {
    return removeStack({ ...this.#spec, source: sourceOf(this.#spec) }, this.#options);
  }

  #exclusively<Value>(work: () => Promise<Value>): Promise<Value> {
    const result = this.#last.then(work, work);
    this.#last = result.catch(() => {});
    return result;
  }
}

/** Of another worker; null: there is none, or it is a disk of another system, which no kernel clones here. */
function sourceOf(spec: AttachSpec): SourceSpec | null {
  return spec.kind === 'clone' ? spec.clone.source : null;
}

/**
 * Takes down everything that a volume has in this kernel, whoever made it: from the top, so that each step
 * finds its device unused. Idempotent. Rejects `HOST_MAPPER_BUSY` while a filesystem is mounted.
 */
export async function removeStack(
  spec: {
    volumeId: string;
    volumeDir: string;
    source: Pick<SourceSpec, 'targetIqn' | 'host' | 'port' | 'initiatorIqn'> | null;
  },
  { host, clock }: Pick<KernelVolumeOptions, 'host' | 'clock'>,
): Promise<void> {
  await removeMapper(spec, { host, clock });
  if (spec.source) await host.iscsi.logout(spec.source);
  await detachLoops(join(spec.volumeDir, VOLUME_FILES.data), { readonly: false, clock });
}

async function removeMapper(
  spec: Pick<AttachSpec, 'volumeId' | 'volumeDir'>,
  { host, clock }: Pick<KernelVolumeOptions, 'host' | 'clock'>,
): Promise<void> {
  const { crypt, gate, clone } = mapperNames(spec.volumeId);
  const present = await host.mapper.names();
  const top = [crypt, gate].find((name) => present.includes(name));
  const counts = top === undefined ? null : await statisticsOf(`${MAPPER_FOLDER}/${top}`).catch(() => null);
  for (const name of [crypt, gate, clone]) if (present.includes(name)) await host.mapper.remove(name);
  // Where only the clone was there, nothing was written. Where none was there, a power cut took the counts
  // along.
  if (counts !== null || (top === undefined && present.includes(clone)))
    await endCounting(spec.volumeDir, counts);
  await detachLoops(join(spec.volumeDir, KERNEL_FILES.cloneMetadata), { readonly: false, clock });
}

/** Whether a volume is, or was, a clone of the kernel plane: it stays in the plane that it was begun in. */
export async function isKernelClone(volumeDir: string): Promise<boolean> {
  return (await readCloneBinding(volumeDir)) !== null;
}
