import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { scratchDir } from '../support/scratch.ts';
import { nextRound, readState, report, roundSeed, type SoakState, writeState } from './state.ts';

const NAMES = ['clone', 'moves'];

describe('the state of a soak', () => {
  it('gives each soak its turn, and an unfinished round its seed again', () => {
    const state: SoakState = { version: 1, seed: 7, rounds: [] };
    const first = nextRound(state, NAMES);
    assert.deepEqual(first, { soak: 'clone', seed: roundSeed(7, 'clone', 0) });
    state.rounds.push({ ...first, outcome: 'unfinished', seconds: 3 });
    assert.deepEqual(nextRound(state, NAMES), first);
    state.rounds.push({ ...first, outcome: 'failed', seconds: 3 });
    const second = nextRound(state, NAMES);
    assert.equal(second.soak, 'moves');
    state.rounds.push({ ...second, outcome: 'passed', seconds: 1 });
    const third = nextRound(state, NAMES);
    assert.equal(third.soak, 'clone');
    assert.notEqual(third.seed, first.seed, 'each round has a seed of its own');
    assert.equal(
      report(state, NAMES),
      `clone: 0 rounds passed, 1 failed (seeds ${first.seed}), 1 not finished, 6 s\nmoves: 1 rounds passed, 0 failed, 0 not finished, 1 s`,
    );
    assert.throws(() => nextRound(state, []));
  });

  it('is read as it was written; what is damaged or of another version is none', (t) => {
    const path = join(scratchDir(t), 'soak', 'state.json');
    assert.equal(readState(path), null);
    const state: SoakState = { version: 1, seed: 7, rounds: [] };
    writeState(path, state);
    assert.deepEqual(readState(path), state);
    for (const text of ['{"version":1', '{"version":2,"seed":1,"rounds":[]}', '[]']) {
      writeFileSync(path, text);
      assert.equal(readState(path), null, text);
    }
  });
});
