import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { ProcessIdentity } from '../host/process-identity.ts';
import { replaceFileOfThisBoot } from '../sys/durable-file.ts';
import { SHIM_FILES } from './protocol.ts';

/** `shim.json`: what a shim holds on this host, so that all of it can be found when the shim is dead. */
export type ShimState = {
  formatVersion: 1;
  shim: ProcessIdentity;
  volumeServer: ProcessIdentity | null;
  loopDevice: string | null;
  /** Mount points, null when not mounted. */
  filesystem: string | null;
  fuse: string | null;
  /** Of the machine. */
  cgroupFolders: string[];
  machineInit: ProcessIdentity | null;
};

/**
 * Writes the file so that a reader sees the old or the new one, never half. Readable by root only. Not
 * durable: after a reboot nothing of what it names is there any more.
 */
export function writeShimState(runtimeDir: string, state: ShimState): Promise<void> {
  return replaceFileOfThisBoot(join(runtimeDir, SHIM_FILES.state), `${JSON.stringify(state, null, 2)}\n`);
}

/**
 * Null without the file, and for an empty one: that is what a power cut leaves of a file that was not made
 * durable, and after it nothing of what it named is there. Rejects `MACHINE_SHIM_STATE_CORRUPT`.
 */
export function readShimState(runtimeDir: string): ShimState | null {
  const path = join(runtimeDir, SHIM_FILES.state);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
  if (text.replaceAll('\0', '') === '') return null;
  try {
    const state = JSON.parse(text) as ShimState;
    if (state.formatVersion !== 1) throw new Error(`unknown format version ${state.formatVersion}`);
    if (!isIdentity(state.shim) || !Array.isArray(state.cgroupFolders)) throw new Error('fields are missing');
    return state;
  } catch (cause) {
    throw new GodwitError('MACHINE_SHIM_STATE_CORRUPT', `${path} cannot be read: ${messageOf(cause)}`, {
      values: { path },
      nextAction: 'Delete the file; the clean-up then goes by the mount table alone.',
      cause,
    });
  }
}

function isIdentity(value: unknown): value is ProcessIdentity {
  if (typeof value !== 'object' || value === null) return false;
  const fields = value as Record<string, unknown>;
  return (
    Number.isSafeInteger(fields.pid) &&
    Number.isSafeInteger(fields.startTicks) &&
    typeof fields.bootId === 'string'
  );
}
