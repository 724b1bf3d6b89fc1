import { writeSync } from 'node:fs';
import type { GuestKind } from './guest-kind.ts';
import { qemuKind } from './qemu-kind.ts';
import { umlKind } from './uml-kind.ts';

/** In the environment of a process that runs a scenario: `qemu`, or user-mode-linux. */
export const KIND_VARIABLE = 'GODWIT_LAB_GUESTS';

/** The same for the folder that the scenario may use; who made it removes it, however the scenario ends. */
export const FOLDER_VARIABLE = 'GODWIT_LAB_FOLDER';

/** EX_TEMPFAIL of sysexits.h, of a process that runs a scenario: it failed, and a guest had frozen. */
export const EXIT_FROZEN = 75;

/** Of all guests of this process. */
export const kind: GuestKind = process.env[KIND_VARIABLE] === 'qemu' ? qemuKind : umlKind;

/**
 * Where a process that runs a scenario says how long each boot of a guest took: a line of milliseconds each.
 */
export const BOOT_DESCRIPTOR = 3;

/** A wait that is over sooner costs nothing; one that is given up too early costs a scenario. */
const MARGIN = 4;
let slownessNow = 1;

/**
 * The measure of this machine: the boot of a guest. All that is waited for afterwards is given so many times
 * as long.
 */
export function noteBoot(durationMs: number): void {
  slownessNow = Math.max(slownessNow, durationMs / kind.bootMs);
  try {
    writeSync(BOOT_DESCRIPTOR, `${Math.round(durationMs)}\n`);
  } catch {
    // Nobody listens: a scenario that was started by hand.
  }
}

/** 1 on a quiet machine with two processors, and where no guest has booted yet. */
export function slowness(): number {
  return slownessNow;
}

/** Nothing is waited for longer than an hour, which is also the longest that the API takes. */
const PATIENCE_MS_MAX = 3_600_000;

/**
 * What may be waited on this machine for what takes at most `durationMs` under user-mode-linux on a quiet one
 * of two processors.
 */
export function patient(durationMs: number): number {
  return Math.min(PATIENCE_MS_MAX, Math.ceil(durationMs * kind.patience * slowness() * MARGIN));
}
