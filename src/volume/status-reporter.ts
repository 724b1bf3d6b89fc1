import type { Clock } from '../base/clock.ts';
import type { VolumeServerStatus } from '../opening/status.ts';

const INTERVAL_MS = 500;

export type StatusReporterOptions = {
  status: () => VolumeServerStatus;
  emit: (event: string, data: unknown) => void;
  /** False: what was told before waits to be read, and nothing is told until it was. */
  isHeard: () => boolean;
  clock: Clock;
};

/**
 * Looks at a volume twice a second and tells what changed: `progress`, `source-lost`, `source-back`,
 * `data-lost`, `no-room`, `room-again`.
 */
export class StatusReporter {
  readonly #options: StatusReporterOptions;
  #told = '';
  #sourceLost = false;
  #dataLost = false;
  #noRoom = false;
  #cancel: () => void = () => {};

  constructor(options: StatusReporterOptions) {
    this.#options = options;
  }

  start(): void {
    this.#cancel = this.#options.clock.timer(INTERVAL_MS, () => {
      this.look();
      this.start();
    });
  }

  stop(): void {
    this.#cancel();
  }

  /** Now, and not at the next half second. */
  look(): void {
    if (!this.#options.isHeard()) return;
    const status = this.#options.status();
    // Memory in use always changes a little; that alone is no news.
    const news = JSON.stringify({ ...status, residentBytes: 0 });
    if (news === this.#told) return;
    this.#told = news;
    this.#options.emit('progress', status);
    if (status.dataLoss && !this.#dataLost) {
      this.#dataLost = true;
      this.#options.emit('data-lost', { message: status.dataLoss.reason });
    }
    if ((status.noRoom !== undefined) !== this.#noRoom) {
      this.#noRoom = status.noRoom !== undefined;
      const message = status.noRoom?.map
        ? `there is no memory for the map of the clone, ${status.noRoom.map}`
        : 'the disk is full but for what is kept back';
      this.#options.emit(this.#noRoom ? 'no-room' : 'room-again', this.#noRoom ? { message } : {});
    }
    const sourceLost = status.hydration?.state === 'source-lost';
    if (sourceLost === this.#sourceLost) return;
    this.#sourceLost = sourceLost;
    if (sourceLost) {
      this.#options.emit('source-lost', {
        message: status.hydration?.lastError ?? 'the source does not answer',
      });
    } else {
      this.#options.emit('source-back', {});
    }
  }
}
