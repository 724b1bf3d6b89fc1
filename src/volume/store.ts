import { link, mkdir, open, readdir, rename, rm, stat, statfs } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { ulid } from 'ulid';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { Serial, SerialByKey } from '../base/serial.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { CloneMetadata, metadataLengthBytes, summaryOffsetBytes } from '../clone/metadata.ts';
import { mkfs } from '../host/mkfs.ts';
import { systemTools, type Tools } from '../host/tools.ts';
import type { KeySource } from '../opening/spec.ts';
import { replaceFile, syncFolder, syncPath } from '../sys/durable-file.ts';
import { allocate } from '../sys/fallocate.ts';
import { holdsFileOf } from '../sys/file-system.ts';
import { ownPath } from '../sys/named-path.ts';
import { type AcceptedLoss, acceptDataLoss, lostError, readDataLoss } from './data-guard.ts';
import { isDataLocked } from './data-lock.ts';
import { checkHeader, ENCRYPTED_SECTOR_BYTES, encryptNew, rekeyIncoming } from './encryption.ts';
import { createFetchLog } from './fetch-log-file.ts';
import { VOLUME_FILES } from './files.ts';
import { DEFAULT_HEADER_FILE_BYTES } from './header-size.ts';
import { encodeImportSource, type ImportRecord } from './import-source-file.ts';
import type { VolumeRecord } from './record.ts';
import { encodeRecord, readRecord } from './record-file.ts';
import { reserve } from './reserve.ts';
import { beyondMax, type RetainedCopy, Retention } from './retention.ts';
import { storageError } from './storage-error.ts';
import { transition, type VolumeEvent } from './transition.ts';
import { createZeroLog } from './zero-log-file.ts';

/**
 * The volumes of one worker, a folder each:
 *
 *   <dataDir>/volumes/<id>/volume.json     the record (record.ts)
 *                          data.raw        the bytes, sparse
 *                          clone.meta      durable validity bits, while the volume is a clone
 *                          source.json     the disk that an imported volume comes from, while it is a clone
 *                          fetch.log       digests of what was fetched, while the volume is the clone of a move
 *                          region.digests  digests of the sealed content, once it was exported
 *                          header.luks2    header and key slots, when data.raw is ciphertext
 *                          source-header.luks2  those of the source, while the volume is a clone under another key
 *   <dataDir>/volumes/<id>.g<generation>/  a retained generation that made room for the volume's return
 *   <dataDir>/volumes/.retention.json      for how long copies are still kept (retention.ts)
 *   <dataDir>/volumes/.new-*, .gone-*      being made, being destroyed; a crash leaves them and `open` removes them
 *
 * A folder appears by rename when all in it is durable and goes by rename first, so half a volume is never
 * seen. The disk is the truth: nothing is cached, every answer is read from the records. One process owns the
 * folder (the worker); volume servers read the record of theirs.
 */
export class VolumeStore {
  readonly directory: string;
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #tools: Tools;
  readonly #headerFileBytes: number;
  readonly #allocate: typeof allocate;
  readonly #retention: Retention;
  /**
   * What is done to one volume: it reads the record, decides and writes. A mkfs, or the deletion of 100 GiB,
   * keeps nobody else's seal waiting.
   */
  readonly #changes = new SerialByKey();
  readonly #formats = new Serial();

  private constructor(directory: string, options: VolumeStoreOptions) {
    this.directory = directory;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#logger = options.logger;
    this.#retention = new Retention({ ...options, path: join(directory, RETENTION_FILE) });
    this.#tools = options.tools ?? systemTools();
    this.#headerFileBytes = options.headerFileBytes ?? DEFAULT_HEADER_FILE_BYTES;
    this.#allocate = options.allocate ?? allocate;
  }

  /** Makes the folder where there is none and removes what a crash left half made or half destroyed. */
  static async open(dataDir: string, options: VolumeStoreOptions): Promise<VolumeStore> {
    const store = new VolumeStore(join(dataDir, 'volumes'), options);
    await mkdir(store.directory, { recursive: true, mode: 0o700 });
    // Else a power cut may take the folder, and all that is made in it.
    await syncFolder(dataDir);
    for (const name of await readdir(store.directory)) {
      if (!name.startsWith(NEW_PREFIX) && !name.startsWith(GONE_PREFIX)) continue;
      store.#logger.info({ folder: name }, 'removing what a crash left of a volume');
      await rm(join(store.directory, name), { recursive: true, force: true });
    }
    return store;
  }

  /**
   * A new volume, ready at generation 1, whole and durable. `lengthBytes` is a multiple of 4096.
   * Rejects `VOLUME_BAD_LENGTH`, `HOST_MKFS_FAILED`, `HOST_MKFS_MISSING`, `VOLUME_NO_SPACE`.
   */
  async create(request: {
    name: string;
    lengthBytes: number;
    filesystem: VolumeRecord['filesystem'];
    machineId?: string | null;
    /** Encrypts the volume, with the key of this source. */
    keys?: KeySource;
    /** Of an encrypted volume: dm-crypt may open it too. Takes more space (docs/encryption.md). */
    dmCrypt?: boolean;
  }): Promise<VolumeRecord> {
    checkLength(request.lengthBytes);
    const record = this.#newRecord(request, 'ready');
    const { keys } = request;
    return this.#changes.run(record.id, () =>
      this.#build(record, async (folder) => {
        if (keys === undefined) return this.#format(join(folder, VOLUME_FILES.data), record);
        record.encryption = await encryptNew(folder, record, {
          keys,
          headerFileBytes: this.#headerFileBytes,
          dmCrypt: request.dmCrypt === true,
          fill: (path) => this.#format(path, record, true),
        });
      }),
    );
  }

  /**
   * A new volume that is a clone of a disk of another system, at generation 1: usable at once, and `complete`
   * when nothing of it is only at the source. `lengthBytes` is that of the source, rounded up to whole
   * blocks. Rejects `VOLUME_BAD_LENGTH`, `VOLUME_NO_SPACE`.
   */
  async createImported(request: {
    name: string;
    lengthBytes: number;
    filesystem: VolumeRecord['filesystem'];
    source: ImportRecord;
  }): Promise<VolumeRecord> {
    checkLength(request.lengthBytes);
    const record = this.#newRecord(request, 'clone');
    return this.#changes.run(record.id, () =>
      this.#build(record, async (folder) => {
        await createCloneMetadata(folder, record, this.#allocate);
        await replaceFile(join(folder, VOLUME_FILES.importSource), encodeImportSource(request.source));
      }),
    );
  }

  /**
   * The files of a volume that a move will bring, in state `incoming`. Idempotent for the same generation. A
   * retained earlier generation of the same volume is kept beside it; a never activated incoming one of an
   * earlier generation is replaced. Rejects `VOLUME_EXISTS` when this worker has the volume in any other
   * state.
   */
  async createIncoming(request: {
    id: string;
    name: string;
    lengthBytes: number;
    filesystem: VolumeRecord['filesystem'];
    generation: number;
    machineId?: string | null;
    /**
     * Of an encrypted volume: its LUKS2 header, which is checked (`VOLUME_WRONG_HEADER`). With `rekey` the
     * volume gets another key from there, and a header of this worker's size; rejects then as `rekeyIncoming`
     * does too.
     */
    luks2?: {
      uuid: string;
      keyGeneration?: number;
      keyVolumeId?: string;
      holes?: 'none';
      header: Buffer;
      rekey?: KeySource;
    };
  }): Promise<VolumeRecord> {
    checkLength(request.lengthBytes);
    checkId(request.id);
    const { luks2 } = request;
    if (luks2)
      await checkHeader(luks2.header, {
        volumeId: request.id,
        uuid: luks2.uuid,
        lengthBytes: request.lengthBytes,
      });
    const record: VolumeRecord = {
      formatVersion: 1,
      id: request.id,
      name: request.name,
      lengthBytes: request.lengthBytes,
      filesystem: request.filesystem,
      generation: request.generation,
      state: 'incoming',
      createdAtMs: this.#clock.wallMs(),
      machineId: request.machineId ?? null,
      destroyAfterMs: null,
      ...(luks2 &&
        !luks2.rekey && {
          encryption: {
            uuid: luks2.uuid,
            ...(luks2.keyGeneration !== undefined && { keyGeneration: luks2.keyGeneration }),
            ...(luks2.keyVolumeId !== undefined && { keyVolumeId: luks2.keyVolumeId }),
            ...(luks2.holes && { holes: luks2.holes }),
          },
        }),
    };
    return this.#changes.run(request.id, async () => {
      const existing = await this.#find(request.id);
      if (existing) {
        const action = incomingOver(existing, record, luks2);
        if (action === 'same') {
          // Whoever made it may have died, or failed, before its name was durable.
          await syncFolder(this.directory);
          return existing;
        }
        if (action === 'refuse') throw exists(existing, request.generation);
        if (action === 'replace') await this.#destroyFolder(this.folder(existing.id), existing.id);
        if (action === 'keep') {
          await rename(
            this.folder(existing.id),
            ownPath(this.directory, `${existing.id}.g${existing.generation}`),
          );
          await syncFolder(this.directory);
        }
      }
      return this.#build(record, async (folder) => {
        await createCloneMetadata(folder, record, this.#allocate);
        const { id: volumeId, generation, lengthBytes } = record;
        await createFetchLog(join(folder, VOLUME_FILES.fetchLog), { volumeId, generation, lengthBytes });
        if (!luks2?.rekey)
          await createZeroLog(join(folder, VOLUME_FILES.zeroLog), { volumeId, generation, lengthBytes });
        if (luks2?.rekey) {
          const { keyGeneration = 1, rekey: keys, ...source } = luks2;
          record.encryption = await rekeyIncoming(folder, record, {
            keys,
            headerFileBytes: this.#headerFileBytes,
            source: { ...source, keyGeneration },
          });
        } else if (luks2) {
          await replaceFile(join(folder, VOLUME_FILES.header), luks2.header);
        }
      });
    });
  }

  /**
   * Of a volume that no server has open: what its last one wrote is on the disk, or this rejects;
   * `VOLUME_DATA_LOST` where that is known, `VOLUME_NO_SPACE`, or the error of the disk.
   */
  async makeDataDurable(id: string): Promise<void> {
    const folder = this.folder(id);
    const { generation } = await this.get(id);
    const volume = { volumeDir: folder, volumeId: id, generation };
    const loss = readDataLoss(folder, volume);
    if (loss !== null) throw lostError(volume, loss);
    try {
      await syncPath(join(folder, VOLUME_FILES.data));
    } catch (error) {
      throw storageError(error, folder);
    }
  }

  /**
   * All volumes that can be read, retained generations among them, oldest id first; and the folders that
   * cannot be read, with the reason.
   */
  async list(): Promise<{ volumes: VolumeRecord[]; broken: { folder: string; error: GodwitError }[] }> {
    const volumes: VolumeRecord[] = [];
    const broken: { folder: string; error: GodwitError }[] = [];
    for (const name of (await readdir(this.directory)).sort()) {
      if (name.startsWith('.')) continue;
      const folder = join(this.directory, name);
      try {
        volumes.push(await readRecord(folder));
      } catch (error) {
        if (!(error instanceof GodwitError)) throw error;
        broken.push({ folder, error });
      }
    }
    return { volumes, broken };
  }

  /** Rejects `VOLUME_NOT_FOUND`, `VOLUME_RECORD_CORRUPT`. */
  async get(id: string): Promise<VolumeRecord> {
    checkId(id);
    const record = await this.#find(id);
    if (record === undefined) {
      throw new GodwitError('VOLUME_NOT_FOUND', `there is no volume ${id} on this worker`, {
        values: { volumeId: id },
        nextAction: 'List the volumes with godwit volume list; it may have moved to another worker.',
      });
    }
    return record;
  }

  /** Folder of the volume's current generation: what a volume server is given. */
  folder(id: string): string {
    checkId(id);
    return ownPath(this.directory, id);
  }

  /** Allocated bytes of the sparse data file. */
  async usedBytes(id: string): Promise<number> {
    await this.get(id);
    return allocatedBytes(join(this.folder(id), VOLUME_FILES.data));
  }

  /**
   * Goes on with what the disk has of a volume that lost data at `atMs` (data-guard.ts). For a volume that
   * nobody has open. Idempotent. Rejects `VOLUME_NO_SUCH_LOSS`.
   */
  acceptDataLoss(id: string, atMs: number): Promise<AcceptedLoss> {
    return this.#changes.run(id, async () => {
      const { generation } = await this.get(id);
      const volume = { volumeId: id, generation };
      const accepted = await acceptDataLoss(this.folder(id), volume, { atMs, nowMs: this.#clock.wallMs() });
      if (accepted === null) {
        const loss = readDataLoss(this.folder(id), volume);
        throw new GodwitError(
          'VOLUME_NO_SUCH_LOSS',
          loss === null ? `volume ${id} has lost nothing` : `volume ${id} has lost something since`,
          {
            values: { volumeId: id, atMs, newestAtMs: loss?.atMs ?? null },
            nextAction: 'Look at it again: godwit volume show.',
          },
        );
      }
      this.#logger.warn(accepted, 'an operator accepted that data was lost');
      return accepted;
    });
  }

  /**
   * Lets the event happen to the volume, durably; answers the record after it (unchanged when it had happened
   * already). Rejects `VOLUME_BAD_TRANSITION`. `complete` also removes the clone's metadata and where it came
   * from.
   */
  async apply(id: string, event: VolumeEvent): Promise<VolumeRecord> {
    const applied = await this.#changes.run(id, async () => {
      const before = await this.get(id);
      const after = transition(before, event);
      if (after !== before) {
        await this.#write(this.folder(id), after);
        this.#logger.info(
          { volumeId: id, event: event.kind, state: after.state, generation: after.generation },
          'a volume changed its state',
        );
      } else {
        // What the record says may be the word of a write that failed, or died, before its name was durable.
        await syncFolder(this.folder(id));
      }
      if (event.kind === 'complete') {
        const ended = [
          ...[VOLUME_FILES.importSource, VOLUME_FILES.cloneMetadata],
          ...[VOLUME_FILES.fetchLog, VOLUME_FILES.zeroLog, VOLUME_FILES.sourceHeader],
        ];
        for (const name of ended) await rm(join(this.folder(id), name), { force: true });
      }
      return after;
    });
    if (event.kind === 'retain') await this.#dropCopiesBeyond(id);
    return applied;
  }

  /** What moves had left of it before counts as used until it is gone: not at the next sweep, but now. */
  async #dropCopiesBeyond(id: string): Promise<void> {
    const copies = (await this.#copies()).filter((copy) => copy.id === id);
    for (const copy of beyondMax(copies)) {
      await this.#destroyCopy(copy).catch((error: unknown) => {
        // It may be open; the next sweep comes for it.
        this.#logger.warn({ folder: copy.folder, reason: messageOf(error) }, 'a retained volume stays');
      });
    }
  }

  /**
   * Gives the volume to a machine or takes it back (null). Rejects `VOLUME_IN_USE` when another machine has
   * it.
   */
  assignMachine(id: string, machineId: string | null): Promise<VolumeRecord> {
    return this.#changes.run(id, async () => {
      const before = await this.get(id);
      if (before.machineId === machineId) return before;
      if (before.machineId !== null && machineId !== null) {
        throw new GodwitError('VOLUME_IN_USE', `volume ${id} belongs to machine ${before.machineId}`, {
          values: { volumeId: id, machineId: before.machineId },
          nextAction: 'A volume has at most one machine; destroy that one first or make another volume.',
        });
      }
      const after = { ...before, machineId };
      await this.#write(this.folder(id), after);
      return after;
    });
  }

  /**
   * Removes the volume and its data for ever; nothing to do where it is gone. Rejects `VOLUME_ATTACHED` while
   * a process has its data open, whatever is asked; `VOLUME_KEPT` for a sealed, retained or half-moved
   * (clone) volume without `force`.
   */
  destroy(id: string, options: { force?: boolean } = {}): Promise<void> {
    return this.#changes.run(id, async () => {
      const record = await this.#find(id);
      if (record === undefined) return;
      if (options.force !== true && (record.state === 'sealed' || record.state === 'retained')) {
        throw new GodwitError(
          'VOLUME_KEPT',
          `volume ${id} is ${record.state}: it is the way back of a move`,
          {
            values: { volumeId: id, state: record.state, destroyAfterMs: record.destroyAfterMs },
            nextAction:
              'It goes by itself when its retention is over. To destroy it now, ask again with --force.',
          },
        );
      }
      await this.#destroyFolder(this.folder(id), id);
    });
  }

  /**
   * Makes the newest retained generation of a volume a volume of its own, under a new id at generation 1, so
   * that nothing can take it for the one that moved. No byte is copied: the way back is used up. Rejects
   * `VOLUME_NOT_RETAINED`, `VOLUME_ATTACHED`, `VOLUME_ALREADY_RECOVERED`.
   */
  recover(id: string, name: string): Promise<VolumeRecord> {
    checkId(id);
    return this.#changes.run(id, async () => {
      const retained = await this.#retainedFolder(id);
      const data = join(retained.folder, VOLUME_FILES.data);
      if (isDataLocked(data)) throw attached(id);
      // A crash came between the two renames below.
      if ((await stat(data)).nlink > 1) {
        throw new GodwitError(
          'VOLUME_ALREADY_RECOVERED',
          `what volume ${id} left here is a volume of its own already`,
          {
            values: { volumeId: id, generation: retained.record.generation },
            nextAction: 'godwit volume list shows it. The old name of it goes when its retention is over.',
          },
        );
      }
      const { lengthBytes, filesystem, encryption } = retained.record;
      const record = this.#newRecord({ name, lengthBytes, filesystem }, 'ready');
      // Another volume by its id, with the key that it has.
      if (encryption) record.encryption = { keyVolumeId: id, ...encryption };
      const recovered = await this.#build(record, async (folder) => {
        await rm(join(folder, VOLUME_FILES.data));
        await link(data, join(folder, VOLUME_FILES.data));
        if (encryption)
          await link(join(retained.folder, VOLUME_FILES.header), join(folder, VOLUME_FILES.header));
      });
      await this.#remove(retained.folder);
      return recovered;
    });
  }

  async #retainedFolder(id: string): Promise<{ folder: string; record: VolumeRecord }> {
    const names = (await readdir(this.directory)).filter((name) => name === id || name.startsWith(`${id}.g`));
    const found: { folder: string; record: VolumeRecord }[] = [];
    for (const name of names) {
      const folder = join(this.directory, name);
      const record = await readRecord(folder);
      if (record.state === 'retained') found.push({ folder, record });
    }
    const newest = found.sort((left, right) => right.record.generation - left.record.generation)[0];
    if (newest) return newest;
    throw new GodwitError(
      'VOLUME_NOT_RETAINED',
      `no move left a sealed copy of volume ${id} on this worker`,
      {
        values: { volumeId: id },
        nextAction:
          'godwit volume list --all shows what is kept, and where. A copy goes when its retention is over.',
      },
    );
  }

  /**
   * Destroys every retained copy whose time is over, kept for `keepMs` at most, and the oldest of a volume
   * that has too many (retention.ts); answers their ids. One that is still open is left for the next sweep.
   */
  async sweepRetained(keepMs: number): Promise<string[]> {
    const copies = await this.#copies();
    const swept: string[] = [];
    for (const copy of await this.#retention.over(copies, keepMs)) {
      try {
        if (await this.#destroyCopy(copy)) swept.push(copy.id);
      } catch (error) {
        this.#logger.warn(
          { folder: copy.folder, reason: messageOf(error) },
          'a retained volume was not swept',
        );
      }
    }
    return swept;
  }

  /**
   * Destroys all copies that moves of a volume left here, now. Rejects `VOLUME_ATTACHED` for one that is
   * open. Answers how many there were.
   */
  async destroyCopies(id: string): Promise<number> {
    checkId(id);
    let destroyed = 0;
    for (const copy of await this.#copies())
      if (copy.id === id && (await this.#destroyCopy(copy))) destroyed++;
    return destroyed;
  }

  /** What moves left, of all volumes. */
  async #copies(): Promise<(RetainedCopy & { folder: string })[]> {
    const copies: (RetainedCopy & { folder: string })[] = [];
    for (const name of await readdir(this.directory)) {
      if (name.startsWith('.')) continue;
      const folder = join(this.directory, name);
      const record = await readRecord(folder).catch(() => null);
      if (record?.state !== 'retained') continue;
      const { id, generation, destroyAfterMs } = record;
      copies.push({ id, generation, destroyAfterMs, folder });
    }
    return copies;
  }

  /** False: it has become another while others were at it. */
  #destroyCopy({ id, generation, folder }: RetainedCopy & { folder: string }): Promise<boolean> {
    return this.#changes.run(id, async () => {
      const record = await readRecord(folder);
      if (record.state !== 'retained' || record.generation !== generation) return false;
      await this.#destroyFolder(folder, id);
      return true;
    });
  }

  /**
   * False: the filesystem of the volumes cannot hold a file of this length (ext4 ends below 16 TiB). Looks by
   * making one that nobody sees.
   */
  holdsFileOf(lengthBytes: number): boolean {
    return holdsFileOf(this.directory, lengthBytes);
  }

  /** Of the filesystem that holds the volumes, and of the volumes on it. */
  async capacity(): Promise<VolumeCapacity> {
    const filesystem = await statfs(this.directory);
    const { volumes } = await this.list();
    let usedBytes = 0;
    let logicalBytes = 0;
    for (const record of volumes) {
      logicalBytes += record.lengthBytes;
      usedBytes += await this.usedBytesOf(record);
    }
    return {
      totalBytes: filesystem.blocks * filesystem.bsize,
      freeBytes: filesystem.bavail * filesystem.bsize,
      logicalBytes,
      usedBytes,
    };
  }

  #newRecord(
    request: {
      name: string;
      lengthBytes: number;
      filesystem: VolumeRecord['filesystem'];
      machineId?: string | null;
    },
    state: VolumeRecord['state'],
  ): VolumeRecord {
    return {
      formatVersion: 1,
      id: `v_${ulid(this.#clock.wallMs(), () => this.#random.below(2 ** 32) / 2 ** 32).toLowerCase()}`,
      name: request.name,
      lengthBytes: request.lengthBytes,
      filesystem: request.filesystem,
      generation: 1,
      state,
      createdAtMs: this.#clock.wallMs(),
      machineId: request.machineId ?? null,
      destroyAfterMs: null,
    };
  }

  /** Allocated bytes of the file of that generation; 0 where it is not there. */
  async usedBytesOf(record: Pick<VolumeRecord, 'id' | 'generation'>): Promise<number> {
    const folders = [record.id, `${record.id}.g${record.generation}`];
    for (const name of folders.reverse()) {
      const bytes = await allocatedBytes(join(this.directory, name, VOLUME_FILES.data)).catch(
        () => undefined,
      );
      if (bytes !== undefined) return bytes;
    }
    return 0;
  }

  async #find(id: string): Promise<VolumeRecord | undefined> {
    try {
      await stat(this.folder(id));
    } catch (error) {
      if (systemErrorCode(error) === 'ENOENT') return undefined;
      throw error;
    }
    return readRecord(this.folder(id));
  }

  /** What begins with a dot is no volume: it is being made, or was one. */
  #hidden(prefix: string, name: string): string {
    return join(this.directory, `${prefix}${basename(ownPath(this.directory, name))}`);
  }

  async #build(record: VolumeRecord, fill: (folder: string) => Promise<void>): Promise<VolumeRecord> {
    const temporary = this.#hidden(NEW_PREFIX, record.id);
    await rm(temporary, { recursive: true, force: true });
    try {
      await mkdir(temporary, { mode: 0o700 });
      const data = await open(join(temporary, VOLUME_FILES.data), 'wx', 0o600);
      try {
        await data.truncate(record.lengthBytes);
      } finally {
        await data.close();
      }
      await fill(temporary);
      await replaceFile(join(temporary, VOLUME_FILES.record), encodeRecord(record));
      for (const name of await readdir(temporary)) await syncPath(join(temporary, name));
      await syncPath(temporary);
      await rename(temporary, this.folder(record.id));
      await syncPath(this.directory);
    } catch (error) {
      await rm(temporary, { recursive: true, force: true }).catch(() => {});
      throw storageError(error, this.directory);
    }
    this.#logger.info(
      { volumeId: record.id, lengthBytes: record.lengthBytes, state: record.state },
      'a volume was made',
    );
    return record;
  }

  async #format(dataPath: string, record: VolumeRecord, encrypted = false): Promise<void> {
    const { filesystem, lengthBytes } = record;
    if (filesystem === 'none') return;
    // The loop device of an encrypted volume has sectors of 4096 bytes.
    const sectorBytes = encrypted ? ENCRYPTED_SECTOR_BYTES : 512;
    // One at a time: each takes a processor, and the disk.
    await this.#formats.run(() =>
      mkfs({ filesystem, path: dataPath, lengthBytes, sectorBytes }, this.#tools),
    );
  }

  async #write(folder: string, record: VolumeRecord): Promise<void> {
    const path = join(folder, VOLUME_FILES.record);
    try {
      await replaceFile(path, encodeRecord(record));
    } catch (error) {
      throw storageError(error, folder);
    }
  }

  async #destroyFolder(folder: string, id: string): Promise<void> {
    if (isDataLocked(join(folder, VOLUME_FILES.data))) throw attached(id);
    await this.#remove(folder);
    this.#logger.info({ volumeId: id }, 'a volume was destroyed');
  }

  async #remove(folder: string): Promise<void> {
    const gone = this.#hidden(GONE_PREFIX, basename(folder));
    await rm(gone, { recursive: true, force: true });
    await rename(folder, gone);
    await syncPath(this.directory);
    await rm(gone, { recursive: true, force: true });
  }
}

export type VolumeStoreOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  tools?: Tools;
  /** Of the LUKS2 headers that are made here, key slots included. Default `DEFAULT_HEADER_FILE_BYTES`. */
  headerFileBytes?: number;
  /** Default: that of the kernel. */
  allocate?: typeof allocate;
};

export type VolumeCapacity = {
  totalBytes: number;
  /** What may still be written there. */
  freeBytes: number;
  /** Sum of the lengths of all volumes: what they would take if every block were used. */
  logicalBytes: number;
  /** Sum of what they take now. */
  usedBytes: number;
};

const RETENTION_FILE = '.retention.json';
const NEW_PREFIX = '.new-';
const GONE_PREFIX = '.gone-';
const ID_PATTERN = /^v_[0-9a-z]{1,64}$/;

/** Of a volume up to 2 TiB. */
const METADATA_RESERVED_MAX_BYTES = 66 * 2 ** 20;

/**
 * Durable validity bits without any bit set. Their space is reserved: a flush of the guest depends on them,
 * and must not fail because the disk became full meanwhile. Of a volume so large that this would take
 * gigabytes for what is mostly holes, only the summary is.
 */
async function createCloneMetadata(
  folder: string,
  record: VolumeRecord,
  take: typeof allocate,
): Promise<void> {
  const { id: volumeId, generation, lengthBytes } = record;
  const path = join(folder, VOLUME_FILES.cloneMetadata);
  const device = await FileDevice.create(path, { lengthBytes: metadataLengthBytes(lengthBytes) });
  try {
    await CloneMetadata.create(device, { volumeId, generation, lengthBytes });
    const summaryAt = device.lengthBytes <= METADATA_RESERVED_MAX_BYTES ? 0 : summaryOffsetBytes(lengthBytes);
    await reserve(device, summaryAt, device.lengthBytes - summaryAt, take);
  } finally {
    await device.close();
  }
}

function checkLength(lengthBytes: number): void {
  if (Number.isSafeInteger(lengthBytes) && lengthBytes >= BLOCK_BYTES && lengthBytes % BLOCK_BYTES === 0)
    return;
  throw new GodwitError('VOLUME_BAD_LENGTH', `a volume cannot have ${lengthBytes} bytes`, {
    values: { lengthBytes },
    nextAction: `Give a size that is a multiple of ${BLOCK_BYTES} bytes.`,
  });
}

function checkId(id: string): void {
  if (ID_PATTERN.test(id)) return;
  throw new GodwitError('VOLUME_BAD_ID', `${JSON.stringify(id.slice(0, 80))} is not the id of a volume`, {
    nextAction: 'Ids look like v_01jd…; list the volumes with godwit volume list.',
  });
}

/** What an incoming volume does with the one of the same id that is here already. */
function incomingOver(
  existing: VolumeRecord,
  incoming: VolumeRecord,
  luks2: { uuid: string; rekey?: KeySource } | undefined,
): 'same' | 'replace' | 'keep' | 'refuse' {
  if (existing.state === 'incoming') {
    if (existing.generation > incoming.generation) return 'refuse';
    const { encryption } = existing;
    // The same ciphertext, and the same thing to be done with it.
    const sameKey = luks2?.rekey ? encryption?.source?.uuid : encryption?.source ? null : encryption?.uuid;
    const same =
      existing.generation === incoming.generation &&
      existing.lengthBytes === incoming.lengthBytes &&
      sameKey === luks2?.uuid;
    return same ? 'same' : 'replace';
  }
  // A volume that comes back: what it left here is somebody's way back until its retention is over.
  if (existing.state === 'retained' && existing.generation < incoming.generation) return 'keep';
  return 'refuse';
}

function exists(existing: VolumeRecord, generation: number): GodwitError {
  return new GodwitError(
    'VOLUME_EXISTS',
    `volume ${existing.id} is here already, ${existing.state} at generation ${existing.generation}`,
    {
      values: {
        volumeId: existing.id,
        state: existing.state,
        existingGeneration: existing.generation,
        generation,
      },
      nextAction: 'Another move of this volume is not over here; wait for it or choose another target.',
    },
  );
}

function attached(id: string): GodwitError {
  return new GodwitError('VOLUME_ATTACHED', `the data of volume ${id} is open in a volume server`, {
    values: { volumeId: id },
    nextAction: 'Stop the machine (or end the move) that uses it, then ask again.',
  });
}

async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512;
}
