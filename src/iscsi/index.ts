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
export type { ChapAlgorithmName } from './chap.ts';
export {
  type InitiatorOptions,
  type InitiatorState,
  type InitiatorStatistics,
  IscsiInitiator,
  type Portal,
  type ReadOptions,
  type ReadPriority,
  type UnitIdentity,
} from './initiator.ts';
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
