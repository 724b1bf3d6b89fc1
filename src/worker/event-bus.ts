import type { Clock } from '../base/clock.ts';
import type { ApiEvent } from '../contract/schemas.ts';
import { EVENTS, type EventCode, type EventData } from './event.ts';
import { Counts } from './metric.ts';

/** A listener that falls so far behind loses the oldest: a slow reader must not fill the worker's memory. */
const BACKLOG_MAX = 1_000;

/** What happens on this worker, for whoever listens now. The journal is the record; this is the ticker. */
export class EventBus {
  readonly #worker: string;
  readonly #clock: Clock;
  readonly #listeners = new Set<(event: ApiEvent) => void>();
  /** By code, since this process began. */
  readonly counts = new Counts();

  constructor(worker: string, clock: Clock) {
    this.#worker = worker;
    this.#clock = clock;
  }

  /** `subject`: id of what it is about; `message`: a sentence for people. */
  emit<Code extends EventCode>(code: Code, subject: string, message: string, data?: EventData<Code>): void {
    this.counts.add({ event: code });
    const event: ApiEvent = {
      atMs: this.#clock.wallMs(),
      worker: this.#worker,
      kind: EVENTS[code].kind,
      code,
      subject,
      message,
      data: { ...data },
    };
    for (const listener of this.#listeners) listener(event);
  }

  async *follow(signal: AbortSignal): AsyncGenerator<ApiEvent> {
    const backlog: ApiEvent[] = [];
    let wake: (() => void) | null = null;
    const listener = (event: ApiEvent) => {
      backlog.push(event);
      if (backlog.length > BACKLOG_MAX) backlog.shift();
      wake?.();
    };
    const onAbort = () => wake?.();
    this.#listeners.add(listener);
    signal.addEventListener('abort', onAbort);
    try {
      while (!signal.aborted) {
        const event = backlog.shift();
        if (event) {
          yield event;
          continue;
        }
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = null;
      }
    } finally {
      this.#listeners.delete(listener);
      signal.removeEventListener('abort', onAbort);
    }
  }
}
