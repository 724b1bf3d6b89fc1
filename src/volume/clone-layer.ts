import { join } from 'node:path';
import type { CloneSpec, VolumeServerSpec } from '../attach/server-spec.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { FileDevice } from '../block/file-device.ts';
import { CloneDevice } from '../clone/clone-device.ts';
import { CloneMetadata, metadataLengthBytes } from '../clone/metadata.ts';
import { type InitiatorOptions, IscsiInitiator } from '../iscsi/index.ts';
import { bootId } from '../sys/boot-id.ts';
import { VOLUME_FILES } from './files.ts';
import { SourceDevice } from './source-device.ts';
import { exportSerial } from './specs.ts';
import { openValidityFile, type ValidityFile } from './validity-file.ts';

/** The clone layer of a volume, and what it holds. A module of its own: a plain volume does without this code and its memory. */
export type CloneLayer = {
  device: CloneDevice;
  source: SourceDevice;
  validity: ValidityFile;
  validityPath: string;
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
  let local: FileDevice | undefined;
  try {
    const metadata = await CloneMetadata.open(metadataDevice, { volumeId, generation, lengthBytes });
    validity = openValidityFile({
      path: cloneSpec.validityPath,
      volumeId,
      generation,
      lengthBytes,
      bootId: bootId(),
    });
    local = await FileDevice.open({
      file: join(spec.volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: BLOCK_BYTES,
    });
    const initiatorOptions = initiatorOptionsOf(spec, cloneSpec, options);
    const source = new SourceDevice({
      lengthBytes,
      blockBytes: BLOCK_BYTES,
      open: () => IscsiInitiator.open(initiatorOptions),
      connect: () => IscsiInitiator.connect(initiatorOptions, { timeoutMs: LOGIN_TIMEOUT_MS }),
    });
    const device = await CloneDevice.open({
      local,
      source,
      metadata,
      validityWords: validity.words,
      validityIsCurrent: validity.current,
      clock,
      logger,
      blockBytes: BLOCK_BYTES,
      hydration: cloneSpec.hydration,
      localWrittenByOthers: true,
      wireBytesBefore: validity.wireBytes,
      onHydrated: options.onHydrated,
    });
    return { device, source, validity, validityPath: cloneSpec.validityPath };
  } catch (error) {
    validity?.close();
    await local?.close();
    await metadataDevice.close();
    throw error;
  }
}

/** The generation that is cloned is the one that was sealed: the one before the clone's own. */
function initiatorOptionsOf(
  spec: VolumeServerSpec,
  cloneSpec: CloneSpec,
  options: CloneLayerOptions,
): InitiatorOptions & { expected: { lengthBytes: number } } {
  const { source } = cloneSpec;
  return {
    portals: [{ host: source.host, port: source.port }],
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
