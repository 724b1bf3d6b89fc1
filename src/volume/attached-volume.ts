import { join } from 'node:path';
import { FuseServer } from '../attach/fuse-server.ts';
import type { ClientBook } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { nextTurn, turnIsLong } from '../base/turn.ts';
import { type BlockDevice, BLOCK_BYTES as FREE_BLOCK_BYTES } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import type { FetchProof } from '../clone/fetch-proof.ts';
import { PAGE_BLOCKS, PAGE_WORDS } from '../clone/map-memory.ts';
import { blockCountOf, popcount, ValidityMap } from '../clone/validity-map.ts';
import type { Luks2Device } from '../crypt/luks2-device.ts';
import type { BlockRun } from '../freemap/free-map.ts';
import type { FreeMapFilesystem, FreeMapReader } from '../freemap/free-map-reader.ts';
import { HEAT_REGION_BYTES } from '../opening/guest.ts';
import type { OpenVolume } from '../opening/open-volume.ts';
import type { OperationResult } from '../opening/operations.ts';
import type { AnswersOf } from '../opening/perform.ts';
import type { Access, AttachSpec, CloneSpec, ImportSpec, NbdSocketSpec } from '../opening/spec.ts';
import type { FreeMapReport, HydrationStatus, VolumeServerStatus } from '../opening/status.ts';
import type { DirectFile } from '../sys/direct-file.ts';
import { filesystemInstance } from '../sys/filesystem-instance.ts';
import type { CloneLayer, Rekey } from './clone-layer.ts';
import { DataGuard, GuardedFile } from './data-guard.ts';
import type { DataLock } from './data-lock.ts';
import type { DecryptedSource } from './decrypted-source.ts';
import { type DiskRoom, RoomyDevice, roomOf } from './disk-room.ts';
import type { UnlockedVolume } from './encryption.ts';
import { passFence } from './fence.ts';
import { VOLUME_FILES } from './files.ts';
import { freeMapDigest, readFreeRuns, removeFreeMap, writeFreeMap } from './free-map-file.ts';
import type { NbdAttachment } from './nbd-attachment.ts';
import { readRecord } from './record-file.ts';
import { exportSerial } from './specs.ts';
import { removeValidityFile } from './validity-file.ts';

export type AttachedVolumeOptions = {
  /** An open FUSE connection (attach/fuse-mount.ts); not looked at where the guest comes through NBD. */
  fuseFd: number;
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What clients make this process hold, whatever it serves them by. */
  clients: ClientBook;
  /** Every block is local, durably. May be called again after a restart of the process. */
  onHydrated: () => void;
  /** The status has a loss of data now: to be told before the guest is answered. */
  onDataLost: () => void;
};

/** As host/mount-needs.ts has it, whose schemas a volume server does not load. */
const SUPERBLOCK_READ_BYTES = 4096;

/** Loop devices have sectors of 512 bytes. */
const BLOCK_BYTES = 512;

/** How a guest gets at a volume. Its gate is the only one between the guest and the volume's devices. */
type Front = Pick<
  FuseServer,
  'access' | 'setAccess' | 'becomeWhole' | 'statistics' | 'takeWaits' | 'heat' | 'closed' | 'stop'
>;

/** Role `attach`: the volume behind the FUSE file that a loop device sits on, or behind an NBD socket. */
export class AttachedVolume implements OpenVolume<'attach', 'userspace'> {
  readonly answers: AnswersOf<'attach', 'userspace'> = {
    status: () => this.status(),
    activate: (access) => this.activate(access),
    flush: () => this.flush(),
    seal: () => this.seal(),
    'prime-free-map': (filesystem) => this.#primeFreeMap(filesystem),
    'free-map': (filesystem) => this.#sealFreeMap(filesystem),
    superblock: () => this.#superblock(),
    hydration: (settings) => this.#clone?.device.configureHydration(settings),
    finish: () => this.#finish(),
    'give-up-source': () => this.#giveUpSource(),
    room: (leaving) => this.#room.leave(leaving),
    heat: () => ({ regions: this.#front.heat() }),
    warm: (regions) => this.#warm(regions),
    guest: () => this.#guestUse(),
    fetched: (cursor) => this.#prove((proof) => proof.fetched(cursor)),
    unfetched: (cursor) => this.#prove((proof) => proof.unfetched(cursor)),
    mend: (request) => this.#prove((proof) => proof.mend(request)),
    figures: (freeMapDigest) => this.#prove((proof) => proof.figures(freeMapDigest)),
  };
  /** Of the filesystem that its data is in; null: not known. */
  readonly instance: string | null;
  readonly #spec: AttachSpec;
  readonly #options: AttachedVolumeOptions;
  readonly #front: Front;
  /** The NBD socket: `#front` itself, or a second way in, for reading. */
  readonly #nbd: NbdAttachment | null;
  /**
   * The data file on a descriptor of its own: for the hot path, and for everything once the volume is whole.
   */
  readonly #local: FileDevice;
  /** The same as the guest has it. */
  readonly #data: GuardedFile;
  readonly #guard: DataGuard;
  readonly #room: DiskRoom;
  #clone: CloneLayer | null;
  readonly #encryption: Encryption | null;
  /** The last word of a clone layer that was dropped. */
  #finalHydration: HydrationStatus | null = null;
  #lock: DataLock | null;
  #freeMapReader: FreeMapReader | null = null;
  #closing: Promise<void> | null = null;
  #proof: OpenProof | null = null;
  /** Until the guest's requests go on that a mend holds back. */
  #mending: Promise<void> = Promise.resolve();
  /**
   * The questions of a proof that are not answered yet. A mend among them takes the access away for a moment:
   * whoever changes it waits.
   */
  #proving: Promise<unknown> = Promise.resolve();

  private constructor(
    spec: AttachSpec,
    options: AttachedVolumeOptions,
    parts: {
      front: Front;
      nbd: NbdAttachment | null;
      local: FileDevice;
      data: GuardedFile;
      guard: DataGuard;
      room: DiskRoom;
      clone: CloneLayer | null;
      encryption: Encryption | null;
      lock: DataLock | null;
      instance: string | null;
    },
  ) {
    this.#spec = spec;
    this.instance = parts.instance;
    this.#options = options;
    this.#front = parts.front;
    this.#nbd = parts.nbd;
    this.#local = parts.local;
    this.#data = parts.data;
    this.#guard = parts.guard;
    this.#room = parts.room;
    this.#clone = parts.clone;
    this.#encryption = parts.encryption;
    this.#lock = parts.lock;
    this.#clone?.device.watchGuest(() => this.#front.takeWaits());
  }

  /**
   * Opens all that the spec names and serves the FUSE file or the socket. In `standby` the source must answer
   * now; later it may be away. Rejects with the errors of the fence, `BLOCK_SHORT_FILE`, those of
   * encryption.ts, those of clone/metadata.ts and validity-file.ts, those of the login, and those of
   * listening on a socket.
   */
  static async open(spec: AttachSpec, options: AttachedVolumeOptions): Promise<AttachedVolume> {
    const { clock, logger } = options;
    const lock = spec.access === 'writable' ? await passFence(spec, 'write', clock) : null;
    let local: FileDevice | undefined;
    let clone: CloneLayer | null = null;
    let encryption: Encryption | null = null;
    let nbd: NbdAttachment | null = null;
    try {
      const guard = new DataGuard({ ...spec, clock, logger });
      guard.onLost(options.onDataLost);
      const instance = filesystemInstance(spec.volumeDir);
      const cloned = spec.kind !== 'own' && (await isCopy(spec)) ? spec : null;
      // A clone knows more: whether the guest had anything that was not flushed (clone-layer.ts).
      if (cloned === null && hasMoved(spec, instance))
        guard.lose('its filesystem was mounted again under the running machine');
      // The key and its derivation: in standby, so before anything stops.
      encryption = await openEncryption(spec, cloned?.kind === 'clone' ? cloned : null);
      local = await openData(spec);
      lock?.checkIs(local.fileDescriptor);
      const room = roomOf(spec, local, clock);
      if (cloned) {
        const { openClone } = await import('./clone-layer.ts');
        clone = await openClone(cloned, {
          ...options,
          guard,
          room,
          ...(encryption?.rekey && { rekey: encryption.rekey }),
        });
      }
      if (clone && spec.access === 'standby' && !clone.device.complete) await clone.source.login();
      const data = new GuardedFile(local, guard);
      const device = new RoomyDevice(plaintextOf(encryption, clone, data), room);
      if (spec.nbd) nbd = await openNbd(spec, spec.nbd, { device, local, clone }, options);
      const parts = { nbd, local, data, guard, room, clone, encryption, lock, instance };
      if (nbd && spec.nbd?.client === 'guest')
        return new AttachedVolume(spec, options, { ...parts, front: nbd });
      const front = new FuseServer({
        fuseFd: options.fuseFd,
        device,
        hot: {
          dataFd: local.fileDescriptor,
          validity: clone?.validity.place ?? null,
          unflushedAddress: clone?.validity.unflushedAddress ?? null,
          written: clone?.proof ? clone.proof.written.place : null,
          portion: room.portion,
          ...(encryption && { encryption: encryption.forHotPath }),
        },
        access: spec.access,
        clock,
        logger,
      });
      guard.onLost(() => front.failStop());
      return new AttachedVolume(spec, options, { ...parts, front });
    } catch (error) {
      await nbd?.stop();
      encryption?.forget();
      await clone?.source.close();
      await clone?.device.close();
      await clone?.arrivals.close();
      await local?.close();
      lock?.release();
      throw error;
    }
  }

  /**
   * Begins to hydrate where the volume is open for writing already. Call it once, when events can be told.
   */
  start(): void {
    if (this.#front.access === 'writable') this.#clone?.device.start();
  }

  /** Resolves when the FUSE file is gone; never where there is none. */
  get closed(): Promise<void> {
    return this.#front.closed;
  }

  status(): VolumeServerStatus {
    const hydration = this.#hydration();
    const noRoom = this.#room.shortage();
    return {
      role: 'attach',
      volumeId: this.#spec.volumeId,
      generation: this.#spec.generation,
      access: this.#front.access,
      residentBytes: process.memoryUsage.rss(),
      ...(hydration ? { hydration } : {}),
      ...(this.#guard.lost && { dataLoss: { atMs: this.#guard.lost.atMs, reason: this.#guard.lost.reason } }),
      ...(noRoom && { noRoom }),
      ...(this.#room.leaving !== 'no' && { leaving: this.#room.leaving }),
      guest: this.#front.statistics(),
      ...(this.#nbd ? { served: this.#nbd.served } : {}),
    };
  }

  /**
   * Nothing of a source is fetched, and no hole of it is believed, before this says `writable`: until the
   * handoff the source may change. Idempotent.
   */
  async activate(access: Access): Promise<void> {
    // A mend has taken the access away for a moment; it is not standby.
    await this.#mending;
    if (access === this.#front.access) return;
    if (access === 'writable') {
      this.#lock ??= await this.#takeLock();
      if (this.#front.access === 'standby') await this.#markUnused();
      await this.#setAccess('writable');
      this.#clone?.device.start();
    } else if (access === 'readonly' && this.#front.access === 'standby') {
      await this.#setAccess('readonly');
    } else {
      throw new GodwitError(
        'VOLUME_BAD_ACCESS',
        `a volume that is ${this.#front.access} does not go to ${access}`,
        {
          values: { access: this.#front.access, requested: access },
          nextAction: 'Access only opens; seal the volume to end its writes.',
        },
      );
    }
  }

  async #takeLock(): Promise<DataLock> {
    const lock = await passFence(this.#spec, 'write', this.#options.clock);
    try {
      lock.checkIs(this.#local.fileDescriptor);
      return lock;
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  async flush(): Promise<void> {
    await (this.#clone?.device ?? this.#data).flush();
  }

  /**
   * Ends the writes: those that were accepted are durable when it resolves, and no other is accepted.
   * Idempotent.
   */
  async seal(): Promise<void> {
    await this.#proving;
    if (this.#front.access === 'writable') await this.#setAccess('readonly');
    await this.flush();
    this.#lock?.release();
    this.#lock = null;
  }

  /** Regions of `HEAT_REGION_BYTES` to bring first. */
  #warm(regions: readonly number[]): void {
    this.#clone?.device.warm(
      regions.map((region) => ({ offsetBytes: region * HEAT_REGION_BYTES, lengthBytes: HEAT_REGION_BYTES })),
    );
  }

  /** What the guest has written is counted page by page of its map. */
  async #guestUse(): Promise<OperationResult<'guest'>> {
    const { misses: waits, missLatencyP99Ms: waitP99Ms } = this.#front.statistics();
    const { written } = this.#clone?.proof ?? {};
    if (!written) return { writtenBytes: null, waits, waitP99Ms };
    const blockCount = blockCountOf(this.#spec.lengthBytes);
    const map = new ValidityMap(written.memory, blockCount, { counted: false });
    const words = new Uint32Array(PAGE_WORDS);
    let blocks = 0;
    for (let first = map.firstPresent(0, blockCount); first < blockCount; ) {
      const page = Math.floor(first / PAGE_BLOCKS);
      map.copyWords(page * PAGE_WORDS, words);
      for (const word of words) blocks += popcount(word);
      first = map.firstPresent(Math.min(blockCount, (page + 1) * PAGE_BLOCKS), blockCount);
      if (turnIsLong()) await nextTurn();
      if (this.#clone === null) break; // whole now, and its map closed
    }
    return { writtenBytes: blocks * FREE_BLOCK_BYTES, waits, waitP99Ms };
  }

  /**
   * What its filesystem is, as base64: what has been written to it, which the kernel does to a superblock
   * with each sync.
   */
  async #superblock(): Promise<{ bytes: string }> {
    const { readBytes } = await import('../freemap/device-bytes.ts');
    const device = plaintextOf(this.#encryption, this.#clone, this.#local);
    return { bytes: (await readBytes(device, 0, SUPERBLOCK_READ_BYTES)).toString('base64') };
  }

  /**
   * Reads what the filesystem does not use while it may be mounted, for `free-map` to have less to read.
   */
  async #primeFreeMap(filesystem: FreeMapFilesystem): Promise<{ damage?: string }> {
    const damage = await (await this.#reader(filesystem)).prime();
    return damage === null ? {} : { damage: damage.message };
  }

  /**
   * Writes `free.map`, of the generation that was sealed here, once the filesystem is unmounted. Without a
   * map, the report says why. Rejects `VOLUME_BAD_ACCESS` before the seal, and with errors of the disk.
   */
  async #sealFreeMap(filesystem: FreeMapFilesystem): Promise<FreeMapReport> {
    if (this.#front.access !== 'readonly') {
      throw new GodwitError(
        'VOLUME_BAD_ACCESS',
        'the free map is read when no write can change it any more',
        {
          values: { access: this.#front.access, requested: 'readonly' },
          nextAction: 'Seal the volume first.',
        },
      );
    }
    if (this.#spec.nbd?.client === 'guest') {
      // It may have written a partition table or anything else, and the filesystem that was here before still
      // looks whole.
      await removeFreeMap(this.#spec.volumeDir);
      return { unusedBytes: 0, reason: diskOfGuest(this.#spec.volumeId).toWire() };
    }
    const result = await (await this.#reader(filesystem)).finish();
    this.#freeMapReader = null; // it holds the bitmaps of the first pass
    if (result.kind === 'none') {
      await removeFreeMap(this.#spec.volumeDir);
      return { unusedBytes: 0, reason: result.reason.toWire() };
    }
    const { allocatedRuns } = await import('../freemap/run-extents.ts');
    const { encodeSealedMap } = await import('../freemap/sealed-map.ts');
    const { volumeId, generation, lengthBytes } = this.#spec;
    // Holes of the file are seen by the target itself, one by one and without anybody waiting.
    const unused: BlockRun[] = [];
    for (const run of result.map.runs()) {
      unused.push(run);
      if (turnIsLong()) await nextTurn();
    }
    const runs = await allocatedRuns(this.#local, unused, MAP_EXTENTS_MAX);
    const bytes = encodeSealedMap({ volumeId, generation, lengthBytes }, () => runs);
    await writeFreeMap(this.#spec.volumeDir, bytes);
    const unusedBlocks = unused.reduce((sum, { first, end }) => sum + end - first, 0);
    return { unusedBytes: unusedBlocks * FREE_BLOCK_BYTES, reason: null };
  }

  /**
   * Ends the wait for a source that will not come back: reads of what is only there are I/O errors from now
   * on. Idempotent.
   */
  async #giveUpSource(): Promise<void> {
    if (this.#clone === null) return;
    this.#clone.device.giveUpSource();
    await this.#clone.source.close();
  }

  /** Drops the clone layer under the running guest. Rejects `CLONE_NOT_COMPLETE`. Idempotent. */
  async #finish(): Promise<void> {
    const clone = this.#clone;
    if (clone === null) return;
    await this.#closeProof();
    await clone.device.finish();
    this.#finalHydration = this.#hydration();
    const device = new RoomyDevice(this.#encryption?.over(this.#data) ?? this.#data, this.#room);
    await this.#front.becomeWhole(device);
    if (this.#nbd !== this.#front) await this.#nbd?.becomeWhole(device);
    this.#clone = null;
    await clone.device.close();
    await clone.arrivals.close();
    await clone.source.close();
    this.#encryption?.forgetSource();
    this.#guard.unshare();
    clone.validity.close();
    clone.proof?.written.close();
    removeValidityFile(clone.validityPath);
    await removeFreeMap(this.#spec.volumeDir);
  }

  /**
   * Asks the target's part of proving a move (clone/fetch-proof.ts), one question at a time. Rejects
   * `CLONE_NOT_COMPLETE`, and `VOLUME_NO_FETCH_LOG` where there is nothing to prove: a volume that is whole,
   * or the clone of a disk of another system.
   */
  #prove<T>(question: (proof: FetchProof) => Promise<T>): Promise<T> {
    const answered = this.#proving.then(async () => {
      const clone = this.#clone;
      if (!clone?.proof) throw noFetchLog(this.#spec.volumeId);
      clone.device.checkComplete();
      this.#proof ??= await this.#openProof(clone.proof);
      return question(this.#proof.proof);
    });
    this.#proving = answered.catch(() => {});
    return answered;
  }

  /** Ends what is being proved. */
  async #closeProof(): Promise<void> {
    await this.#proving;
    await this.#proof?.stored.close();
    this.#proof = null;
  }

  async #openProof(parts: NonNullable<CloneLayer['proof']>): Promise<OpenProof> {
    // Code that only the end of a move needs.
    const [{ FetchProof }, { DirectFile }] = await Promise.all([
      import('../clone/fetch-proof.ts'),
      import('../sys/direct-file.ts'),
    ]);
    const stored = new DirectFile(join(this.#spec.volumeDir, VOLUME_FILES.data));
    const proof = new FetchProof({
      local: parts.local,
      stored: parts.stored(stored),
      source: parts.source,
      log: parts.log,
      written: parts.written.memory,
      freeMapDigest: await freeMapDigest(this.#spec.volumeDir),
      refetchedBytes: () => parts.refetchedBytes(),
      clock: this.#options.clock,
      exclusively: (work) => this.#exclusively(work),
    });
    return { proof, stored };
  }

  /** Holds the guest's requests back for as long as `work` takes. */
  async #exclusively(work: () => Promise<void>): Promise<void> {
    if (this.#front.access !== 'writable') return work();
    const mended = Promise.withResolvers<void>();
    this.#mending = mended.promise;
    try {
      await this.#front.setAccess('standby');
      await work();
    } finally {
      await this.#front.setAccess('writable').finally(mended.resolve);
    }
  }

  /**
   * Makes everything durable and ends serving; requests wait for the next server, in the kernel or in clients
   * that connect again. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#guard.rest();
    await this.#closeProof();
    this.#room.close({ refuse: this.#front === this.#nbd });
    // Calls of its clients that wait for the source end when the clone is closed.
    const dropped = this.#nbd?.stop();
    if (this.#front !== this.#nbd) await this.#front.stop();
    // What is lost was told; the next server refuses as this one did.
    if (this.#front.access === 'writable' && this.#guard.lost === null) await this.flush();
    this.#noteWireBytes();
    await this.#clone?.source.close();
    await this.#clone?.device.close();
    await this.#clone?.arrivals.close();
    await dropped;
    await this.#local.close();
    this.#encryption?.forget();
    this.#lock?.release();
  }

  async #setAccess(access: Access): Promise<void> {
    await this.#front.setAccess(access);
    if (this.#nbd !== this.#front) await this.#nbd?.setAccess(access);
  }

  /** Through the clone while there is one: blocks that are still at the source are not in the file. */
  async #reader(filesystem: FreeMapFilesystem): Promise<FreeMapReader> {
    if (this.#freeMapReader === null) {
      const { FreeMapReader } = await import('../freemap/free-map-reader.ts');
      this.#freeMapReader = new FreeMapReader(
        plaintextOf(this.#encryption, this.#clone, this.#local),
        filesystem,
      );
    }
    return this.#freeMapReader;
  }

  /**
   * The map that came with the handoff. A map that cannot be used is none: past the point of no return
   * nothing may hang on it.
   */
  async #markUnused(): Promise<void> {
    if (this.#clone === null) return;
    const { volumeDir, volumeId, generation, lengthBytes } = this.#spec;
    const { logger } = this.#options;
    try {
      const runs = await readFreeRuns(volumeDir, { volumeId, generation: generation - 1, lengthBytes });
      if (runs === null) return;
      const blocks = await this.#clone.device.markUnused(runs);
      logger.info({ runs: runs.length, blocks }, 'blocks that the filesystem does not use stay behind');
    } catch (error) {
      logger.warn({ error: toWireError(error) }, 'the free map cannot be used; everything is fetched');
    }
  }

  #hydration(): HydrationStatus | null {
    if (this.#clone === null) return this.#finalHydration;
    this.#noteWireBytes();
    const status = this.#clone.device.hydrationStatus();
    // Nothing is fetched in standby, whatever the settings say.
    if (this.#front.access !== 'writable' && status.state === 'running') status.state = 'paused';
    const lastError = status.lastError ?? this.#clone.source.lastError;
    return {
      ...status,
      lastError: lastError?.replace('BLOCK_NO_SPACE', 'VOLUME_NO_SPACE') ?? null,
      transport: transportOf(this.#spec),
      missesKept: true,
    };
  }

  /** For the next server, should this one die. */
  #noteWireBytes(): void {
    if (this.#clone === null) return;
    this.#clone.validity.wireBytes = this.#clone.device.hydrationStatus().wireBytes;
  }
}

function noFetchLog(volumeId: string): GodwitError {
  return new GodwitError('VOLUME_NO_FETCH_LOG', `nobody kept what was fetched of volume ${volumeId}`, {
    values: { volumeId },
    nextAction: 'Only volumes that move have receipts; both workers must be of the same godwit version.',
  });
}

type OpenProof = { proof: FetchProof; stored: DirectFile };

function transportOf(spec: AttachSpec): HydrationStatus['transport'] {
  if (spec.kind !== 'clone') return 'foreign';
  return spec.clone.source.tls ? 'tls' : 'tcp';
}

/** Extents of the file that a seal looks at for its free map: some milliseconds. */
const MAP_EXTENTS_MAX = 8192;

/** The filesystem of the data is another one than a server of the same guest has written to. */
function hasMoved(spec: AttachSpec, instance: string | null): boolean {
  if (spec.follows !== true || spec.access !== 'writable') return false;
  return spec.instance !== undefined && instance !== null && spec.instance !== instance;
}

/** The key of an encrypted volume, for as long as it is open. */
type Encryption = {
  /** The plaintext of a device. The one that was made before is closed by closing what it is over. */
  over: (device: BlockDevice) => Luks2Device;
  /** For a clone whose source is under another key. */
  readonly rekey: Rekey | null;
  /** A copy of the key, for the thread that overwrites it. */
  readonly forHotPath: { key: Uint8Array; sectorBytes: number };
  forgetSource: () => void;
  forget: () => void;
};

async function openEncryption(spec: AttachSpec, clone: CloneSpec | null): Promise<Encryption | null> {
  const { encryption } = spec;
  if (encryption === undefined) return null;
  // Its code and memory are for encrypted volumes only.
  const encryptionCode = await import('./encryption.ts');
  const { plaintextOf, plaintextOfSource, rekeyedFile, unlockSource, unlockVolume } = encryptionCode;
  const unlocked: UnlockedVolume = await unlockVolume({ ...spec, encryption });
  const { holes } = encryption;
  const over = (device: BlockDevice) => plaintextOf(device, unlocked, holes);
  let source: UnlockedVolume | null = null;
  let decrypted: DecryptedSource | null = null;
  try {
    const header = clone?.encryption?.source;
    if (header) source = await unlockSource({ ...spec, encryption }, header);
  } catch (error) {
    unlocked.volumeKey.dispose();
    throw error;
  }
  const forgetSource = () => {
    source?.volumeKey.dispose();
    void decrypted?.close();
  };
  return {
    over,
    rekey:
      source &&
      ((local, remote) => {
        decrypted = plaintextOfSource(remote, source);
        return { local: rekeyedFile(local, unlocked, decrypted, holes), source: decrypted };
      }),
    get forHotPath() {
      const { sectorBytes } = unlocked.header.metadata.segment;
      return { key: new Uint8Array(unlocked.volumeKey.bytes), sectorBytes };
    },
    forgetSource,
    forget: () => {
      forgetSource();
      unlocked.volumeKey.dispose();
    },
  };
}

/**
 * What the guest sees: a clone under another key is plaintext already, everything else is decrypted on top.
 */
function plaintextOf(
  encryption: Encryption | null,
  clone: CloneLayer | null,
  local: BlockDevice,
): BlockDevice {
  const stored = clone?.device ?? local;
  return encryption === null || clone?.plaintext ? stored : encryption.over(stored);
}

function diskOfGuest(volumeId: string): GodwitError {
  return new GodwitError(
    'VOLUME_DISK_OF_GUEST',
    'the guest has the volume as a disk, and it alone knows what it uses of it',
    {
      values: { volumeId },
      nextAction: 'Nothing to do: what the guest has trimmed (QEMU: discard=unmap) stays behind.',
    },
  );
}

async function openNbd(
  spec: AttachSpec,
  socket: NbdSocketSpec,
  { device, local, clone }: { device: BlockDevice; local: FileDevice; clone: CloneLayer | null },
  { clock, logger, clients }: AttachedVolumeOptions,
): Promise<NbdAttachment> {
  const { NbdAttachment } = await import('./nbd-attachment.ts');
  const { startWriteBack } = await import('../sys/sync-file-range.ts');
  return NbdAttachment.open({
    socket,
    serial: exportSerial(spec.volumeId, spec.generation),
    device,
    access: spec.access,
    validity:
      clone && new ValidityMap(clone.validity.memory, blockCountOf(spec.lengthBytes), { counted: false }),
    writeBack: () => startWriteBack(local.fileDescriptor),
    clock,
    logger,
    clients,
  });
}

/**
 * For writing whatever the access: the seal of a server that came after a dead one makes durable what that
 * one had accepted.
 */
function openData(spec: AttachSpec): Promise<FileDevice> {
  return FileDevice.open({
    file: join(spec.volumeDir, VOLUME_FILES.data),
    lengthBytes: spec.lengthBytes,
    blockBytes: BLOCK_BYTES,
    flushFailureStays: false,
  });
}

/**
 * False when the copy that the spec speaks of has become a plain volume meanwhile: the spec of a supervisor
 * is as old as its attach.
 */
async function isCopy(spec: CloneSpec | ImportSpec): Promise<boolean> {
  const record = await readRecord(spec.volumeDir);
  const whole =
    record.id === spec.volumeId && record.generation === spec.generation && record.state === 'ready';
  if (whole) removeValidityFile(spec.clone.validityPath);
  return !whole;
}
