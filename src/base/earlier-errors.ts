import type { ErrorValues, Retry } from './errors.ts';

/*
 * Versions before the field `retry` decided by these codes whether to try again. Their errors still come:
 * from a worker, a shim or a volume server that was not replaced yet, and from journals. A code that is made
 * from now on says for itself, and is never added here.
 */

const NEVER = new Set([
  'ISCSI_TLS_REFUSED',
  'VOLUME_NO_CERTIFICATE',
  'SYS_TLS_UNREADABLE',
  'SYS_TLS_BAD_FILE',
  'VOLUME_NO_KEYS',
  'VOLUME_WRONG_HEADER',
  'VOLUME_NO_SPACE',
  'VOLUME_DISK_FULL',
  'HOST_TOOL_MISSING',
  'HOST_UNKNOWN_OUTPUT',
  'HOST_MAPPER_MISSING',
  'HOST_MAPPER_NO_TARGET',
  'HOST_MAPPER_BUSY',
  'HOST_ISCSI_NO_DAEMON',
  'MACHINE_CGROUP_MISSING',
  'MACHINE_CGROUP_FAILED',
  'MACHINE_UNKNOWN_USER',
  'MACHINE_BAD_MOUNT_PATH',
  'MACHINE_BAD_HOST_FOLDER',
  'MACHINE_BAD_DEVICE',
  'MACHINE_BAD_ENVIRONMENT',
  'MACHINE_VOLUME_OUT_OF_REACH',
  'MACHINE_PATH_TOO_LONG',
  'MACHINE_NAME_TAKEN',
  'MACHINE_FS_HELD',
  'MACHINE_FS_FROZEN',
  'MACHINE_DEVICE_HELD',
  'VOLUME_BAD_TRANSITION',
  'VOLUME_RECORD_CORRUPT',
  'WORKER_VOLUME_SERVED',
  'MIGRATION_REFUSED',
  'MIGRATION_CONTENT_UNEXPLAINED',
]);
const LATER = new Set([
  'RPC_TIMEOUT',
  'RPC_CLOSED',
  'MACHINE_SHIM_GONE',
  'MACHINE_SHIM_NOT_STARTED',
  'MACHINE_KILL_STUCK',
  'ATTACH_SERVER_NOT_READY',
  'ATTACH_SERVER_DIED',
  'HOST_TOOL_STUCK',
  'WORKER_EXPORT_GONE',
  'API_UNREACHABLE',
]);

/** Pure. */
export function retryOfEarlier(code: string, values: ErrorValues): Retry {
  if (NEVER.has(code) || /^(CRYPT|PLANE)_/.test(code)) return 'never';
  return LATER.has(code) || values?.timedOut === true ? 'later' : 'unknown';
}
