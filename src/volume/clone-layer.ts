import { join } from 'node:path';
import type { CloneSpec, SourceSpec, VolumeServerSpec } from '../attach/server-spec.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { FileDevice } from '../block/file-device.ts';
import { CloneDevice } from '../clone/clone-device.ts';
import type { FetchLog } from '../clone/fetch-log.ts';
import { CloneMetadata, metadataLengthBytes } from '../clone/metadata.ts';
import { type InitiatorOptions, IscsiInitiator, type Portal } from '../iscsi/index.ts';
import { bootId } from '../sys/boot-id.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import { openFetchLog } from './fetch-log-file.ts';
import { VOLUME_FILES } from './files.ts';
import { SourceDevice, type SourceDeviceOptions } from './source-device.ts';
import { exportSerial } from './specs.ts';
import { openValidityFile, type ValidityFile, writtenPath } from './validity-file.ts';

/** The clone layer of a volume, and what it holds. A module of its own: a plain volume does without this code and its memory. */
export type CloneLayer = {
  device: CloneDevice;
  source: SourceDevice;
  validity: ValidityFile;
  validityPath: string;
  /** What proving the move needs; null for a clone of a disk of another system. */
  proof: { log: FetchLog; written: ValidityFile; local: FileDevice } | null;
};

export type CloneLayerOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  onHydrated: () => void;
};

/** Loop devices have sectors of 512 bytes. */
const BLOCK_BYTES = 512;
/** How long the first login may take, other tries included. */
const LOGIN_TIMEOUT_MS = 10_000;

/** Rejects with the errors of clone/metadata.ts, validity-file.ts and FileDevice. Calls nobody on the network. */
export async function openClone(
  spec: VolumeServerSpec,
  cloneSpec: CloneSpec,
  options: CloneLayerOptions,
): Promise<CloneLayer> {
  const { clock, logger } = options;
  const { volumeId, generation, lengthBytes } = spec;
  const metadataDevice = await FileDevice.open({
    file: cloneSpec.metadataPath,
    lengthBytes: metadataLengthBytes(lengthBytes),
    blockBytes: BLOCK_BYTES,
  });
  let validity: ValidityFile | undefined;
  let written: ValidityFile | undefined;
  let log: FetchLog | undefined;
  let local: FileDevice | undefined;
  try {
    const metadata = await CloneMetadata.open(metadataDevice, { volumeId, generation, lengthBytes });
    const identity = { volumeId, generation, lengthBytes };
    validity = openValidityFile({ path: cloneSpec.validityPath, ...identity, bootId: bootId() });
    if (!('location' in cloneSpec.source)) {
      written = openValidityFile({
        path: writtenPath(cloneSpec.validityPath),
        ...identity,
        bootId: bootId(),
      });
      log = await openFetchLog(join(spec.volumeDir, VOLUME_FILES.fetchLog), identity);
    }
    local = await FileDevice.open({
      file: join(spec.volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: BLOCK_BYTES,
    });
    const source = new SourceDevice({
      lengthBytes,
      blockBytes: BLOCK_BYTES,
      ...(await reach(spec, cloneSpec.source, options)),
    });
    const device = await CloneDevice.open({
      local,
      source,
      metadata,
      validityWords: validity.words,
      validityIsCurrent: validity.current,
      ...(log && { fetchLog: log }),
      ...(written && { writtenWords: written.words, writtenIsCurrent: written.current && written.tellsAll }),
      clock,
      logger,
      blockBytes: BLOCK_BYTES,
      hydration: cloneSpec.hydration,
      localWrittenByOthers: true,
      wireBytesBefore: validity.wireBytes,
      onHydrated: options.onHydrated,
    });
    if (written) written.tellsAll = true;
    const proof = log && written ? { log, written, local } : null;
    return { device, source, validity, validityPath: cloneSpec.validityPath, proof };
  } catch (error) {
    validity?.close();
    written?.close();
    await log?.close();
    await local?.close();
    await metadataDevice.close();
    throw error;
  }
}

/** How the source is opened in the background, and with somebody waiting for it. Calls nobody yet. */
async function reach(
  spec: VolumeServerSpec,
  source: CloneSpec['source'],
  options: CloneLayerOptions,
): Promise<Pick<SourceDeviceOptions, 'open' | 'connect'>> {
  if ('location' in source) {
    // Code of its own, which the clones of moves do without.
    const { connectImportSource, openImportSource, parseImportSource } = await import('./import-source.ts');
    const imported = parseImportSource(source.location);
    const expected = { sourceLengthBytes: source.sourceLengthBytes };
    return {
      open: () => openImportSource(imported, { ...options, ...expected }),
      connect: () => connectImportSource(imported, { ...options, ...expected }, LOGIN_TIMEOUT_MS),
    };
  }
  const initiatorOptions = await initiatorOptionsOf(spec, source, options);
  return {
    open: () => IscsiInitiator.open(initiatorOptions),
    connect: () => IscsiInitiator.connect(initiatorOptions, { timeoutMs: LOGIN_TIMEOUT_MS }),
  };
}

/** The generation that is cloned is the one that was sealed: the one before the clone's own. */
async function initiatorOptionsOf(
  spec: VolumeServerSpec,
  source: SourceSpec,
  options: CloneLayerOptions,
): Promise<InitiatorOptions & { expected: { lengthBytes: number } }> {
  return {
    portals: [
      { host: source.host, port: source.port, ...(await portalTls(source, spec.clone?.tls, options.logger)) },
    ],
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
        nextAction: 'Start this worker with --tls-cert, --tls-key and --tls-ca again.',
      },
    );
  }
  const { TlsIdentity } = await import('../sys/tls-identity.ts');
  return { tls: new TlsIdentity(files, logger) };
}
