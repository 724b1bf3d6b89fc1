import assert from 'node:assert/strict';
import { mkdtempSync } from 'node:fs';
import { test } from 'node:test';
import { figures } from './figures.ts';
import type { LifeOptions, LifeResult } from './life.ts';
import { live } from './start.ts';

/** Of the first life; those that follow count on. A soak looks for others (`npm run soak -- 600 --only sim`). */
const SEED = Number(process.env.GODWIT_SEED ?? 1);
/**
 * Each bug that is put in is found by three lives of ten or more, from any seed on: what it takes to show comes
 * often where it is put in (`World`, `Deeds`), so that what workers do otherwise one day makes none of them rare.
 */
const BUG_DRAINS = 3;
const BUG_LIVES_MAX = 40;
const FLEET = { workers: 5, machines: 8 };

function life(seed: number, options: Omit<LifeOptions, 'seed' | 'root' | 'workers' | 'machines'>) {
  return live({ ...FLEET, ...options, seed, root: mkdtempSync('/dev/shm/godwit-sim-') });
}

test('three hundred drains, with all that may fail meanwhile: one writer, no write lost, and each comes to its end', async (t) => {
  const lives: LifeResult[] = [];
  for (let seed = SEED; seed < SEED + 10; seed++) {
    const result = await life(seed, { drains: 30 });
    lives.push(result);
    assert.equal(result.violation, null, `GODWIT_SEED=${seed}: ${result.violation}`);
  }
  t.diagnostic(figures(lives));
});

test('a seed is a life: the same seed comes to the same end, another to another', async () => {
  const [first, again, other] = [
    await life(SEED, { drains: 3 }),
    await life(SEED, { drains: 3 }),
    await life(SEED + 1, { drains: 3 }),
  ];
  assert.deepEqual(again, first);
  assert.notEqual(other.digest, first.digest);
});

test('bugs that are put in are found within forty short lives', async (t) => {
  const bugs = {
    'a volume server that writes on after its seal': [
      { sealIgnored: true },
      /writes v_|two writers|was sealed with/,
    ],
    'a handoff that both sides believe': [
      { handoffBelievedTwice: true },
      /two writers|runs on w\d and on w\d|w\d opens v_\S+ at \d+; w\d had it|is handed on at/,
    ],
    'a target that is stopped, and taken for one that never heard of its machine': [
      { silenceBelieved: true },
      /two writers|runs on w\d and on w\d|w\d opens v_\S+ at \d+; w\d had it|is handed on at/,
    ],
    'a shim that does not stop its machine': [
      { stopIgnored: true },
      /runs on w\d and on w\d|two writers|writes v_/,
    ],
    'a write that is acknowledged on a full disk, and dropped': [
      { droppedWhenFull: true },
      /reads \d+ in block|is handed on at/,
    ],
    'a volume that goes on when its disk has lost writes': [
      { lossIgnored: true },
      /whose disk lost writes|reads \d+ in block|is handed on at/,
    ],
    'a why that knows nothing of runs': [{ whyIsSilent: true }, /and why is silent/],
  } as const;
  for (const [name, [bug, found]] of Object.entries(bugs)) {
    let drains = 0;
    let violation: string | null = null;
    for (let seed = SEED; violation === null && seed < SEED + BUG_LIVES_MAX; seed++) {
      const result = await life(seed, { drains: BUG_DRAINS, bugs: bug });
      drains += result.drains;
      violation = result.violation;
    }
    assert.match(violation ?? 'nothing', found, name);
    t.diagnostic(`${name}: found after ${drains} drains`);
  }
});
