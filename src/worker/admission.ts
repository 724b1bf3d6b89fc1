import { GodwitError } from '../base/errors.ts';
import type { PlacementRequest } from '../contract/peer.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import { evaluateOffer, type HostLoad, unpromisedDiskBytes } from '../migration/placement.ts';
import { diskReserveBytes } from '../volume/index.ts';
import { placementOf } from './load.ts';

export type AdmissionOptions = { name: string; machines: MachineManager; load: () => Promise<HostLoad> };

/** Without an id it is new, and not among what this worker has. */
type Admitted = Pick<MachineRecord, 'name' | 'config'> & { id: string | null };

/** What a person may begin on this worker. */
export class Admission {
  readonly #o: AdmissionOptions;
  /** Machines, by name, that were admitted and are perhaps not among what the host's load counts yet. */
  readonly #beginning = new Map<string, PlacementRequest>();

  constructor(options: AdmissionOptions) {
    this.#o = options;
  }

  /**
   * `work`, which makes or starts the machine, where that is admitted; what is admitted meanwhile counts it.
   * Rejects as `#admit` does.
   */
  async admitted<T>(machine: Admitted, work: () => Promise<T>): Promise<T> {
    const placement = await this.#admit(machine);
    this.#beginning.set(machine.name, placement);
    try {
      return await work();
    } finally {
      if (this.#beginning.get(machine.name) === placement) this.#beginning.delete(machine.name);
    }
  }

  /**
   * As an offer to take the machine does, for what a person begins here: a worker that is being emptied takes
   * nothing, memory and CPUs are promised once, and so is the name. Its volume is here already, and its host
   * is looked at when it is made. One that is here and is started has its place among those that are wanted
   * to run, and not among those that rest: two of which only one has room at a time may take turns. Rejects
   * `WORKER_DRAINING`, `WORKER_NO_CAPACITY`, `MACHINE_NAME_TAKEN`.
   */
  async #admit(machine: Admitted): Promise<PlacementRequest> {
    const load = await this.#o.load();
    this.refuseDraining(load.draining);
    const arriving = load.placed.find(
      ({ machineName, machineId }) => machineName === machine.name && machineId !== machine.id,
    );
    if (arriving) {
      throw new GodwitError(
        'MACHINE_NAME_TAKEN',
        `${this.#o.name} has a machine called ${machine.name}, or one is on its way here`,
        {
          values: { name: machine.name, machineId: arriving.machineId },
          retry: 'never',
          nextAction: 'Choose another name.',
        },
      );
    }
    const records = this.#o.machines.records();
    const resting = records.filter(({ desired, claimedBy }) => desired !== 'running' && claimedBy === null);
    const uncounted = new Set(machine.id === null ? [] : resting.map(({ id }) => id));
    const wanted = load.placed.filter(({ machineId }) => !uncounted.has(machineId));
    const placed = new Map([...wanted, ...this.#beginning.values()].map((each) => [each.machineName, each]));
    const host = { ...load, placed: [...placed.values()], reserved: [], limitsMissing: [] };
    // Every other that is new has another name.
    const placement = placementOf({ ...machine, id: machine.id ?? `new ${machine.name}` }, null);
    const request = { sourceWorker: '', machine: placement, planned: [] };
    const { accepted, reason } = evaluateOffer({ ...host, freeDiskBytes: Number.POSITIVE_INFINITY }, request);
    if (accepted) return placement;
    throw new GodwitError(
      'WORKER_NO_CAPACITY',
      `${this.#o.name} has no room for ${machine.name}: ${reason}`,
      {
        values: { worker: this.#o.name, name: machine.name },
        nextAction: 'Ask for less, make room on this worker, or take another one (--worker).',
      },
    );
  }

  refuseDraining(draining: boolean): void {
    if (!draining) return;
    throw new GodwitError('WORKER_DRAINING', `${this.#o.name} is being drained, and takes nothing new`, {
      values: { worker: this.#o.name },
      nextAction: `Take another worker, or end the drain: godwit undrain ${this.#o.name}.`,
    });
  }

  /** A new volume takes next to nothing: but not what is kept back, or promised. */
  async refuseFull(name: string): Promise<void> {
    const load = await this.#o.load();
    this.refuseDraining(load.draining);
    const freeBytes = unpromisedDiskBytes(load) - diskReserveBytes(load.totalDiskBytes);
    if (freeBytes > 0) return;
    throw new GodwitError(
      'WORKER_NO_CAPACITY',
      `${this.#o.name} has no room for ${name}: its data disk is full but for what is kept back`,
      {
        values: { worker: this.#o.name, name },
        nextAction: 'Make room on this worker, or take another one (--worker).',
      },
    );
  }
}
