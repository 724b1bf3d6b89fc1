import { join } from 'node:path';
import { GodwitError } from '../base/errors.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { AttachSpec } from '../opening/spec.ts';
import { SHIM_FILES } from '../shim/protocol.ts';

/** sun_path of unix(7), without its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;

/** Where a machine's volume is an NBD export on the host. Rejects `MACHINE_PATH_TOO_LONG`. */
export function nbdSocketPath(runtimeDir: string): string {
  const path = join(runtimeDir, SHIM_FILES.nbd, SHIM_FILES.nbdSocket);
  if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return path;
  throw new GodwitError('MACHINE_PATH_TOO_LONG', `${path} is too long for a unix socket`, {
    values: { path, bytesMax: SOCKET_PATH_BYTES_MAX },
    retry: 'never',
    nextAction: 'Choose a shorter data folder for the worker.',
  });
}

/**
 * The spec with the socket that the machine asked for, owned by whom the machine runs as: for reading and
 * writing when nothing is mounted, else for reading. Rejects `MACHINE_PATH_TOO_LONG`, and as `owner` does.
 */
export function withNbdSocket(
  spec: AttachSpec,
  config: Pick<MachineConfig, 'volume'>,
  runtimeDir: string,
  owner: () => { uid: number; gid: number },
): AttachSpec {
  if (config.volume?.nbd !== true) return spec;
  const client = config.volume.mountPath === undefined ? 'guest' : 'observer';
  return { ...spec, nbd: { path: nbdSocketPath(runtimeDir), owner: owner(), client } };
}
