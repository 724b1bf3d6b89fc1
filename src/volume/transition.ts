import { GodwitError } from '../base/errors.ts';
import type { VolumeRecord } from './record.ts';

/**
 * What can happen to a volume's state. Every event names the generation that its sender means, so that a step
 * that is repeated after a crash finds its work done and changes nothing, and one that comes late is refused.
 *
 *   | event    | from         | to             | already done when            |
 *   |----------|--------------|----------------|------------------------------|
 *   | activate | incoming (g) | clone (g)      | clone (g), ready (g)         |
 *   | complete | clone (g)    | ready (g)      | ready (g)                    |
 *   | seal     | ready (g)    | sealed (g)     | sealed (g), retained (g)     |
 *   | unseal   | sealed (g)   | ready (g + 2)  | ready (g + 2)                |
 *   | retain   | sealed (g)   | retained (g)   | retained (g)                 |
 *
 * With `complete` a volume that moved to another key forgets the source's. A clone cannot be sealed: its data
 * file alone is not the volume, so nobody could be served from it. An incoming volume is never sealed either:
 * it is destroyed. `unseal` burns g + 1, which was promised to the target of the move that is undone.
 */
export type VolumeEvent =
  | { kind: 'activate'; generation: number }
  | { kind: 'complete'; generation: number }
  | { kind: 'seal'; generation: number }
  | { kind: 'unseal'; generation: number }
  | { kind: 'retain'; generation: number; destroyAfterMs: number };

type State = VolumeRecord['state'];

const TABLE: Record<VolumeEvent['kind'], { from: State; to: State; step: 0 | 2; done: readonly State[] }> = {
  activate: { from: 'incoming', to: 'clone', step: 0, done: ['clone', 'ready'] },
  complete: { from: 'clone', to: 'ready', step: 0, done: ['ready'] },
  seal: { from: 'ready', to: 'sealed', step: 0, done: ['sealed', 'retained'] },
  unseal: { from: 'sealed', to: 'ready', step: 2, done: ['ready'] },
  retain: { from: 'sealed', to: 'retained', step: 0, done: ['retained'] },
};

/**
 * The record after the event; the same object when the event has happened already. Pure. Throws
 * `VOLUME_BAD_TRANSITION`.
 */
export function transition(record: VolumeRecord, event: VolumeEvent): VolumeRecord {
  const { from, to, step, done } = TABLE[event.kind];
  if (record.generation === event.generation + step && done.includes(record.state)) return record;
  if (record.state !== from || record.generation !== event.generation) {
    throw new GodwitError(
      'VOLUME_BAD_TRANSITION',
      `volume ${record.id} is ${record.state} at generation ${record.generation}: no ${event.kind} at generation ${event.generation}`,
      {
        values: {
          volumeId: record.id,
          state: record.state,
          generation: record.generation,
          event: event.kind,
          eventGeneration: event.generation,
        },
        retry: 'never',
        nextAction:
          record.state === 'clone' && event.kind === 'seal'
            ? 'Wait until the volume is whole (godwit volume show tells how far it is), then ask again.'
            : 'Look at the volume with godwit volume show; the request was meant for another state of it.',
      },
    );
  }
  const next: VolumeRecord = { ...record, state: to, generation: record.generation + step };
  if (event.kind === 'retain') next.destroyAfterMs = event.destroyAfterMs;
  // Whole: the source's key has no more use.
  if (event.kind === 'complete' && next.encryption?.source) {
    const { source: _source, ...own } = next.encryption;
    next.encryption = own;
  }
  return next;
}
