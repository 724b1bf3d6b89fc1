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

/** A deadline that is right for user-mode-linux, for the guests that there are. */
export function patient(durationMs: number): number {
  return durationMs * kind.patience;
}
