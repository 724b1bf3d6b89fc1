/** The volumes of one worker: what machines, migration and the worker use of this room. */

export * from '../opening/spec.ts';
export * from '../opening/status.ts';
export { lostError, readDataLoss } from './data-guard.ts';
export { isDataLocked } from './data-lock.ts';
export { diskReserveBytes } from './disk-room.ts';
export { encryptionCapabilities, readGeometry, readHeaderFile } from './encryption.ts';
export { VOLUME_FILES } from './files.ts';
export {
  bytesAvoided,
  freeMapDigest,
  freezeFreeMap,
  readSealedFreeMap,
  writeFreeMap,
} from './free-map-file.ts';
export { readImportSource } from './import-source-file.ts';
export { VolumeRecord } from './record.ts';
export { readRecord } from './record-file.ts';
export {
  cloneSpec,
  exportSpec,
  importSpec,
  newChapSecret,
  newGrant,
  noKeysError,
  ownSpec,
  serveSpec,
  sourceSpec,
  targetIqn,
  validityPath,
} from './specs.ts';
export { type VolumeCapacity, VolumeStore, type VolumeStoreOptions } from './store.ts';
export { transition, type VolumeEvent } from './transition.ts';
export { removeValidityFile, validityFilesBytes } from './validity-file.ts';
