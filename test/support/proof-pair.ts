import { createHash } from 'node:crypto';
import { DatabaseSync } from 'node:sqlite';
import { systemClock } from '../../src/base/clock.ts';
import type { PrepareRequest, TargetFigures } from '../../src/contract/peer.ts';
import type { MigrateInOutput } from '../../src/migration/migrate-in.ts';
import { type Mended, type ProveOptions, proveMove } from '../../src/migration/prove.ts';
import { ReceiptBook } from '../../src/migration/receipt-book.ts';
import { differenceOf } from '../../src/migration/target-answers.ts';
import type { OperationArgs, OperationResult, VolumeOperation } from '../../src/opening/operations.ts';
import { performOperation, type VolumeAnswers } from '../../src/opening/perform.ts';
import { countersign, type Receipt, verifyReceipt } from '../../src/receipt/envelope.ts';
import type { ReceiptBody } from '../../src/receipt/receipt.ts';
import { MoveWorld } from './move-world.ts';
import { newWorkerKey } from './worker-keys.ts';

type Answers = {
  server: {
    call: <Op extends VolumeOperation>(op: Op, args: OperationArgs<Op>) => Promise<OperationResult<Op>>;
  };
};
/** A volume that answers without a server. */
export function answering(answers: VolumeAnswers): Answers {
  return { server: { call: (op, args) => performOperation(answers, op, args) as Promise<never> } };
}

export type ProvableMove = {
  id: string;
  sourceStore: { get: (id: string) => Promise<{ name: string; lengthBytes: number }> };
  source: Answers;
  target: Answers;
  /** Base64. */
  freeMap?: string;
};

/** Proves a move between two volume servers; the workers around them are played. */
export class ProofPair {
  readonly #move: ProvableMove;
  readonly #keys = { source: newWorkerKey(), target: newWorkerKey() };
  readonly #receipts = new ReceiptBook(new DatabaseSync(':memory:'));
  mended: Mended = { ranges: 0, bytes: 0, leftBytes: 0 };

  constructor(move: ProvableMove) {
    this.#move = move;
  }

  /** The body of the receipt; rejects as `proveMove`. */
  async prove(): Promise<ReceiptBody> {
    const { id, sourceStore, source, target, freeMap = null } = this.#move;
    const record = await sourceStore.get(id);
    const world = new MoveWorld();
    const { subject } = world;
    const request = {
      runId: 'run1',
      machineId: subject.machineId,
      machineName: subject.machineName,
      sourceWorker: 'w1',
      volume: { volumeId: id, name: record.name, lengthBytes: record.lengthBytes, sealedGeneration: 1 },
    } as PrepareRequest;
    const figures = async (freeMapDigest: string | null): Promise<TargetFigures> => ({
      ...(await target.server.call('figures', { freeMapDigest })),
      worker: {
        worker: 'w2',
        publicKey: this.#keys.target.publicKey,
        keyFingerprint: this.#keys.target.fingerprint,
      },
    });
    const peer: ProveOptions['peer'] = {
      name: 'w2',
      receipt: async () => null,
      fetched: (_runId, query) => target.server.call('fetched', query),
      unfetched: (_runId, query) => target.server.call('unfetched', query),
      mend: (_runId, mend) => target.server.call('mend', mend),
      compare: (_runId, request) => target.server.call('compare', request),
      figures: (_runId, query) => figures(query.freeMapDigest),
      countersign: async (_runId, draft: Receipt) => {
        const body = verifyReceipt(draft, { stage: 'draft' });
        const known: MigrateInOutput = {
          freeMapDigest:
            freeMap === null
              ? null
              : createHash('sha256').update(Buffer.from(freeMap, 'base64')).digest('hex'),
        };
        const difference = differenceOf(
          body,
          request,
          await figures(body.freeMapDigest),
          known.freeMapDigest,
        );
        if (difference !== null) throw new Error(`the target has another ${difference}`);
        return countersign(draft, this.#keys.target);
      },
    };
    const sourceSide: ProveOptions['source'] = {
      freeMap: async () => freeMap,
      digests: async (_runId, ranges) => {
        const plain = ranges.map(({ first, blocks }) => ({ first, blocks }));
        return (await source.server.call('digests', { ranges: plain })).digests;
      },
      owed: (_runId, range, cursor) => source.server.call('owed', { ...range, cursor }),
      stated: (_runId, cursor) => source.server.call('stated', { cursor }),
    };
    const options: ProveOptions = {
      moveId: 'run1',
      subject: {
        ...subject,
        volume: {
          volumeId: id,
          name: record.name,
          lengthBytes: record.lengthBytes,
          usedBytes: 0,
          filesystem: 'none',
          generation: 1,
        },
      },
      worker: { name: 'w1' },
      key: this.#keys.source,
      peer,
      source: sourceSide,
      receipts: this.#receipts,
      bytesAvoided: 0,
      times: { stopped: null, handedOver: systemClock.wallMs() },
      mended: this.mended,
      onMended: (mended) => {
        this.mended = mended;
      },
      onProgress: () => {},
      clock: systemClock,
      signal: new AbortController().signal,
    };
    return verifyReceipt(await proveMove(options));
  }
}
