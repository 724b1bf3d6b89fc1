import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import type { VolumeRecord } from './record.ts';
import { transition, type VolumeEvent } from './transition.ts';

const STATES = ['incoming', 'clone', 'ready', 'sealed', 'retained'] as const;
const KINDS = ['activate', 'complete', 'seal', 'unseal', 'retain'] as const;

function record(state: VolumeRecord['state'], generation: number): VolumeRecord {
  return {
    formatVersion: 1,
    id: 'v_test',
    name: 'data',
    lengthBytes: 4096,
    filesystem: 'none',
    generation,
    state,
    createdAtMs: 1,
    machineId: null,
    destroyAfterMs: null,
  };
}

function event(kind: VolumeEvent['kind'], generation: number): VolumeEvent {
  return kind === 'retain' ? { kind, generation, destroyAfterMs: 5000 } : { kind, generation };
}

/** `state generation` after the event, 'same' for an event that has happened already, 'refused'. */
function outcome(state: VolumeRecord['state'], generation: number, kind: VolumeEvent['kind']): string {
  const before = record(state, generation);
  try {
    const after = transition(before, event(kind, 5));
    return after === before ? 'same' : `${after.state} ${after.generation}`;
  } catch (error) {
    assert.ok(isGodwitError(error, 'VOLUME_BAD_TRANSITION'));
    return 'refused';
  }
}

test('every state with every event of its generation', () => {
  const table: Record<string, string> = {};
  for (const state of STATES) for (const kind of KINDS) table[`${state} ${kind}`] = outcome(state, 5, kind);
  assert.deepEqual(table, {
    'incoming activate': 'clone 5',
    'incoming complete': 'refused',
    'incoming seal': 'refused',
    'incoming unseal': 'refused',
    'incoming retain': 'refused',
    'clone activate': 'same',
    'clone complete': 'ready 5',
    'clone seal': 'refused',
    'clone unseal': 'refused',
    'clone retain': 'refused',
    'ready activate': 'same',
    'ready complete': 'same',
    'ready seal': 'sealed 5',
    'ready unseal': 'refused',
    'ready retain': 'refused',
    'sealed activate': 'refused',
    'sealed complete': 'refused',
    'sealed seal': 'same',
    'sealed unseal': 'ready 7',
    'sealed retain': 'retained 5',
    'retained activate': 'refused',
    'retained complete': 'refused',
    'retained seal': 'same',
    'retained unseal': 'refused',
    'retained retain': 'same',
  });
});

test('an event of another generation is refused in every state, but for an unseal that has happened', () => {
  for (const state of STATES) {
    for (const kind of KINDS) {
      for (const generation of [3, 4, 6, 7, 8]) {
        const done = state === 'ready' && kind === 'unseal' && generation === 7;
        assert.equal(
          outcome(state, generation, kind),
          done ? 'same' : 'refused',
          `${state} ${generation} ${kind}`,
        );
      }
    }
  }
});
