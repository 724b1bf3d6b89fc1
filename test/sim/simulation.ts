import { AsyncLocalStorage, AsyncResource } from 'node:async_hooks';
import { createHash, type Hash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import type { Clock } from '../../src/base/clock.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { sleepBy } from '../support/fake-clock.ts';
import { Troubles } from './troubles.ts';

/** A process of a simulated host. When it has ended nothing of it happens any more: its timers, files and calls. */
export class Process {
  readonly name: string;
  readonly boot: Boot;
  alive = true;
  /** What would have happened to it since it was stopped, oldest first; null: it runs. */
  #missed: (() => void)[] | null = null;
  readonly #mourners = new Set<() => void>();

  constructor(name: string, boot: Boot) {
    this.name = name;
    this.boot = boot;
  }

  /** Calls back at its end; the returned function takes that back. */
  onEnd(callback: () => void): () => void {
    this.#mourners.add(callback);
    return () => this.#mourners.delete(callback);
  }

  /** It is there, and does nothing. */
  get isStopped(): boolean {
    return this.alive && this.#missed !== null;
  }

  /** SIGSTOP. */
  stop(): void {
    if (this.alive) this.#missed ??= [];
  }

  /**
   * SIGCONT: all that has come meanwhile is there at once, due timers and answers alike, before what waits for
   * the next turn of the loop.
   */
  goOn(): void {
    const missed = this.#missed ?? [];
    this.#missed = null;
    for (const act of missed) this.whenOn(act);
  }

  /** At once; of a process that is stopped when it goes on, and of one that has ended never. */
  whenOn(act: () => void): void {
    if (!this.alive) return;
    if (this.#missed !== null) this.#missed.push(act);
    else act();
  }

  /** SIGKILL, or the end of its host. */
  end(): void {
    this.alive = false;
    this.#missed = null;
    const mourners = [...this.#mourners];
    this.#mourners.clear();
    running.exit(() => {
      for (const mourner of mourners) mourner();
    });
  }
}

/** A host from one power cut to the next. `wallOffsetMs`: what its wall clock is ahead. */
export type Boot = { readonly host: string; readonly sinceMs: number; wallOffsetMs: number };

type Event = { atMs: number; order: number; label: string | null; run: () => void; cancelled: boolean };

const EPOCH_MS = Date.UTC(2026, 0, 1);
const TRACE_LINES = 400;

/** Which process the code that runs now belongs to; null: the world's own. */
export const running = new AsyncLocalStorage<Process>();

export class Violation extends Error {}

/**
 * Simulated time: one queue of events, one after the other, each to the end of all that it sets off at once.
 * Whoever draws lots here draws them in the same order each time, so a seed is a life.
 */
export class Simulation {
  readonly random: Random;
  readonly seed: number;
  readonly stats: Record<string, number> = {};
  readonly troubles = new Troubles(() => this.nowMs);
  nowMs = 0;
  events = 0;
  #order = 0;
  #failure: Violation | null = null;
  readonly #heap: Event[] = [];
  readonly #trace: string[] = [];
  readonly #hash: Hash = createHash('sha256');

  constructor(seed: number) {
    this.seed = seed;
    this.random = seededRandom(seed);
    // Whoever asks how long it has had the processor (base/turn.ts) has had it for no time at all.
    performance.now = () => this.nowMs;
  }

  close(): void {
    // What it has by its prototype.
    Reflect.deleteProperty(performance, 'now');
  }

  /** Integer in [from, to). */
  between(from: number, to: number): number {
    return from + this.random.below(Math.max(1, Math.floor(to - from)));
  }

  chance(probability: number): boolean {
    return this.random.below(1_000_000) < probability * 1_000_000;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.random.below(from.length)]!;
  }

  count(what: string): void {
    this.stats[what] = (this.stats[what] ?? 0) + 1;
  }

  log(text: string): void {
    const line = `${(this.nowMs / 1000).toFixed(3)} ${text}`;
    this.#hash.update(`${line}\n`);
    this.#trace.push(line);
    if (this.#trace.length > TRACE_LINES) this.#trace.splice(0, TRACE_LINES / 2);
    if (process.env.GODWIT_SIM_TRACE) console.log(line);
  }

  /** Of all that was logged, and of when what happened. */
  get digest(): string {
    return this.#hash.copy().update(`${this.nowMs} ${this.events}`).digest('hex');
  }

  get traceEnd(): string {
    return this.#trace.slice(-60).join('\n');
  }

  /** Ends the run, from wherever it was found out. */
  fail(text: string): Violation {
    this.log(`VIOLATION ${text}`);
    this.#failure ??= new Violation(text);
    return this.#failure;
  }

  /** Calls back after `delayMs`, in the process that asks, if that is still alive. The returned function cancels. */
  after(delayMs: number, run: () => void, label: string | null = null): () => void {
    const owner = running.getStore() ?? null;
    // What a snapshot of AsyncLocalStorage is, without the function around it.
    const context = new AsyncResource('simulated event');
    const inContext = (act: () => void) => context.runInAsyncScope(act);
    if (owner === null) return this.#push(delayMs, () => inContext(run), label);
    let isOff = false;
    // A process that goes on may take back what has come due meanwhile.
    const act = () => owner.whenOn(() => isOff || inContext(run));
    const cancel = this.#push(delayMs, act, label);
    return () => {
      isOff = true;
      cancel();
    };
  }

  /** The same for the world's own events. */
  world(delayMs: number, run: () => void, label: string | null = null): () => void {
    return this.#push(delayMs, () => running.exit(run), label);
  }

  /** Resolves after `delayMs`, or never, where the process ends first. */
  pause(delayMs: number, label: string | null = null): Promise<void> {
    return new Promise((resolve) => void this.after(delayMs, resolve, label));
  }

  /** Runs until `done`, or `untilMs` has come, or a checker finds something: then rejects. */
  async run(done: () => boolean, untilMs = Number.POSITIVE_INFINITY): Promise<boolean> {
    // What was set off outside has its turn first.
    await turn();
    while (!done()) {
      const event = this.#pop();
      if (event === null || event.atMs > untilMs) {
        if (event !== null) this.#insert(event);
        return false;
      }
      if (event.cancelled) continue;
      this.nowMs = Math.max(this.nowMs, event.atMs);
      this.events += 1;
      if (event.label !== null) this.log(event.label);
      event.run();
      // Promises, then what has asked for a turn of the loop meanwhile.
      await turn();
      await turn();
      if (this.#failure !== null) throw this.#failure;
    }
    return true;
  }

  /** The wall clock of a host. */
  wallMs(boot: Boot): number {
    return Math.floor(EPOCH_MS + this.nowMs + boot.wallOffsetMs);
  }

  /** The clock of a process on its host. */
  clockOf(owner: Process): Clock {
    const { boot } = owner;
    // As Node's. What rounding leaves of a wait would be no time at all, again and again.
    const timer = (delayMs: number, callback: () => void) => this.after(Math.max(1, delayMs), callback);
    return {
      wallMs: () => this.wallMs(boot),
      monotonicMs: () => this.nowMs - boot.sinceMs,
      timer,
      sleep: (delayMs, signal) => sleepBy({ timer }, delayMs, signal),
    };
  }

  #push(delayMs: number, run: () => void, label: string | null): () => void {
    const event = { atMs: this.nowMs + delayMs, order: this.#order++, label, run, cancelled: false };
    this.#insert(event);
    return () => {
      event.cancelled = true;
    };
  }

  #insert(event: Event): void {
    const heap = this.#heap;
    heap.push(event);
    for (let at = heap.length - 1; at > 0; ) {
      const parent = (at - 1) >> 1;
      if (!isBefore(heap[at]!, heap[parent]!)) break;
      [heap[at], heap[parent]] = [heap[parent]!, heap[at]!];
      at = parent;
    }
  }

  #pop(): Event | null {
    const heap = this.#heap;
    const first = heap[0];
    if (first === undefined) return null;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    heap[0] = last;
    for (let at = 0; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < heap.length && isBefore(heap[child]!, heap[least]!)) least = child;
      if (least === at) return first;
      [heap[at], heap[least]] = [heap[least]!, heap[at]!];
      at = least;
    }
  }
}

function isBefore(left: Event, right: Event): boolean {
  return left.atMs < right.atMs || (left.atMs === right.atMs && left.order < right.order);
}
