import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { patient } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { crashPointNames } from './crash-points.ts';
import type { RunDefinition } from './run.ts';

const definition: RunDefinition<string> = {
  kind: 'move',
  resource: (machine) => machine,
  steps: [
    { name: 'one', quietMs: 1, do: async () => {}, undo: async () => {} },
    { name: 'pivot', quietMs: 1, do: async () => {}, pointOfNoReturn: true },
    { name: 'after', quietMs: 1, do: async () => {}, undo: async () => {} },
  ],
};

test('the names of a definition: in the order in which a run meets them', () => {
  assert.deepEqual(crashPointNames(definition, 'forward').slice(0, 6), [
    'move:run:before-started-append',
    'move:run:after-started-append',
    'move:one:before-start-append',
    'move:one:after-start-append',
    'move:one:before-done-append',
    'move:one:after-done-append',
  ]);
  assert.deepEqual(crashPointNames(definition, 'backward'), [
    'move:run:before-undoing-append',
    'move:run:after-undoing-append',
    'move:one:before-undo-append',
    'move:one:after-undo-append',
    'move:one:before-undone-append',
    'move:one:after-undone-append',
  ]);
  const all = crashPointNames(definition);
  assert.equal(new Set(all).size, all.length);
  assert.ok(all.includes('move:after:after-failed-append') && all.includes('move:run:before-cancel-append'));
});

/** A process that carries a run of two steps to its end; each step adds a line to the file `did`. */
const PROGRAM = `
const at = process.env.ROOM;
const { Journal } = await import(at + 'journal.ts');
const { crashPointsFromEnvironment } = await import(at + 'crash-points.ts');
const { systemClock } = await import(at + '../base/clock.ts');
const { systemRandom } = await import(at + '../base/random.ts');
const { silentLogger } = await import(at + '../base/logger.ts');
const { appendFileSync } = await import('node:fs');
const step = (name) => ({ name, quietMs: 60000, do: async () => appendFileSync(process.env.DID, name + '\\n') });
const journal = new Journal({
  database: process.env.DATABASE, clock: systemClock, random: systemRandom, logger: silentLogger,
  crashPoints: crashPointsFromEnvironment(process.env),
  definitions: [{ kind: 'move', resource: (machine) => machine, steps: [step('one'), step('two')] }],
});
journal.resume();
journal.start('move', 'machine:a', { runId: 'r' });
const alive = setInterval(() => {}, 1000);
const run = await journal.wait('r');
console.log(run.state);
clearInterval(alive);
await journal.close();
`;

// A process for each point takes its time; these are where a repeat or a skip would show.
for (const [point, did] of [
  ['move:run:before-started-append', 'one two'],
  ['move:one:after-start-append', 'one two'],
  ['move:one:before-done-append', 'one one two'],
  ['move:two:after-done-append', 'one two'],
] as const) {
  test(`SIGKILL at ${point}, once: the next process ends the run`, (t) => {
    const folder = scratchDir(t);
    const didPath = join(folder, 'did');
    const program = join(folder, 'program.mjs');
    writeFileSync(program, PROGRAM);
    appendFileSync(didPath, '');
    const environment = {
      ...process.env,
      ROOM: pathToFileURL(`${import.meta.dirname}/`).href,
      DATABASE: join(folder, 'journal.sqlite'),
      DID: didPath,
      GODWIT_CRASH_AT: point,
      GODWIT_CRASH_MARKER: join(folder, 'marker'),
    };
    const start = () =>
      spawnSync(process.execPath, [program], {
        env: environment,
        encoding: 'utf8',
        timeout: patient(60_000),
      });
    const first = start();
    assert.equal(first.signal, 'SIGKILL', first.stderr);
    assert.ok(existsSync(environment.GODWIT_CRASH_MARKER));
    const second = start();
    assert.equal(second.stdout, 'done\n', second.stderr);
    assert.equal(readFileSync(didPath, 'utf8').trim().replaceAll('\n', ' '), did);
  });
}
