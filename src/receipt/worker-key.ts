import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { systemErrorCode } from '../base/errors.ts';
import { replaceFileNow } from '../sys/durable-file.ts';
import { WorkerKey } from './envelope.ts';

/**
 * The key in this file (PEM, readable by its owner only); made when there is none, durably, so that no
 * receipt is signed by a key that a power cut takes away. Throws `RECEIPT_BAD_KEY`.
 */
export function openWorkerKey(path: string): WorkerKey {
  try {
    return new WorkerKey(readFileSync(path));
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
  const pem = generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  replaceFileNow(path, pem);
  return new WorkerKey(pem);
}
