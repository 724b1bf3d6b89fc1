import { generateKeyPairSync } from 'node:crypto';
import { WorkerKey } from '../../src/receipt/envelope.ts';

/** A new key of a worker, in memory. */
export function newWorkerKey(): WorkerKey {
  return new WorkerKey(
    generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  );
}
