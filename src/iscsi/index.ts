/**
 * iSCSI (RFC 7143): a target that exports block devices, and an initiator that is one. `godwit/iscsi` for
 * other programs.
 */
export { type Clock, systemClock } from '../base/clock.ts';
export { GodwitError, isGodwitError } from '../base/errors.ts';
export { type Logger, silentLogger } from '../base/logger.ts';
export { type Random, systemRandom } from '../base/random.ts';
export type { BlockDevice, Extent } from '../block/block-device.ts';
export { FileDevice } from '../block/file-device.ts';
export { MemoryDevice } from '../block/memory-device.ts';
export type {
  ReadOptions,
  ReadPriority,
  RemoteState,
  RemoteStatistics,
} from '../remote/remote-disk.ts';
export type { ChapAlgorithmName } from './chap.ts';
export { IscsiInitiator } from './initiator.ts';
export type { InitiatorOptions, Portal } from './initiator-dialect.ts';
export type { UnitIdentity } from './initiator-unit.ts';
export { TARGET_LIMITS, type TargetLimits } from './limits.ts';
export type { ChapCredentials } from './login-initiator.ts';
export {
  ANY_INITIATOR,
  type ExportOptions,
  type IscsiGrant,
  IscsiTarget,
  type TargetExport,
  type TargetOptions,
  type TargetStatistics,
} from './target.ts';
