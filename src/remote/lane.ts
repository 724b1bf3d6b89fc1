import { type Backoff, backoffMs, jittered } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import type { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import type { Dialect, Link, RemoteUnit, Session } from './dialect.ts';
import type { Carrier, Dispatcher } from './dispatcher.ts';
import { peerPatience } from './peer-patience.ts';
import type { RemoteCommand } from './request.ts';

export type LaneOptions<Unit extends RemoteUnit, Command extends RemoteCommand> = {
  dialect: Dialect<Unit, Command>;
  dispatcher: Dispatcher<Command>;
  clock: Clock;
  random: Random;
  logger: Logger;
  /** From dialling to a disk that was reached. */
  connectTimeoutMs: number;
  backoff: Backoff;
  /** A session is there. Throws when its disk is not the one that it was. */
  joined: (session: Session<Command>, unit: Unit, isReconnection: boolean) => Carrier<Command>;
  /** A link has ended and is destroyed. True: no other is wanted. */
  ended: (error: GodwitError) => boolean;
};

const LEAVE_TIMEOUT_MS = 1_000;

/** A place for one link at a time: dials, and dials again, until it is closed. */
export class Lane<Unit extends RemoteUnit, Command extends RemoteCommand> {
  readonly #options: LaneOptions<Unit, Command>;
  readonly #closing = new AbortController();
  readonly #loop: Promise<void>;
  #link: Link | null = null;
  #carrier: Carrier<Command> | null = null;
  #hadSession = false;
  #isLeaving = false;
  #place = 0;
  /** `peerPatience`. */
  #patience = 1;

  constructor(options: LaneOptions<Unit, Command>) {
    this.#options = options;
    this.#loop = this.#run();
  }

  /** Ends the link at once, and for good: nothing lands in a buffer when this returns. */
  cut(): void {
    this.#closing.abort();
    if (this.#carrier !== null) this.#carrier.over = true;
    this.#link?.destroy();
  }

  /** The same, with a good-bye where nothing is under way. Nothing is sent after it. */
  leave(): void {
    this.#isLeaving = this.#carrier !== null && this.#carrier.requests.length === 0;
    if (this.#isLeaving) this.#closing.abort();
    else this.cut();
  }

  /** Resolves when it has ended. */
  over(): Promise<void> {
    return this.#loop;
  }

  async #run(): Promise<void> {
    const { dialect, clock, random, logger, backoff, ended } = this.#options;
    let failures = 0;
    while (!this.#closing.signal.aborted) {
      const place = this.#place % dialect.placeCount;
      const { error, carrier } = await this.#runLink(place);
      if (this.#closing.signal.aborted || ended(error)) return;
      this.#patience = peerPatience(this.#patience, error);
      logger.warn(
        {
          ...dialect.place(place),
          attempt: failures,
          code: error.code,
          error: error.message,
          ...error.values,
        },
        `${dialect.name}: connection lost`,
      );
      // A link that carried something was good: begin anew. Else wait longer each time, and try elsewhere.
      if (carrier !== null && carrier.answers > 0) failures = 0;
      else this.#place += 1;
      failures += 1;
      const pauseMs = jittered(backoffMs(backoff, failures), random);
      await clock.sleep(pauseMs, this.#closing.signal).catch(() => {});
    }
  }

  /** One link from dialling to its end. */
  async #runLink(place: number): Promise<{ error: GodwitError; carrier: Carrier<Command> | null }> {
    const { dialect, dispatcher, clock, joined } = this.#options;
    const timeoutMs = this.#options.connectTimeoutMs * this.#patience;
    const over = Promise.withResolvers<GodwitError>();
    const onClosing = (): void => over.resolve(dialect.unreachable());
    this.#closing.signal.addEventListener('abort', onClosing, { once: true });
    const cancel = clock.timer(timeoutMs, () => over.resolve(dialect.timedOut(place, timeoutMs)));
    const own: { carrier: Carrier<Command> | null } = { carrier: null };
    try {
      this.#link = dialect.dial(place, {
        patience: this.#patience,
        ready: (session, unit) => {
          cancel();
          own.carrier = joined(session, unit, this.#hadSession);
          this.#carrier = own.carrier;
          this.#hadSession = true;
          dispatcher.pump();
        },
        room: () => dispatcher.pump(),
        answered: (request, failure) => dispatcher.answered(own.carrier!, request, failure),
        sent: (request) => dispatcher.sent(own.carrier, request),
        over: (error) => over.resolve(error),
      });
    } catch (error) {
      over.resolve(dialect.typed(error));
    }
    const error = await over.promise;
    cancel();
    this.#closing.signal.removeEventListener('abort', onClosing);
    const { carrier } = own;
    // Before the link is: what its wire gives back is no answer any more.
    if (carrier !== null) carrier.over = true;
    if (this.#link !== null) await this.#end(this.#link);
    this.#link = null;
    this.#carrier = null;
    if (carrier !== null) dispatcher.leave(carrier, error, error.code === dialect.codes.lost);
    return { error, carrier };
  }

  async #end(link: Link): Promise<void> {
    if (this.#isLeaving) {
      const cancel = this.#options.clock.timer(LEAVE_TIMEOUT_MS, () => link.destroy());
      await link.leave();
      cancel();
    }
    link.destroy();
  }
}
