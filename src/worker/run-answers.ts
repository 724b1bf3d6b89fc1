import { GodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { ForceRunRequest, RunsQuery } from '../contract/schemas.ts';
import type { Journal } from '../journal/journal.ts';
import type { RunView } from '../journal/run.ts';
import type { Overrides } from '../migration/overrides.ts';
import type { ReceiptBook } from '../migration/receipt-book.ts';
import type { Receipt } from '../receipt/envelope.ts';
import type { MachineRecovery } from './recovery.ts';

/** How long an answer to a forced end is held back for what the run leaves behind to be given back. */
const FORGET_WAIT_MS = PATIENCE.forgetAnswer.ms;

export type RunAnswersOptions = {
  name: string;
  journal: Journal;
  overrides: Overrides;
  recovery: MachineRecovery;
  receipts: ReceiptBook;
};

/** What is asked of the journal's runs, and of the receipts that moves leave. */
export class RunAnswers {
  readonly #o: RunAnswersOptions;

  constructor(options: RunAnswersOptions) {
    this.#o = options;
  }

  async listRuns(query: RunsQuery): Promise<RunView[]> {
    const filter = {
      limit: query.limit,
      ...(query.resource === undefined ? {} : { resource: query.resource }),
    };
    return query.state === 'all' ? this.#o.journal.findInTurns(filter) : this.#o.journal.open(filter);
  }

  async showRun(id: string): Promise<RunView> {
    return this.#o.journal.get(id);
  }

  async cancelRun(id: string): Promise<RunView> {
    return this.#o.journal.cancel(id, 'an operator asked for it, over the API');
  }

  async nudgeRun(id: string): Promise<RunView> {
    return this.#o.journal.nudge(id);
  }

  async forceRun(id: string, { how, targetIsDestroyed = false }: ForceRunRequest): Promise<RunView> {
    const run = await this.#o.overrides.force(id, { how, targetIsDestroyed, by: 'the API' });
    if (how !== 'forget') return run;
    // What runs is told to stop. One that does not within that time is tidied up after when it has.
    const over = await this.#o.journal.wait(id, { timeoutMs: FORGET_WAIT_MS }).catch(() => null);
    if (over === null) return this.#o.journal.get(id);
    await this.#o.recovery.tidy();
    return over;
  }

  async showReceipt(ref: string): Promise<Receipt> {
    const { name, receipts } = this.#o;
    const receipt = receipts.find(ref);
    if (receipt) return receipt;
    const waivedAtMs = receipts.waivedAtMs(ref);
    if (waivedAtMs !== null) {
      throw new GodwitError(
        'WORKER_RECEIPT_WAIVED',
        `${ref} ended without a receipt: an operator said so at ${new Date(waivedAtMs).toISOString()}`,
        {
          values: { ref, waivedAtMs },
          nextAction:
            'There will be none. While the source keeps the sealed volume, files can be compared with it: godwit volume recover.',
        },
      );
    }
    throw new GodwitError('WORKER_RECEIPT_NOT_FOUND', `${name} has no receipt of ${ref}`, {
      values: { ref },
      nextAction:
        'A receipt is there when all blocks have come and were compared (godwit top), and only for a move with a volume. Source and target have it.',
    });
  }
}
