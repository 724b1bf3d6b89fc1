import { type GodwitError, toWireError, type WireError } from '../base/errors.ts';

/*
 * What a step can throw to steer its run. Before the point of no return an error that trying again does not
 * lift (`retry: 'never'`) is an Abort; everything else is retried with backoff until nothing has advanced in
 * the step for too long.
 *
 *                 before the point of no return    in its step                   past it
 *   Retry         again later                      again later                   again later
 *   Abort         undo now, ends `undone`          undo now, ends `undone`       again later: nothing may be undone
 *   Unrecoverable undo now, ends `failed`          ends `failed`, lock is kept   ends `failed`, lock is kept
 *   Handoff       ends `done`, another run starts in the same transaction (on either side)
 */

/**
 * "Not yet": the step is tried again, after `afterMs` (default: the step's backoff). The reason is what
 * `godwit why` shows.
 */
export class Retry extends Error {
  readonly afterMs: number | undefined;
  readonly wire: WireError;

  /** `reason`: a sentence, or the error that is in the way. */
  constructor(reason: string | Error, options: { afterMs?: number; nextAction?: string } = {}) {
    const wire: WireError =
      typeof reason === 'string'
        ? {
            code: 'JOURNAL_RETRY',
            message: reason,
            values: {},
            nextAction: 'Nothing: it is tried again by itself.',
            retry: 'later',
          }
        : toWireError(reason);
    super(wire.message);
    this.name = 'Retry';
    this.afterMs = options.afterMs;
    this.wire = options.nextAction === undefined ? wire : { ...wire, nextAction: options.nextAction };
  }
}

/**
 * "Give up and undo": the run ends `undone` with this error. In the step of the point of no return:
 * "certainly not gone over".
 */
export class Abort extends Error {
  readonly wire: WireError;

  constructor(error: GodwitError | Error) {
    const wire = toWireError(error);
    super(wire.message, { cause: error });
    this.name = 'Abort';
    this.wire = wire;
  }
}

/** "Another run takes over": this one ends `done` and the other starts, both or neither. */
export class Handoff extends Error {
  readonly kind: string;
  readonly input: unknown;
  readonly runId: string | undefined;

  constructor(kind: string, input: unknown, options: { runId?: string } = {}) {
    super(`handoff to a run of kind ${kind}`);
    this.name = 'Handoff';
    this.kind = kind;
    this.input = input;
    this.runId = options.runId;
  }
}

/**
 * "No attempt can succeed." Before the point of no return the run is undone and ends `failed`. From the step
 * of the point of no return on it ends `failed` as it stands and keeps its resource, so that no other run
 * starts on a machine in an unknown state, until an operator decides (`Journal.force`).
 */
export class Unrecoverable extends Error {
  readonly blame: 'system' | 'user';
  readonly wire: WireError;

  /**
   * `blame`: whose fault it is; ends up in the error's values, for metrics and for the person who reads it.
   */
  constructor(error: GodwitError | Error, blame: 'system' | 'user') {
    const wire = toWireError(error);
    super(wire.message, { cause: error });
    this.name = 'Unrecoverable';
    this.blame = blame;
    this.wire = { ...wire, values: { ...wire.values, blame } };
  }
}
