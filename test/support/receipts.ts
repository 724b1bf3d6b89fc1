import { countersign, draftReceipt, type Receipt, type WorkerKey } from '../../src/receipt/envelope.ts';
import type { GuestWrites } from '../../src/receipt/proof.ts';
import type { ReceiptBody } from '../../src/receipt/receipt.ts';
import { newWorkerKey } from './worker-keys.ts';

export function receiptBody(moveId: string, keys: { source: WorkerKey; target: WorkerKey }): ReceiptBody {
  const worker = (name: string, key: WorkerKey) => ({
    worker: name,
    publicKey: key.publicKey,
    keyFingerprint: key.fingerprint,
  });
  return {
    format: 'godwit-receipt',
    version: 1,
    moveId,
    machine: { id: 'm_1', name: 'db' },
    volume: { id: 'v_1', name: 'db', lengthBytes: 2 ** 20, encrypted: true },
    generations: { sealed: 1, opened: 2 },
    source: worker('w1', keys.source),
    target: worker('w2', keys.target),
    bytes: {
      total: 2 ** 20,
      fetched: 65_536,
      notFetched: 2 ** 20 - 65_536,
      avoided: 4096,
      compared: 69_632,
      readBack: 61_440,
      writtenSince: 8192,
      mended: 4096,
      mendedLeft: 0,
    },
    ranges: 2,
    rangesMended: 1,
    freeMapDigest: 'b'.repeat(64),
    root: 'c'.repeat(64),
    timesMs: { stopped: 1_760_000_000_000, handedOver: 1_760_000_000_500, proven: 1_760_000_009_000 },
  };
}

/** Of a move to the kernel plane: 1 MiB, of which the guest has changed a block and cleared another. */
export function diskReceiptBody(
  moveId: string,
  keys: { source: WorkerKey; target: WorkerKey },
  guest: GuestWrites | null,
): ReceiptBody {
  const body = receiptBody(moveId, keys);
  const compared = 2 ** 20 - 4 * 4096;
  const bytes = { fetched: compared, notFetched: 4 * 4096, compared, readBack: compared };
  return {
    ...body,
    version: 2,
    bytes: { ...body.bytes, ...bytes, writtenSince: 0, mended: 0 },
    disk: { empty: 4096, changed: 4096, cleared: 4096, unused: 4096, guest },
    rangesMended: 0,
  };
}

/** A receipt that holds. */
export function receiptOf(moveId: string, bodyOf = receiptBody): Receipt {
  const keys = { source: newWorkerKey(), target: newWorkerKey() };
  return countersign(draftReceipt(bodyOf(moveId, keys), keys.source), keys.target);
}
