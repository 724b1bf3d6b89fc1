import type { Clock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { nextTurn } from '../base/turn.ts';
import type { ShimClient } from './client.ts';
import type { ShimStatus } from './protocol.ts';

/**
 * What is known of a shim. `silentForMs`: null when `status` is its answer of now; else for how long it has
 * not answered.
 */
export type ShimLook = { status: ShimStatus | null; silentForMs: number | null };

type Question = { askedMs: number; answer: Promise<ShimStatus | null> };

/**
 * The state of shims for lists and for people. One that hangs costs one short wait, once: who asks while it
 * has not answered gets what it said last, at once, and puts no second question to it.
 */
export class ShimLooks {
  readonly #clock: Clock;
  readonly #patienceMs: number;
  readonly #questions = new Map<string, Question>();
  readonly #last = new Map<string, ShimStatus>();

  constructor(clock: Clock, patienceMs: number = PATIENCE.shimLook.ms) {
    this.#clock = clock;
    this.#patienceMs = patienceMs;
  }

  /** `client`: null where no shim is. Rejects with what the shim answers that is no status. */
  async look(shimId: string, client: ShimClient | null): Promise<ShimLook> {
    if (client === null) {
      this.forget(shimId);
      return { status: null, silentForMs: null };
    }
    const question = this.#questions.get(shimId) ?? this.#ask(shimId, client);
    const leftMs = question.askedMs + this.#patienceMs - this.#clock.monotonicMs();
    const late = Promise.withResolvers<void>();
    const cancel = this.#clock.timer(Math.max(0, leftMs), () => late.resolve());
    // What has arrived is read before a timer of a process that was stopped itself counts.
    const answer = await Promise.race([
      question.answer,
      late.promise.then(() => nextTurn().then(() => 'late' as const)),
    ]).finally(cancel);
    if (answer !== 'late') return { status: answer, silentForMs: null };
    const silentForMs = this.#clock.monotonicMs() - question.askedMs;
    return { status: this.#last.get(shimId) ?? null, silentForMs };
  }

  forget(shimId: string): void {
    this.#last.delete(shimId);
  }

  #ask(shimId: string, client: ShimClient): Question {
    const ask = async (): Promise<ShimStatus | null> => {
      for (;;) {
        try {
          const status = await client.call('status', {});
          this.#last.set(shimId, status);
          return status;
        } catch (error) {
          if (isGodwitError(error, 'MACHINE_SHIM_GONE') || isGodwitError(error, 'RPC_CLOSED')) {
            this.forget(shimId);
            return null;
          }
          // It is asked again for as long as it is there: its silence has one beginning.
          if (!isGodwitError(error, 'RPC_TIMEOUT')) throw error;
        }
      }
    };
    const question: Question = {
      askedMs: this.#clock.monotonicMs(),
      answer: ask().finally(() => this.#questions.delete(shimId)),
    };
    question.answer.catch(() => {});
    this.#questions.set(shimId, question);
    return question;
  }
}
