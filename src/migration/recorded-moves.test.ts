import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { MovePair } from '../../test/support/move-pair.ts';
import { type Cut, type RecordedMove, readJournal, restoreAt } from '../../test/support/recorded-move.ts';
import { type MigrateInOutput, targetRunId } from './migrate-in.ts';
import type { MigrateOutOutput } from './migrate-out.ts';

const FIXTURE = new URL('../../test/fixtures/recorded-move.json', import.meta.url);
const RECORD = process.env.GODWIT_RECORD_MOVE;

const recorded = JSON.parse(readFileSync(FIXTURE, 'utf8')) as RecordedMove;
const HANDOFF = recorded.cuts.findIndex(({ step }) => step === 'migrate-out:handoff');

for (const [index, cut] of recorded.cuts.entries()) {
  test(`a move that an earlier version began, and left as it began ${cut.step}, goes on to its end`, async (t) => {
    const pair = new MovePair(t, {}, (pair, dir) => restoreAt(cut, recorded, pair, dir));
    const end = await pair.sourceEnd();
    assert.equal(end.state, 'done', JSON.stringify(end.error));
    const arrived = await pair.targetEnd();
    assert.equal(arrived.state, 'done', JSON.stringify(arrived.error));
    pair.world.assertMoved();
    assert.deepEqual(keys(end.output), keys(outputOf(recorded.source)), 'what its steps put down');
    assert.deepEqual(keys(arrived.output), keys(outputOf(recorded.target)));
    const { subject, target, bytesAvoided } = end.output as MigrateOutOutput;
    assert.deepEqual([subject?.machineName, target, bytesAvoided], ['db', 'w2', 4096]);
    assert.ok((arrived.output as MigrateInOutput).activatedAtMs);
  });

  if (index >= HANDOFF || cut.events.target === 0) continue;
  test(`a move that an earlier version began, and left as it began ${cut.step}, goes back when it is cancelled`, async (t) => {
    const pair = new MovePair(t, {}, (pair, dir) => restoreAt(cut, recorded, pair, dir));
    pair.source.cancel('run1', 'a test');
    assert.equal((await pair.sourceEnd()).state, 'undone');
    assert.equal((await pair.target.wait(targetRunId('run1'))).state, 'undone');
    pair.world.assertUndone();
    pair.world.assertTargetClean();
  });
}

function outputOf({ events }: RecordedMove['source']): Record<string, unknown> {
  const puts = events.filter(({ type }) => type === 'put').map(({ data }) => JSON.parse(String(data)).values);
  return Object.assign({}, ...puts);
}

function keys(output: object): string[] {
  return Object.keys(output).sort();
}

/** Writes a move down, with the state of both hosts at the start of each step. */
async function record(t: TestContext, file: string): Promise<void> {
  const counts = { source: 0, target: 0 };
  const cuts: Cut[] = [];
  let dir = '';
  let pair: MovePair;
  const watching = (side: 'source' | 'target') => ({
    reached(point: string) {
      if (!point.includes(':after-')) return;
      counts[side] += 1;
      if (!point.endsWith(':after-start-append')) return;
      const { source, target, fetchLog, keptFreeMap } = pair.world;
      cuts.push({
        step: point.split(':').slice(0, 2).join(':'),
        events: { ...counts },
        world: structuredClone({ source, target, fetchLog, keptFreeMap }),
        verdict: pair.inbox.verdict('run1')?.verdict ?? null,
        receipts: {
          source: pair.sourceReceipts.get('run1') !== null,
          target: pair.targetReceipts.get('run1') !== null,
        },
      });
    },
  });
  pair = new MovePair(t, { source: watching('source'), target: watching('target') }, (_pair, folder) => {
    dir = folder;
  });
  pair.start();
  await pair.sourceEnd();
  await pair.targetEnd();
  const receipt = pair.sourceReceipts.get('run1')!;
  await pair.source.close();
  await pair.target.close();
  const move: RecordedMove = {
    commit: execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim(),
    source: readJournal(`${dir}/source.sqlite`),
    target: readJournal(`${dir}/target.sqlite`),
    receipt,
    cuts,
  };
  writeFileSync(file, `${JSON.stringify(move)}\n`);
}

if (RECORD !== undefined) test('a move is recorded', (t) => record(t, RECORD));
