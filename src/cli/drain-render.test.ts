import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drainMachine } from '../../test/support/fake-service.ts';
import type { DrainStatus } from '../contract/schemas.ts';
import { describeChanges, renderDrain, renderPlan, renderSummary } from './drain-render.ts';
import { style } from './style.ts';
import { displayWidth } from './table.ts';

const NOW = 1_700_000_012_000;

const status: DrainStatus = {
  worker: 'worker-1',
  desired: true,
  sinceMs: NOW - 12_000,
  endedAtMs: null,
  state: 'draining',
  machines: [
    drainMachine({
      machineId: 'm_1',
      name: 'pg',
      state: 'hydrating',
      target: 'worker-2',
      phase: 'release',
      hydratedFraction: 0.714,
      bytesPerSecond: 312 * 2 ** 20,
      etaMs: 4_000,
      interruptionMs: { stop: 120, seal: 20, handoff: 2, attach: 30, boot: 240, total: 412 },
      wireBytes: 5 * 2 ** 20,
    }),
    drainMachine({
      machineId: 'm_2',
      name: 'ledger',
      state: 'moving',
      target: 'worker-3',
      phase: 'handoff',
      interruptionMs: { stop: 80, seal: 10, handoff: null, attach: null, boot: null, total: null },
    }),
    drainMachine({
      machineId: 'm_3',
      name: 'files',
      state: 'waiting',
      reason: 'no worker has 4 GiB of memory free',
      nextAction: 'godwit undrain worker-2',
    }),
    drainMachine({ machineId: 'm_4', name: 'cache', state: 'queued' }),
    drainMachine({
      machineId: 'm_5',
      name: 'web',
      state: 'moved',
      target: 'worker-2',
      hydratedFraction: 1,
      volumeBytes: 0,
      bytesAvoided: 7 * 2 ** 20,
      interruptionMs: { stop: 9, seal: 0, handoff: 2, attach: 0, boot: 14, total: 25 },
    }),
  ],
};

const draw = (width: number, height = 24, colour = false) =>
  renderDrain(status, { width, height, style: style(colour), nowMs: NOW }).join('\n');

test('a wide terminal shows everything', () => {
  assert.equal(
    draw(120),
    `
worker-1 draining: 1 of 5 gone, 1 moving, 1 hydrating, 1 waiting  12 s
pg      hydrating  ██████████████░░░░░░   71%  312 MiB/s  eta 4 s  → worker-2  interrupted 412 ms
ledger  handoff                                                    → worker-3  interrupted 90 ms …
files   waiting
  no worker has 4 GiB of memory free; next: godwit undrain worker-2
cache   queued
web     done       ████████████████████  100%                      → worker-2  interrupted 25 ms`.slice(1),
  );
});

test('columns are given up one by one on a narrow terminal, and no line is wider', () => {
  assert.equal(
    draw(60),
    `
worker-1 draining: 1 of 5 gone, 1 moving, 1 hydrating, 1 wa…
pg      hydrating   71%  eta 4 s  interrupted 412 ms
ledger  handoff                   interrupted 90 ms …
files   waiting
  no worker has 4 GiB of memory free; next: godwit undrain …
cache   queued
web     done       100%           interrupted 25 ms`.slice(1),
  );
  for (let width = 1; width < 130; width++) {
    for (const colour of [false, true]) {
      for (const line of draw(width, 24, colour).split('\n'))
        assert.ok(displayWidth(line) <= width, `${width}: ${line}`);
    }
  }
});

test('a low terminal shows what there is most to say about', () => {
  const lines = draw(100, 6).split('\n');
  assert.ok(lines.length <= 5);
  assert.match(lines.join('\n'), /files {3}waiting/);
  assert.doesNotMatch(lines.join('\n'), /web/);
  for (let height = 1; height < 12; height++)
    assert.ok(draw(100, height).split('\n').length <= Math.max(2, height - 1));
});

test('colour changes nothing but colour, and foreign text cannot send escapes', () => {
  const escapeCharacter = String.fromCharCode(27);
  const coloured = draw(120, 24, true);
  assert.ok(coloured.includes(`${escapeCharacter}[33mwaiting${escapeCharacter}[39m`));
  assert.equal(coloured.replace(new RegExp(`${escapeCharacter}\\[[0-9;]*m`, 'g'), ''), draw(120));
  const hostile = {
    ...status,
    machines: [
      drainMachine({
        name: `x${escapeCharacter}[2J`,
        state: 'failed',
        reason: `a\n${escapeCharacter}]0;b`,
        nextAction: null,
      }),
    ],
  };
  const text = renderDrain(hostile, { width: 80, height: 24, style: style(false), nowMs: NOW }).join('');
  assert.ok(!text.includes(escapeCharacter));
  assert.ok(!describeChanges(null, hostile).join('').includes(escapeCharacter));
});

test('without a terminal only what is new is said', () => {
  assert.deepEqual(describeChanges(null, status), [
    'worker-1: draining',
    'pg: runs on worker-2, 50% hydrated, interrupted 412 ms',
    'ledger: moving to worker-3, handoff',
    'files: waiting: no worker has 4 GiB of memory free; next: godwit undrain worker-2',
    'cache: queued',
    'web: moved to worker-2, 0 B over the wire, 7 MiB avoided, interrupted 25 ms',
  ]);
  assert.deepEqual(describeChanges(status, status), []);
  const later = structuredClone(status);
  later.machines[0]!.hydratedFraction = 0.72;
  assert.deepEqual(describeChanges(status, later), []);
  later.machines[0]!.hydratedFraction = 0.75;
  later.state = 'waiting';
  assert.deepEqual(describeChanges(status, later), [
    'worker-1: waiting',
    'pg: runs on worker-2, 75% hydrated, interrupted 412 ms',
  ]);
});

test('the summary has every phase', () => {
  assert.equal(
    renderSummary({
      ...status,
      machines: [
        status.machines[0]!,
        status.machines[3]!,
        { ...status.machines[4]!, bytesAvoided: 3 * 2 ** 20, root: '0123456789abcdef'.repeat(4) },
        { ...status.machines[4]!, name: 'lost', waivedAtMs: 1 },
      ],
    }),
    `
MACHINE  STATE      TARGET    VOLUME   USED   WIRE   AVOIDED  STOP    SEAL   HANDOFF  ATTACH  BOOT    TOTAL   HYDRATION  RECEIPT
pg       hydrating  worker-2  100 GiB  5 MiB  5 MiB  -        120 ms  20 ms  2 ms     30 ms   240 ms  412 ms  -          -
cache    queued     -         100 GiB  5 MiB  0 B    -        -       -      -        -       -       -       -          -
web      moved      worker-2  -        -      0 B    3 MiB    9 ms    0 ms   2 ms     0 ms    14 ms   25 ms   -          0123456789abcdef
lost     moved      worker-2  -        -      0 B    7 MiB    9 ms    0 ms   2 ms     0 ms    14 ms   25 ms   -          waived`.slice(
      1,
    ),
  );
});

test('the plan is a table and a sentence', () => {
  const step = {
    machineId: 'm_1',
    predictedInterruptionMs: 400,
    bytes: 5 * 2 ** 20,
    predictedHydrationMs: 120,
  };
  assert.equal(
    renderPlan({
      worker: 'worker-1',
      steps: [
        { ...step, order: 1, name: 'pg', target: 'worker-2', reason: 'most free memory' },
        {
          ...step,
          order: 2,
          name: 'files',
          target: null,
          reason: 'no worker has room',
          predictedInterruptionMs: null,
          predictedHydrationMs: null,
        },
      ],
      totalBytes: 5 * 2 ** 20,
      predictedFinishMs: 900,
      warnings: ['worker-2 is asked in the clear'],
    }),
    `
ORDER  MACHINE  TARGET    BYTES  INTERRUPTION  HYDRATION  REASON
1      pg       worker-2  5 MiB  ~400 ms       ~120 ms    most free memory
2      files    stays     5 MiB  -             -          no worker has room

1 of 2 machines can go, 5 MiB over the wire, finished after about 900 ms.
warning: worker-2 is asked in the clear`.slice(1),
  );
  const nothing = renderPlan({
    worker: 'worker-1',
    steps: [],
    totalBytes: 0,
    predictedFinishMs: 0,
    warnings: [],
  });
  assert.equal(nothing, 'worker-1 has no machine: there is nothing to do.');
});

test('a plan names the volumes that stay', () => {
  const spare = {
    volumeId: 'v_1',
    name: 'spare',
    usedBytes: 1,
    reason: 'no machine has it, so it goes with none',
    nextAction: 'godwit volume move spare',
  };
  const plan = { worker: 'worker-1', steps: [], totalBytes: 0, predictedFinishMs: 0, warnings: [] };
  assert.equal(renderPlan(plan), 'worker-1 has no machine: there is nothing to do.');
  assert.equal(
    renderPlan({ ...plan, warnings: ['pg runs on worker-2'] }),
    'worker-1 has no machine.\nwarning: pg runs on worker-2',
  );
  assert.match(
    renderPlan({ ...plan, volumes: [spare] }),
    /\nvolume spare stays: no machine has it.*next: godwit volume move spare/,
  );
});
