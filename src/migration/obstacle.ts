import { type GodwitError, isGodwitError } from '../base/errors.ts';
import { Abort } from '../journal/outcome.ts';

/*
 * What stands in the way of a step has a name, or it is only slow. An obstacle that trying again does not lift sends the run back at once, before
 * anybody waits for a deadline; slowness and silence never do, once the machine is stopped (journal/run.ts, `whenQuiet`).
 */

const CERTIFICATE_TROUBLE = [
  'ISCSI_TLS_REFUSED',
  'VOLUME_NO_CERTIFICATE',
  'SYS_TLS_UNREADABLE',
  'SYS_TLS_BAD_FILE',
];
/** And every error of crypt/: keys, headers, key slots. */
const ENCRYPTION_TROUBLE = ['VOLUME_NO_KEYS', 'VOLUME_WRONG_HEADER'];
/** What a host lacks does not come within a minute: room, a program, a module, a daemon, a name. And every error of plane/. */
const HOST_TROUBLE = [
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
];
/** While the machine is stopped: somebody holds what must be let go, or it is not what it was. */
const HELD = [
  'MACHINE_FS_HELD',
  'MACHINE_FS_FROZEN',
  'MACHINE_DEVICE_HELD',
  'VOLUME_BAD_TRANSITION',
  'VOLUME_RECORD_CORRUPT',
  'WORKER_VOLUME_SERVED',
];
const LASTING = new Set([...CERTIFICATE_TROUBLE, ...ENCRYPTION_TROUBLE, ...HOST_TROUBLE, ...HELD]);
/** No answer, or none yet: says nothing about what stands in the way. */
const SLOW = new Set([
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
/** Of what has another name: tries after which it does not pass by itself either. */
const TRIES_MAX = 5;

/** True for an error that trying again does not lift. Pure. */
export function isLasting(error: unknown): error is GodwitError {
  return isGodwitError(error) && (LASTING.has(error.code) || /^(CRYPT|PLANE)_/.test(error.code));
}

/** True for an error that only says that something took long, or did not answer. Pure. */
export function isSlow(error: unknown): boolean {
  return isGodwitError(error) && (SLOW.has(error.code) || error.values.timedOut === true);
}

/** Before the stop: what lasts ends the step at once, everything else is tried again while something advances. */
export async function nowOrNever<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw isLasting(error) ? new Abort(error) : error;
  }
}

/** While the machine is stopped: the same; and what is neither slow nor known is tried a few times, because the machine waits. */
export async function orBack<T>(attempt: number, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const back = isLasting(error) || (attempt >= TRIES_MAX && isGodwitError(error) && !isSlow(error));
    throw back ? new Abort(error) : error;
  }
}
