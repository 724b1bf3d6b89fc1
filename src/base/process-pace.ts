import { readFileSync } from 'node:fs';
import type { Clock } from './clock.ts';
import { PATIENCE } from './patience.ts';
import { advanced } from './progress.ts';

/*
 * Whether a process that was started, and has not said anything yet, does something: it uses a processor, or
 * pages come in for it. One that is slow, because there is little processor for it or the disk is busy, does;
 * one that is stopped or waits for a device that does not answer does not.
 */

export type ProcessWork = {
  /** One letter, `State` of proc_pid_stat(5). */
  state: string;
  /** User and system time. */
  processorMs: number;
  /** Pages that had to be read from a disk. */
  majorFaults: number;
};

/** Ticks of a second in /proc (USER_HZ, the same on all Linux of our kind). */
const TICKS_PER_SECOND = 100;

/**
 * Fields of /proc/PID/stat: pid (comm) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt
 * utime stime … (proc_pid_stat(5)). Null for text of another form. Pure.
 */
export function parseProcessWork(stat: string): ProcessWork | null {
  // The name may hold anything, also spaces and brackets.
  const fields = stat
    .slice(stat.lastIndexOf(')') + 1)
    .trim()
    .split(/\s+/);
  const [state, , , , , , , , , majorFaults, , user, system] = fields;
  const ticks = Number(user) + Number(system);
  if (state === undefined || !Number.isFinite(ticks) || !Number.isFinite(Number(majorFaults))) return null;
  return { state, processorMs: (ticks * 1000) / TICKS_PER_SECOND, majorFaults: Number(majorFaults) };
}

/** Null: there is no such process. */
export function readProcessWork(pid: number): ProcessWork | null {
  try {
    return parseProcessWork(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return null;
  }
}

/** Looks at one process again and again, and says `advanced` when it did something. */
export class ProcessPace {
  readonly pid: number;
  readonly #clock: Clock;
  readonly #quietMs: number;
  readonly #read: (pid: number) => ProcessWork | null;
  #work: ProcessWork | null;
  #advancedMs: number;
  #lookedMs: number;

  constructor(
    pid: number,
    clock: Clock,
    options: { quietMs?: number; read?: (pid: number) => ProcessWork | null } = {},
  ) {
    this.pid = pid;
    this.#clock = clock;
    this.#quietMs = options.quietMs ?? PATIENCE.processStart.ms;
    this.#read = options.read ?? readProcessWork;
    this.#work = this.#read(pid);
    this.#advancedMs = clock.monotonicMs();
    this.#lookedMs = this.#advancedMs;
  }

  /** Looks. True when the process has done nothing for too long, or is not there. */
  isQuiet(): boolean {
    const nowMs = this.#clock.monotonicMs();
    // This process did not run either: nobody looked, and the other had no chance to be seen.
    const unseenMs = nowMs - this.#lookedMs;
    this.#lookedMs = nowMs;
    if (unseenMs > this.#quietMs / 4) this.#advancedMs += unseenMs;
    const before = this.#work;
    const now = this.#read(this.pid);
    this.#work = now;
    if (now !== null && before !== null) {
      const did = now.processorMs - before.processorMs;
      if (did > 0 || now.majorFaults > before.majorFaults) {
        this.#advancedMs = nowMs;
        advanced(`process ${this.pid} starts`, did, 'processor ms');
      }
    }
    return nowMs - this.#advancedMs >= this.#quietMs;
  }

  /** What it did last. */
  text(): string {
    const seconds = ((this.#clock.monotonicMs() - this.#advancedMs) / 1000).toFixed(1);
    if (this.#work === null) return `process ${this.pid} is not there`;
    const { state, processorMs } = this.#work;
    return `process ${this.pid} is in state ${state}, has used ${processorMs} ms of processor time, and nothing in the last ${seconds} s`;
  }
}
