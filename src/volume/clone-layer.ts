import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { CloneDevice } from '../clone/clone-device.ts';
import type { FetchDigest, FetchLog } from '../clone/fetch-log.ts';
import type { CloneSource } from '../clone/fetcher.ts';
import { CloneMetadata, metadataLengthBytes } from '../clone/metadata.ts';
import type { ZeroLog } from '../clone/zero-log.ts';
import { type InitiatorOptions, IscsiInitiator, type Portal } from '../iscsi/index.ts';
import type { CloneSpec, ImportSpec, SourceSpec } from '../opening/spec.ts';
import { bootId } from '../sys/boot-id.ts';
import { filesystemInstance } from '../sys/filesystem-instance.ts';
import { parentProcess } from '../sys/parent-process.ts';
import { sha256 } from '../sys/sha256.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import { type DataGuard, GuardedFile } from './data-guard.ts';
import type { DecryptedSource } from './decrypted-source.ts';
import { type DiskRoom, roomyArrivals } from './disk-room.ts';
import { openFetchLog } from './fetch-log-file.ts';
import { VOLUME_FILES } from './files.ts';
import type { RekeyedFile } from './rekeyed-file.ts';
import { SourceDevice, type SourceDeviceOptions } from './source-device.ts';
import { exportSerial } from './specs.ts';
import { openValidityFile, type ValidityFile, writtenPath } from './validity-file.ts';
import { openZeroLog } from './zero-log-file.ts';

/**
 * The clone layer of a volume, and what it holds. A module of its own: a plain volume does without this code
 * and its memory.
 */
export type CloneLayer = {
  device: CloneDevice;
  /**
   * The content of `device` is plaintext, because its source has another key; else it is what the data file
   * holds.
   */
  plaintext: boolean;
  source: SourceDevice;
  validity: ValidityFile;
  validityPath: string;
  /** What is fetched goes through this; closed after `device`. */
  arrivals: { close(): Promise<void> };
  /** What proving the move needs; null for a clone of a disk of another system. */
  proof: {
    log: FetchLog;
    written: ValidityFile;
    local: BlockDevice;
    source: CloneSource;
    /** Of the servers before this one. */
    refetchedBytes: () => number;
    /** The content of `device` in the data file that is read by another way. */
    stored: (file: Pick<BlockDevice, 'read'>) => Pick<BlockDevice, 'read'>;
  } | null;
};

export type CloneLayerOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  onHydrated: () => void;
  guard: DataGuard;
  /** Left out: fetched blocks take the room that there is. */
  room?: DiskRoom;
  /** For a source under another key. */
  rekey?: Rekey;
};

/** How a clone comes from one key to another: the plaintexts of the data file and of what is fetched. */
export type Rekey = (
  local: BlockDevice,
  source: CloneSource,
) => { local: RekeyedFile; source: DecryptedSource };

/** Loop devices have sectors of 512 bytes. */
const BLOCK_BYTES = 512;
/** Sectors of the encryption are this at most, and the loop device over them has it. */
const PLAINTEXT_BLOCK_BYTES = 4096;

/**
 * Rejects with the errors of clone/metadata.ts, validity-file.ts and FileDevice. Calls nobody on the network.
 */
export async function openClone(
  spec: CloneSpec | ImportSpec,
  options: CloneLayerOptions,
): Promise<CloneLayer> {
  const { clock, logger } = options;
  const { volumeId, generation, lengthBytes, clone } = spec;
  const metadataDevice = await openMetadataFile(clone.metadataPath, lengthBytes);
  let validity: ValidityFile | undefined;
  let written: ValidityFile | undefined;
  let log: FetchLog | undefined;
  let zeroLog: ZeroLog | undefined;
  let local: BlockDevice | undefined;
  let arrivals: FileDevice | undefined;
  try {
    const metadata = await CloneMetadata.open(metadataDevice, { volumeId, generation, lengthBytes });
    const identity = { volumeId, generation, lengthBytes };
    const holder = {
      bootId: bootId(),
      instance: filesystemInstance(spec.volumeDir),
      supervisor: parentProcess(),
    };
    validity = openValidityFile({ path: clone.validityPath, ...identity, ...holder });
    if (spec.kind === 'clone') {
      written = openValidityFile({
        path: writtenPath(clone.validityPath),
        ...identity,
        ...holder,
      });
    }
    options.guard.share(validity.unflushed);
    if (validity.guestLost) options.guard.lose('its filesystem was mounted again under the running machine');
    const file = await FileDevice.open({
      file: join(spec.volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: BLOCK_BYTES,
      flushFailureStays: false,
    });
    local = new GuardedFile(file, options.guard);
    // A descriptor of its own: the kernel says once to each what it could not write.
    arrivals = await FileDevice.open({
      file: join(spec.volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: BLOCK_BYTES,
    });
    const source = new SourceDevice({
      lengthBytes,
      blockBytes: BLOCK_BYTES,
      ...(await reach(spec, options)),
    });
    const rekeyed = options.rekey?.(local, source);
    const sides = rekeyed ?? { local, source };
    ({ local } = sides);
    if (written) {
      // What is proved is what crossed the wire: the ciphertext of the source.
      const digest: FetchDigest = (offsetBytes, bytes) =>
        sha256(rekeyed ? rekeyed.source.ciphertextUnderOldKey(offsetBytes, bytes) : bytes);
      log = await openFetchLog(join(spec.volumeDir, VOLUME_FILES.fetchLog), identity, digest);
    }
    // Under another key all is in blocks of 4096 bytes, and none is ever cut.
    if (!rekeyed) {
      zeroLog = (await openZeroLog(join(spec.volumeDir, VOLUME_FILES.zeroLog), identity)) ?? undefined;
      if (zeroLog === undefined)
        logger.warn(
          { volumeId },
          'no room for zero.log: a discard that cuts an absent block waits for the source',
        );
    }
    const live = validity;
    const store = rekeyed?.local.over(arrivals) ?? arrivals;
    const device = await CloneDevice.open({
      ...sides,
      arrivals: options.room ? roomyArrivals(store, options.room) : store,
      onUnplaced: (bytes) => {
        live.unplacedBytes = bytes;
      },
      metadata,
      validity: validity.memory,
      owed: validity.owed,
      validityIsCurrent: validity.current,
      ...(log && { fetchLog: log }),
      ...(zeroLog && { zeroLog }),
      ...(written && { written: written.memory, writtenIsCurrent: written.current && written.tellsAll }),
      clock,
      logger,
      blockBytes: rekeyed ? PLAINTEXT_BLOCK_BYTES : BLOCK_BYTES,
      hydration: clone.hydration,
      localWrittenByOthers: true,
      checkGuest: () => options.guard.check(),
      wireBytesBefore: validity.wireBytes,
      onHydrated: options.onHydrated,
    });
    // Who removed it took away which blocks the guest had written: the source has older content there.
    if (validity.fresh && spec.follows && spec.access === 'writable' && !device.complete)
      options.guard.lose('its live map was removed under the running machine');
    if (written) written.tellsAll = true;
    const stored = (file: Pick<BlockDevice, 'read'>) => rekeyed?.local.decrypting(file) ?? file;
    const refetchedBytes = () => live.refetchedBytes;
    const proof = log && written ? { log, written, ...sides, stored, refetchedBytes } : null;
    return {
      device,
      plaintext: rekeyed !== undefined,
      source,
      validity,
      validityPath: clone.validityPath,
      proof,
      arrivals,
    };
  } catch (error) {
    validity?.close();
    written?.close();
    await log?.close();
    await zeroLog?.close();
    await local?.close();
    await arrivals?.close();
    await metadataDevice.close();
    throw error;
  }
}

/** As long as the version that made it wanted it to be. */
async function openMetadataFile(path: string, lengthBytes: number): Promise<FileDevice> {
  const fileBytes = (await stat(path).catch(() => null))?.size ?? Number.POSITIVE_INFINITY;
  return FileDevice.open({
    file: path,
    lengthBytes: Math.min(metadataLengthBytes(lengthBytes), fileBytes - (fileBytes % BLOCK_BYTES)),
    blockBytes: BLOCK_BYTES,
    // The committer writes the sectors of a round again that failed.
    flushFailureStays: false,
  });
}

/** How the source is opened in the background, and with somebody waiting for it. Calls nobody yet. */
async function reach(
  spec: CloneSpec | ImportSpec,
  options: CloneLayerOptions,
): Promise<Pick<SourceDeviceOptions, 'open' | 'connect'>> {
  if (spec.kind === 'import') {
    // Code of its own, which the clones of moves do without.
    const { connectImportSource, openImportSource, parseImportSource } = await import('./import-source.ts');
    const { location, ...expected } = spec.clone.source;
    const imported = parseImportSource(location);
    return {
      open: () => openImportSource(imported, { ...options, ...expected }),
      connect: () => connectImportSource(imported, { ...options, ...expected }, PATIENCE.firstLogin.ms),
    };
  }
  const initiatorOptions = await initiatorOptionsOf(spec, options);
  return {
    open: () => IscsiInitiator.open(initiatorOptions),
    connect: () => IscsiInitiator.connect(initiatorOptions, { timeoutMs: PATIENCE.firstLogin.ms }),
  };
}

/** The generation that is cloned is the one that was sealed: the one before the clone's own. */
async function initiatorOptionsOf(
  spec: CloneSpec,
  options: CloneLayerOptions,
): Promise<InitiatorOptions & { expected: { lengthBytes: number } }> {
  const { source, tls } = spec.clone;
  return {
    portals: [{ host: source.host, port: source.port, ...(await portalTls(source, tls, options.logger)) }],
    targetIqn: source.targetIqn,
    initiatorIqn: source.initiatorIqn,
    chap: { user: source.chapUser, secret: source.chapSecret },
    lun: source.lun,
    expected: {
      lengthBytes: spec.lengthBytes,
      blockBytes: BLOCK_BYTES,
      serial: exportSerial(spec.volumeId, spec.generation - 1),
    },
    clock: options.clock,
    random: options.random,
    logger: options.logger,
  };
}

/** Throws `VOLUME_NO_CERTIFICATE` and what `TlsIdentity` throws. */
async function portalTls(
  source: SourceSpec,
  files: TlsFiles | undefined,
  logger: Logger,
): Promise<Pick<Portal, 'tls'>> {
  if (source.tls !== true) return {};
  if (!files) {
    throw new GodwitError(
      'VOLUME_NO_CERTIFICATE',
      'the source of this clone is reached over TLS, and this worker has no certificate',
      {
        values: { host: source.host, port: source.port },
        retry: 'never',
        nextAction: 'Start this worker with --tls-cert, --tls-key and --tls-ca again.',
      },
    );
  }
  const { TlsIdentity } = await import('../sys/tls-identity.ts');
  return { tls: new TlsIdentity(files, logger) };
}
