import { corruption } from './corruption.ts';
import { guests } from './guests.ts';
import { hydration } from './hydration.ts';
import { luks2 } from './luks2.ts';
import { move } from './move.ts';
import { postgres } from './postgres.ts';
import { refusals } from './refusals.ts';
import { sourceGone, sourceGoneUnproven } from './source-gone.ts';
import { TROUBLE } from './trouble.ts';

/** All there are, by name. Each has a lab of its own, and throws when something does not hold. */
export const SCENARIOS: Readonly<Record<string, (say: (line: string) => void) => Promise<void>>> = {
  guests,
  // The longest first: none of them holds up the end.
  ...Object.fromEntries(
    Object.entries(TROUBLE).map(([name, options]) => [
      name,
      (say: (line: string) => void) => move(options, say),
    ]),
  ),
  refusals,
  'kernel-to-kernel': (say) => move({ from: 'kernel', to: 'kernel' }, say),
  'userspace-to-kernel': (say) => move({ from: 'userspace', to: 'kernel' }, say),
  'kernel-to-userspace': (say) => move({ from: 'kernel', to: 'userspace' }, say),
  encrypted: (say) => move({ from: 'kernel', to: 'kernel', encrypted: true }, say),
  luks2,
  postgres: (say) => postgres({ from: 'kernel', to: 'kernel' }, say),
  'postgres-userspace-to-kernel': (say) => postgres({ from: 'userspace', to: 'kernel' }, say),
  'postgres-kernel-to-userspace': (say) => postgres({ from: 'kernel', to: 'userspace' }, say),
  corruption,
  hydration,
  'source-gone': sourceGone,
  'source-gone-unproven': sourceGoneUnproven,
};

/** Measurements: nothing else runs beside them. */
export const ALONE: ReadonlySet<string> = new Set(['hydration']);
