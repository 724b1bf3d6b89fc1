import { ApiClient } from '../api/client.ts';
import { statusOf } from '../api/status.ts';
import { GodwitError, isGodwitError, messageOf } from '../base/errors.ts';
import type { MachineView, VolumeView } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import { type Receipt, verifyReceipt } from '../receipt/envelope.ts';
import { TlsTrust } from '../sys/tls-identity.ts';
import type { Fleet } from './fleet-file.ts';

export type WorkerClient = { name: string; url: string; client: ApiClient };

/** What all workers answered, and who did not. */
export type Gathered<Item> = {
  items: Item[];
  unreachable: { worker: string; url: string; error: GodwitError }[];
};

/** Time for a worker to answer a question that is put to all. */
const GATHER_TIMEOUT_MS = 5_000;

/** All workers of a fleet as one: questions go to all in parallel, a name or id is found wherever it is. */
export class FleetClient {
  readonly workers: readonly WorkerClient[];

  constructor(fleet: Fleet) {
    const isSecure = fleet.workers.some(({ url }) => url.startsWith('https:'));
    const tls = fleet.caFile !== null && isSecure ? new TlsTrust(fleet.caFile) : undefined;
    this.workers = fleet.workers.map(({ name, url }) => ({
      name,
      url,
      client: new ApiClient({
        url,
        token: fleet.token,
        // A fleet of one URL has no name for it.
        ...(name !== url && { worker: { name, isOld: 'ask' as const } }),
        tls,
        timeoutMs: GATHER_TIMEOUT_MS,
      }),
    }));
  }

  close(): void {
    for (const { client } of this.workers) client.close();
  }

  /**
   * Asks every worker. One that cannot be reached, or that is in trouble of its own (its disk, another
   * token, something else at its address), does not keep the others' answers; any other error is thrown,
   * and where nobody has an answer that trouble is, too.
   */
  async gather<Item>(ask: (worker: WorkerClient) => Promise<Item[]>): Promise<Gathered<Item>> {
    const items: Item[] = [];
    const unreachable: Gathered<Item>['unreachable'] = [];
    const answers = await Promise.allSettled(this.workers.map((worker) => ask(worker)));
    for (const [index, answer] of answers.entries()) {
      const { name, url } = this.workers[index]!;
      if (answer.status === 'fulfilled') items.push(...answer.value);
      else if (isGodwitError(answer.reason) && isOwnTrouble(answer.reason.code)) {
        unreachable.push({ worker: name, url, error: answer.reason });
      } else throw answer.reason;
    }
    const told = unreachable.find(({ error }) => !isAway(error.code));
    if (told !== undefined && unreachable.length === answers.length) throw told.error;
    return { items, unreachable };
  }

  machines(): Promise<Gathered<MachineView>> {
    return this.gather((worker) => worker.client.listMachines());
  }

  volumes(): Promise<Gathered<VolumeView>> {
    return this.gather((worker) => worker.client.listVolumes());
  }

  /**
   * Rejects `CLI_NAME_TAKEN` when a worker that answers has a machine or a volume of that name: two of one
   * name could only be told apart by their ids. Copies that moves left are no namesakes. `worker`, where the
   * new one is to be, says so itself.
   */
  async mustBeFree(noun: 'machine' | 'volume', name: string, worker: string): Promise<void> {
    const { items } = noun === 'machine' ? await this.machines() : await this.volumes();
    const namesake = items.find(
      (item) =>
        item.name === name && item.worker !== worker && item.state !== 'moved' && item.state !== 'retained',
    );
    if (namesake === undefined) return;
    throw new GodwitError('CLI_NAME_TAKEN', `a ${noun} ${name} is on ${namesake.worker} already`, {
      values: { name, id: namesake.id, worker: namesake.worker },
      nextAction: `Choose another name; godwit ${noun} show ${namesake.id} tells of that one.`,
    });
  }

  /** The worker of this name. A fleet of one URL has a worker whose name is only known to itself. */
  async worker(name: string): Promise<WorkerClient> {
    const listed = this.workers.find((worker) => worker.name === name);
    if (listed) return listed;
    const only = this.workers.length === 1 ? this.workers[0] : undefined;
    if (only !== undefined && only.name === only.url) {
      const view = await only.client.worker();
      if (view.name === name) return { ...only, name };
      throw workerNotFound(name, [view.name]);
    }
    throw workerNotFound(
      name,
      this.workers.map((worker) => worker.name),
    );
  }

  async machine(ref: string): Promise<{ worker: WorkerClient; machine: MachineView }> {
    const found = await this.#find(ref, 'machine', (worker) => worker.client.listMachines(), MACHINE_RANK);
    return { worker: found.worker, machine: found.item };
  }

  async volume(ref: string): Promise<{ worker: WorkerClient; volume: VolumeView }> {
    // A copy that a move left is found by its id only: its name is that of the volume that went.
    const list = async (worker: WorkerClient) =>
      (await worker.client.listVolumes()).filter(({ id, state }) => state !== 'retained' || id === ref);
    const found = await this.#find(ref, 'volume', list, VOLUME_RANK);
    return { worker: found.worker, volume: found.item };
  }

  /** A run of any worker, finished or not. */
  async run(id: string): Promise<{ worker: WorkerClient; run: RunView }> {
    const { items, unreachable } = await this.gather(async (worker) => {
      try {
        return [{ worker, run: await worker.client.showRun(id) }];
      } catch (error) {
        // Every other worker of the fleet: a run is in one journal.
        if (isGodwitError(error, 'JOURNAL_UNKNOWN_RUN')) return [];
        throw error;
      }
    });
    return items[0] ?? this.#missing('run', id, unreachable);
  }

  /** Of a move by its run, or the latest of a machine; source and target have the same. */
  async receipt(ref: string): Promise<Receipt> {
    const { items, unreachable } = await this.gather(async (worker) => {
      try {
        return [await worker.client.showReceipt(ref)];
      } catch (error) {
        if (isGodwitError(error, 'WORKER_RECEIPT_NOT_FOUND')) return [];
        throw error;
      }
    });
    const provenAtMs = (receipt: Receipt) => verifyReceipt(receipt).timesMs.proven;
    const latest = items.sort((left, right) => provenAtMs(right) - provenAtMs(left))[0];
    return latest ?? this.#missing('receipt', ref, unreachable);
  }

  async #find<Item extends { id: string; name: string; state: string }>(
    ref: string,
    what: 'machine' | 'volume',
    list: (worker: WorkerClient) => Promise<Item[]>,
    rank: Readonly<Record<string, number>>,
  ): Promise<{ worker: WorkerClient; item: Item }> {
    const { items, unreachable } = await this.gather(async (worker) =>
      (await list(worker)).map((item) => ({ worker, item })),
    );
    return pick(ref, what, items, rank) ?? this.#missing(what, ref, unreachable);
  }

  #missing(what: string, ref: string, unreachable: Gathered<unknown>['unreachable']): never {
    const away = unreachable[0];
    if (away) {
      const names = unreachable.map((each) => each.worker).join(', ');
      throw new GodwitError(
        away.error.code,
        `no ${what} ${ref} on the workers that answer, and no answer from ${names}: ${messageOf(away.error)}`,
        {
          values: { ...away.error.values, ref },
          nextAction: isAway(away.error.code)
            ? `Bring ${names} back, or check the name.`
            : `Check the name; of ${away.worker}: ${away.error.nextAction}`,
        },
      );
    }
    throw new GodwitError(`CLI_${what.toUpperCase()}_NOT_FOUND`, `no ${what} ${ref} in this fleet`, {
      values: { ref },
      nextAction:
        what === 'receipt'
          ? 'A move has one when all its blocks have come and were compared (godwit top); a machine without a volume has none.'
          : `godwit ${what === 'run' ? 'runs' : what} list${what === 'run' ? ' --all' : ''}`,
    });
  }
}

/** No answer: it is down, or it cannot prove who it is. */
export function isAway(code: string): boolean {
  return code === 'API_UNREACHABLE' || code === 'API_TLS_REFUSED';
}

const REFUSALS = new Set(['API_UNAUTHORIZED', 'API_CERTIFICATE_REQUIRED', 'API_TLS_REQUIRED']);

/** What says nothing about the question, nor about the other workers. */
function isOwnTrouble(code: string): boolean {
  return isAway(code) || REFUSALS.has(code) || statusOf(code) >= 500;
}

/**
 * During a move both sides know the machine; who owns it, or soon will, is asked. Lower is asked first;
 * default 0.
 */
const MACHINE_RANK: Readonly<Record<string, number>> = { moving: 1, incoming: 2, moved: 3 };
const VOLUME_RANK: Readonly<Record<string, number>> = { sealed: 1, incoming: 2, retained: 3 };

/**
 * The one that `ref` (id or name) means, or null. Throws `CLI_AMBIGUOUS_REF` when several things have that
 * name.
 */
export function pick<Item extends { id: string; name: string; state: string }, Found extends { item: Item }>(
  ref: string,
  what: string,
  candidates: Found[],
  rank: Readonly<Record<string, number>>,
): Found | null {
  const rankOf = (found: Found) => rank[found.item.state] ?? 0;
  const byId = candidates.filter(({ item }) => item.id === ref);
  const matching = byId.length > 0 ? byId : candidates.filter(({ item }) => item.name === ref);
  const best = matching.sort((left, right) => rankOf(left) - rankOf(right));
  const ids = [...new Set(best.map(({ item }) => item.id))];
  if (ids.length > 1) {
    throw new GodwitError('CLI_AMBIGUOUS_REF', `several ${what}s are called ${ref}: ${ids.join(', ')}`, {
      values: { ref, ids: ids.join(' ') },
      nextAction: 'Use the id.',
    });
  }
  return best[0] ?? null;
}

/** Each thing once, from the worker that owns it. */
export function owned<Item extends { id: string; name: string; state: string }>(
  what: 'machine' | 'volume',
  items: readonly Item[],
): Item[] {
  const rank = what === 'machine' ? MACHINE_RANK : VOLUME_RANK;
  const rankOf = (item: Item) => rank[item.state] ?? 0;
  const best = new Map<string, Item>();
  for (const item of items) {
    const other = best.get(item.id);
    if (!other || rankOf(item) < rankOf(other)) best.set(item.id, item);
  }
  return [...best.values()];
}

function workerNotFound(name: string, known: string[]): GodwitError {
  return new GodwitError('CLI_WORKER_NOT_FOUND', `no worker ${name} in this fleet`, {
    values: { name },
    nextAction: `The workers are: ${known.join(', ')}.`,
  });
}
