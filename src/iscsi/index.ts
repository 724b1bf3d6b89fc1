/** iSCSI (RFC 7143): a target that exports block devices, and an initiator that is one. */
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
  type ExportOptions,
  type IscsiGrant,
  IscsiTarget,
  type TargetExport,
  type TargetOptions,
  type TargetStatistics,
} from './target.ts';
