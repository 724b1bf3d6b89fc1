import type { Peer } from '../contract/peer.ts';
import type { WorkerView } from '../contract/schemas.ts';
import type { MachineManager } from '../machine/manager.ts';
import { type HostLoad, unpromisedDiskBytes } from '../migration/placement.ts';
import type { VolumeStore } from '../volume/index.ts';

export type WorkerAnswersOptions = {
  name: string;
  url: () => string;
  version: string;
  startedAtMs: number;
  /** Of the key that signs receipts. */
  keyFingerprint: string;
  machines: MachineManager;
  volumes: VolumeStore;
  load: () => Promise<HostLoad>;
  peers: () => readonly Peer[];
};

/** What is asked of the worker itself. */
export class WorkerAnswers {
  readonly #o: WorkerAnswersOptions;

  constructor(options: WorkerAnswersOptions) {
    this.#o = options;
  }

  async worker(): Promise<WorkerView> {
    const load = await this.#o.load();
    const memory = load.placed.reduce((sum, placed) => sum + placed.memoryBytes, 0);
    const cpus = load.placed.reduce((sum, placed) => sum + placed.cpus, 0);
    const { volumes } = await this.#o.volumes.list();
    return {
      name: this.#o.name,
      url: this.#o.url(),
      version: this.#o.version,
      pid: process.pid,
      startedAtMs: this.#o.startedAtMs,
      keyFingerprint: this.#o.keyFingerprint,
      draining: load.draining,
      capacity: { memoryBytes: load.memoryBytes, cpus: load.cpus, diskBytes: load.totalDiskBytes },
      free: {
        memoryBytes: Math.max(0, load.memoryBytes - memory),
        cpus: Math.max(0, load.cpus - cpus),
        diskBytes: Math.max(0, Math.floor(unpromisedDiskBytes(load))),
      },
      machines: this.#o.machines.records().length,
      volumes: volumes.length,
      peers: this.#o.peers().map(({ name, url }) => ({ name, url })),
    };
  }
}
