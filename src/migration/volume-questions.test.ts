import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PEER, VOLUME_QUESTIONS } from '../contract/peer.ts';
import { askingVolume, type VolumeQuestion } from './volume-questions.ts';

test('every question that goes on to the volume is passed on under its name, but for those that one answers itself', async () => {
  const asked: unknown[] = [];
  class Passing extends askingVolume<string, 'compare'>('compare') {
    override async askVolume(move: string, op: VolumeQuestion, args: unknown): Promise<never> {
      asked.push([move, op, args]);
      return undefined as never;
    }
  }
  const passing = new Passing();
  assert.equal('compare' in passing, false);
  assert.equal('status' in passing, false, 'the target answers that');
  await passing.fetched('run1', { cursor: 7 });
  await passing.figures('run2', { freeMapDigest: null });
  assert.deepEqual(asked, [
    ['run1', 'fetched', { cursor: 7 }],
    ['run2', 'figures', { freeMapDigest: null }],
  ]);
  for (const op of VOLUME_QUESTIONS) assert.ok(op === 'compare' || op in passing, op);
  assert.ok(VOLUME_QUESTIONS.every((op) => op in PEER) && VOLUME_QUESTIONS.length > 3);
});
