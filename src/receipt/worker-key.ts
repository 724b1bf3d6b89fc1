import { generateKeyPairSync } from 'node:crypto';
import {
  closeSync,
  constants,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { systemErrorCode } from '../base/errors.ts';
import { WorkerKey } from './envelope.ts';

/**
 * The key in this file (PEM, readable by its owner only); made when there is none, durably, so that no receipt is signed by a key that a power cut takes
 * away. Throws `RECEIPT_BAD_KEY`.
 */
export function openWorkerKey(path: string): WorkerKey {
  try {
    return new WorkerKey(readFileSync(path));
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
  const pem = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const temporary = `${path}.new`;
  rmSync(temporary, { force: true });
  const fd = openSync(temporary, 'wx', 0o600);
  try {
    writeSync(fd, pem);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
  const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
  return new WorkerKey(pem);
}
