import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { crashAt, MovePair } from '../../test/support/move-pair.ts';
import { ModelPeer, MoveWorld } from '../../test/support/move-world.ts';
import { patient, until } from '../../test/support/patience.ts';
import { receiptBody } from '../../test/support/receipts.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { newWorkerKey } from '../../test/support/worker-keys.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { Crash, crashPointNames, noCrashPoints } from '../journal/crash-points.ts';
import type { RunDefinition, RunView } from '../journal/run.ts';
import { Comparison } from '../receipt/comparison.ts';
import { draftReceipt, verifyReceipt } from '../receipt/envelope.ts';
import type { GuestWrites } from '../receipt/proof.ts';
import { machineView } from './drain.ts';
import { MoveInbox } from './inbox.ts';
import { migrateIn, phaseOf, targetRunId } from './migrate-in.ts';
import { type MigrateOutOutput, migrateOut } from './migrate-out.ts';
import { Overrides } from './overrides.ts';
import { ReceiptBook } from './receipt-book.ts';
import type { SourceSide } from './source-side.ts';

test('a move: the machine ends on the target, at the next generation, and the source keeps a sealed copy', async (t) => {
  const pair = new MovePair(t);
  pair.start();
  const end = await pair.sourceEnd();
  assert.equal(end.state, 'done');
  assert.equal((await pair.targetEnd()).state, 'done');
  pair.world.assertMoved();
  assert.deepEqual(pair.world.warmed, [3, 1], 'what the guest will want first was told before the stop');
  assert.ok(pair.world.keptFreeMap);
  const { unusedBytes, bytesAvoided } = end.output as MigrateOutOutput;
  assert.deepEqual([unusedBytes, bytesAvoided], [4096, 4096]);
});

const definitions = (() => {
  const world = new MoveWorld();
  const database = new DatabaseSync(':memory:');
  return {
    source: migrateOut({
      source: world.sourceSide,
      peers: () => [],
      clock: systemClock,
      key: newWorkerKey(),
      receipts: new ReceiptBook(database),
      worker: { name: 'w1', url: 'model:' },
      retentionMs: 0,
    }) as RunDefinition<never>,
    target: migrateIn({
      target: world.targetSide,
      inbox: new MoveInbox(database, systemClock),
      receipts: new ReceiptBook(database),
      clock: systemClock,
    }) as RunDefinition<never>,
  };
})();

for (const side of ['source', 'target'] as const) {
  test(`the ${side} dies before and after each append to its journal: the move ends, with one writer at all times`, async (t) => {
    for (const point of crashPointNames(definitions[side], 'forward')) {
      // Before its run exists there is nothing to resume: whoever asked sees the request fail and asks again.
      if (point.startsWith(`${definitions[side].kind}:run:before-started`)) continue;
      await t.test(point, async (t) => {
        const crash = crashAt(point);
        const pair = new MovePair(t, { [side]: crash.points });
        try {
          pair.start();
        } catch (error) {
          assert.ok(error instanceof Crash);
        }
        await pair.reopen(side, crash.died);
        assert.equal(crash.reached(), true);
        assert.equal((await pair.sourceEnd()).state, 'done');
        assert.equal((await pair.targetEnd()).state, 'done');
        pair.world.assertMoved();
      });
    }
  });
}

test('each step of the source fails for good: the machine runs again where it was', async (t) => {
  const steps: (keyof SourceSide)[] = ['openExport', 'stop', 'seal', 'releaseExport'];
  for (const step of steps) {
    await t.test(step, async (t) => {
      const pair = new MovePair(t);
      await pair.source.close();
      const { Unrecoverable } = await import('../journal/outcome.ts');
      const failing: SourceSide = {
        ...pair.world.sourceSide,
        [step]: async () => {
          throw new Unrecoverable(new Error(`${step} is broken`), 'system');
        },
      };
      pair.openSource(noCrashPoints, failing);
      pair.start();
      assert.equal((await pair.sourceEnd()).state, 'failed');
      pair.world.assertUndone();
      if (step !== 'openExport') {
        assert.equal((await pair.targetEnd()).state, 'undone');
        pair.world.assertTargetClean();
      }
    });
  }
});

test('an export whose shim dies while the machine is stopped is opened again, and the move goes on', async (t) => {
  const pair = new MovePair(t);
  const { seal } = pair.world.sourceSide;
  pair.world.sourceSide.seal = async (...args) => {
    const report = await seal(...args);
    pair.world.source.exported = null;
    return report;
  };
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'done');
  pair.world.assertMoved();
});

test('a target that lost blocks after the proof finds them at the source, also when the export died meanwhile', async (t) => {
  const pair = new MovePair(t);
  const { finish } = pair.world.targetSide;
  let isLost = false;
  pair.world.targetSide.finish = async (...args) => {
    if (!isLost) pair.world.source.exported = null;
    isLost = true;
    if (pair.world.source.exported === null)
      throw new GodwitError('CLONE_NOT_COMPLETE', 'some blocks are there', { nextAction: 'Wait.' });
    return finish(...args);
  };
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'done');
  pair.world.assertMoved();
});

test('an undo that is cut off at each append is carried to its end', async (t) => {
  for (const point of crashPointNames(definitions.source, 'backward')) {
    await t.test(point, async (t) => {
      const crash = crashAt(point);
      const pair = new MovePair(t, { source: crash.points });
      // The target vanishes when it would be told: nothing was sent, so the source must unwind.
      const seal = pair.world.sourceSide.seal;
      pair.world.sourceSide.seal = async (...args) => {
        const report = await seal(...args);
        pair.world.connected = false;
        return report;
      };
      pair.start();
      await pair.reopen('source', crash.died);
      const end = await pair.sourceEnd();
      assert.equal(end.state, 'undone');
      assert.equal(end.error?.code, 'MIGRATION_TARGET_LOST');
      pair.world.assertUndone();
      assert.equal(pair.world.source.volume.generation, 3);
      pair.world.connected = true;
      assert.equal((await pair.targetEnd()).state, 'undone');
      pair.world.assertTargetClean();
    });
  }
});

test('both sides have the same receipt, and the source has it before it lets go', async (t) => {
  const pair = new MovePair(t);
  const { retain } = pair.world.sourceSide;
  pair.world.sourceSide.retain = async (...args) => {
    assert.ok(
      pair.sourceReceipts.get('run1') && pair.targetReceipts.get('run1'),
      'retained without a receipt',
    );
    await retain(...args);
  };
  const { finish } = pair.world.targetSide;
  pair.world.targetSide.finish = async (request) => {
    assert.ok(pair.targetReceipts.get('run1'), 'finished without a receipt');
    await finish(request);
  };
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'done');
  const receipt = pair.sourceReceipts.find('db');
  assert.deepEqual(receipt, pair.targetReceipts.find('m_1'));
  const { bytes, root, rangesMended } = verifyReceipt(receipt);
  assert.deepEqual(bytes, {
    total: 2 ** 20,
    fetched: 4096,
    notFetched: 2 ** 20 - 4096,
    avoided: 4096,
    compared: 4096,
    readBack: 4096,
    writtenSince: 0,
    mended: 0,
    mendedLeft: 0,
  });
  assert.equal(rangesMended, 0);
  assert.equal((await pair.sourceEnd()).output.root, root);
});

test('what came wrong is mended, and the receipt says so', async (t) => {
  const pair = new MovePair(t);
  pair.world.fetchLog = ['f'.repeat(64)];
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'done');
  const { bytes, rangesMended } = verifyReceipt(pair.sourceReceipts.get('run1'));
  assert.deepEqual([rangesMended, bytes.mended, bytes.compared], [1, 4096, 4096]);
});

test('what is wrong twice stops the release and says where; it goes on when it is right', async (t) => {
  const pair = new MovePair(t);
  pair.world.fetchLog = ['f'.repeat(64)];
  pair.world.mendable = false;
  pair.start();
  await until('a dispute', () => {
    const run = pair.source.get('run1');
    return run.step === 'prove' && (run.output as MigrateOutOutput).disputed != null;
  });
  const run = pair.source.get('run1');
  assert.equal((run.output as MigrateOutOutput).disputed?.code, 'MIGRATION_CONTENT_DIFFERS');
  assert.match((run.output as MigrateOutOutput).disputed?.message ?? '', /MiB 0 of db .*w1 and w2/);
  const row = machineView({ machineId: 'm_1', name: 'db', volumeBytes: 0, usedBytes: 0 }, run, null, null);
  assert.equal(row.state, 'waiting');
  assert.match(row.reason ?? '', /is not the same/);
  assert.equal(pair.world.source.volume.state, 'sealed');
  assert.equal(pair.world.source.exported, 'open');
  assert.equal(pair.sourceReceipts.get('run1'), null);
  assert.equal(pair.targetReceipts.get('run1'), null);
  pair.world.mendable = true;
  assert.equal((await pair.sourceEnd()).state, 'done');
  assert.equal((pair.source.get('run1').output as MigrateOutOutput).disputed, null);
});

test('the source is lost when all blocks are there: an operator does without the receipt, and the source comes to know', async (t) => {
  const crash = crashAt('migrate-out:serve:after-done-append');
  const pair = new MovePair(t, { source: crash.points });
  pair.start();
  await crash.died;
  const id = targetRunId('run1');
  const waits = (run: RunView) => /w1 holds what came/.test(run.reason?.message ?? '');
  const waiting = await pair.target.wait(id, { timeoutMs: patient(20_000), until: waits });
  assert.match(waiting.reason!.nextAction, /godwit runs force run1.in unproven --yes/);
  pair.targetAnswers.waiveReceipt(waiting, 'a test');
  const { state, output } = await pair.targetEnd();
  assert.equal(state, 'done');
  const waivedAtMs = pair.targetReceipts.waivedAtMs('run1');
  assert.ok(waivedAtMs !== null);
  assert.equal(output.waivedAtMs, waivedAtMs);
  assert.match(JSON.stringify(pair.target.events(id)), /"by":"a test, without a receipt"/);

  await pair.reopen('source', crash.died);
  const end = await pair.sourceEnd();
  assert.equal(end.state, 'done');
  pair.world.assertMoved();
  const row = machineView({ machineId: 'm_1', name: 'db', volumeBytes: 0, usedBytes: 0 }, end, null, null);
  assert.deepEqual([row.state, row.root, row.waivedAtMs], ['moved', null, waivedAtMs]);
  assert.equal(pair.sourceReceipts.waivedAtMs('run1'), waivedAtMs);
  assert.equal(pair.sourceReceipts.get('run1'), null);
  assert.equal(pair.targetReceipts.get('run1'), null);
});

for (const asks of ['handoff', 'serve'] as const) {
  test(`a source that comes back in step ${asks} when the target's journal has forgotten the run: it never starts the machine`, async (t) => {
    const crash = crashAt(`migrate-out:${asks}:${asks === 'handoff' ? 'before' : 'after'}-done-append`);
    const pair = new MovePair(t, { source: crash.points });
    pair.start();
    await crash.died;
    const id = targetRunId('run1');
    const waits = (run: RunView) => /w1 holds what came/.test(run.reason?.message ?? '');
    pair.targetAnswers.waiveReceipt(
      await pair.target.wait(id, { timeoutMs: patient(20_000), until: waits }),
      'a test',
    );
    await pair.targetEnd();
    await until('the end of what came in', () => pair.inbox.unended().length === 0);
    await pair.forgetTargetRuns();
    assert.throws(() => pair.target.get(id), { code: 'JOURNAL_UNKNOWN_RUN' });
    assert.equal((await pair.targetAnswers.handoff('run1', { freeMap: null })).phase, 'released');

    await pair.reopen('source', crash.died);
    assert.equal((await pair.sourceEnd()).state, 'done');
    pair.world.assertMoved();
  });
}

test('what an operator ended at the target is answered by the record of its volume', async (t) => {
  const crash = crashAt('migrate-out:handoff:before-done-append');
  const pair = new MovePair(t, { source: crash.points });
  pair.world.targetSide.boot = async () => {
    throw new Error('it does not boot');
  };
  pair.start();
  await crash.died;
  const id = targetRunId('run1');
  await pair.target.wait(id, { timeoutMs: patient(20_000), until: ({ step }) => step === 'boot' });
  pair.target.force(id, 'forget', 'a test');
  await pair.targetEnd();
  for (const look of ['at once', 'pruned']) {
    const { phase, gone } = await pair.targetAnswers.status('run1');
    assert.deepEqual([phase, gone], ['activated', undefined], look);
    await until('the end of what came in', () => pair.inbox.unended().length === 0);
    await pair.forgetTargetRuns();
  }
  pair.world.target.volume = null;
  const { phase, gone, nextAction } = await pair.targetAnswers.status('run1');
  assert.deepEqual([phase, gone], ['activated', true]);
  assert.match(nextAction ?? '', /godwit runs force run1 undo --yes/);
});

test('a verdict of an earlier version, whose run nobody knows any more, still keeps the source from starting the machine', async (t) => {
  const database = new DatabaseSync(join(scratchDir(t), 'old.sqlite'));
  t.after(() => database.close());
  database.exec(`CREATE TABLE move_verdicts (run_id TEXT PRIMARY KEY, verdict TEXT NOT NULL, decided_at_ms INTEGER NOT NULL) STRICT;
    INSERT INTO move_verdicts VALUES ('run1', 'handed-over', 1), ('run2', 'forgotten', 1)`);
  const pair = new MovePair(t);
  const inbox = new MoveInbox(database, systemClock);
  inbox.prune(2);
  const targetAnswers = pair.targetAnswersOf(inbox);
  assert.equal((await targetAnswers.status('run1')).phase, 'activated');
  assert.equal((await targetAnswers.handoff('run1', { freeMap: null })).phase, 'activated');
  assert.equal(inbox.verdict('run2'), null, 'what was forgotten need not be remembered');
  assert.equal((await targetAnswers.handoff('run2', { freeMap: null })).phase, 'forgotten');
});

test('what a live target has is not taken back, and its blocks are not taken away, whatever is stated', async (t) => {
  const pair = new MovePair(t);
  await pair.heldAtTheTarget();
  for (const how of ['undo', 'forget'] as const) {
    for (const destroyed of [false, true]) {
      const code = how === 'undo' ? 'MIGRATION_TARGET_HAS_IT' : 'MIGRATION_TARGET_NEEDS_BLOCKS';
      await assert.rejects(pair.force(how, destroyed), { code });
    }
  }
  assert.equal(pair.world.source.exported, 'open');
  pair.letBoot();
  assert.equal((await pair.sourceEnd()).state, 'done');
  pair.world.assertMoved();
});

test('a target that cannot be asked is given up only by a statement that names the loss', async (t) => {
  const pair = new MovePair(t);
  await pair.heldAtTheTarget();
  pair.world.connected = false;
  for (const how of ['undo', 'forget'] as const) {
    await assert.rejects(
      pair.force(how),
      (error) =>
        isGodwitError(error, 'MIGRATION_TARGET_UNASKED') &&
        error.nextAction.includes(`godwit runs force run1 ${how} --target-is-destroyed --yes`) &&
        /would be (lost|taken away)/.test(error.message),
    );
  }
  await pair.target.close({ graceMs: 100 });
  pair.world.target.attached = null;
  await pair.force('undo', true);
  assert.equal((await pair.sourceEnd()).state, 'undone');
  pair.world.assertUndone();
  assert.match(JSON.stringify(pair.source.events('run1')), /a test, who says that the target is destroyed/);
});

test('a target that was said to be destroyed and answers keeps what it has; the undo can be turned round', async (t) => {
  const pair = new MovePair(t);
  await pair.heldAtTheTarget();
  pair.world.connected = false;
  let asked = 0;
  pair.world.onCall = (call) => {
    if (call === 'cancel' && ++asked === 2) pair.world.connected = true;
  };
  await pair.force('undo', true);
  const waiting = await pair.source.wait('run1', {
    timeoutMs: patient(20_000),
    until: ({ reason }) => /has the volume \(activated\)/.test(reason?.message ?? ''),
  });
  assert.equal(waiting.state, 'undoing');
  assert.match(waiting.reason!.nextAction, /godwit runs force run1 forward --yes/);
  assert.equal(pair.world.source.exported, 'open', 'nothing was undone');
  await until('the force to be taken', () => {
    try {
      pair.source.force('run1', 'forward', 'a test');
      return true;
    } catch (error) {
      // An undo that is under way ends first.
      return !isGodwitError(error, 'JOURNAL_FORCE_REFUSED');
    }
  });
  pair.letBoot();
  assert.equal((await pair.sourceEnd()).state, 'done');
  pair.world.assertMoved();
});

test('a target that was forgotten says so to its source, and is taken up again where it stood', async (t) => {
  for (const step of ['hydrate', 'prove']) {
    const pair = new MovePair(t);
    const hold = Promise.withResolvers<void>();
    const { targetSide, sourceSide } = pair.world;
    const { hydration } = targetSide;
    targetSide.hydration = async (request) => {
      const status = await hydration(request);
      return status && held && step === 'hydrate' ? { ...status, exposedBytes: 4096 } : status;
    };
    const { digests } = sourceSide;
    sourceSide.digests = async (...args) => {
      if (step === 'prove') await hold.promise;
      return digests(...args);
    };
    let held = true;
    pair.start();
    const id = targetRunId('run1');
    await until('the target in that step', () => pair.target.get(id).step === step);
    const { target: journal, targetAnswers, peer } = pair;
    const atTarget = new Overrides({ journal, targetAnswers, peers: () => [peer], clock: systemClock });
    const override = { targetIsDestroyed: false, by: 'a test' };
    await atTarget.force(id, { how: 'forget', ...override });
    const { error } = await pair.targetEnd();
    assert.match(error!.nextAction, /`godwit runs force run1\.in forward --yes` takes it up again/);
    held = false;
    hold.resolve();
    const waiting = await pair.source.wait('run1', {
      timeoutMs: patient(20_000),
      until: ({ reason }) => /nobody brings the move to its end on w2/.test(reason?.message ?? ''),
    });
    assert.equal(waiting.reason!.nextAction, error!.nextAction);
    await atTarget.force(id, { how: 'forward', ...override });
    assert.equal((await pair.targetEnd()).state, 'done');
    assert.equal((await pair.sourceEnd()).state, 'done');
    pair.world.assertMoved();
    assert.equal((await pair.targetAnswers.status('run1')).phase, 'released');
    await pair.forgetTargetRuns();
    assert.equal((await pair.targetAnswers.status('run1')).phase, 'released', 'the end that counts');
  }
});

test('what was destroyed at the target may come back; what the target runs is not undone there', async (t) => {
  const pair = new MovePair(t);
  await pair.heldAtTheTarget();
  const { target: journal, targetAnswers, peer } = pair;
  const atTarget = new Overrides({ journal, targetAnswers, peers: () => [peer], clock: systemClock });
  const id = targetRunId('run1');
  const by = 'a test';
  await assert.rejects(atTarget.force(id, { how: 'undo', targetIsDestroyed: false, by }), {
    code: 'MIGRATION_TARGET_HAS_IT',
  });
  await atTarget.force(id, { how: 'forget', targetIsDestroyed: false, by });
  await pair.targetEnd();
  await assert.rejects(pair.force('undo'), { code: 'MIGRATION_TARGET_HAS_IT' });
  pair.world.target.volume = null;
  pair.world.target.attached = null;
  await assert.rejects(atTarget.force(id, { how: 'forward', targetIsDestroyed: false, by }), {
    code: 'JOURNAL_RUN_OVER',
  });
  await pair.force('undo');
  assert.equal((await pair.sourceEnd()).state, 'undone');
  pair.world.assertUndone();
});

test('a target that comes back after it was said to be destroyed stops its machine, and an operator throws away what it wrote', async (t) => {
  const pair = new MovePair(t);
  const { hydration } = pair.world.targetSide;
  pair.world.targetSide.hydration = async (request) => {
    const status = await hydration(request);
    return status && { ...status, exposedBytes: 4096 };
  };
  pair.start();
  await pair.source.wait('run1', { timeoutMs: patient(20_000), until: ({ step }) => step === 'serve' });
  await pair.target.close({ graceMs: 100 });
  const lost = { ...pair.world.target };
  Object.assign(pair.world.target, { running: false, attached: null });
  pair.world.connected = false;
  await pair.force('undo', true);
  assert.equal((await pair.sourceEnd()).state, 'undone');

  pair.world.connected = true;
  // Its machine is not up yet, which the model could not tell from two writers.
  Object.assign(pair.world.target, { volume: lost.volume });
  pair.openTarget();
  const id = targetRunId('run1');
  const stopped = await pair.target.wait(id, {
    timeoutMs: patient(20_000),
    until: ({ reason }) => /runs there again/.test(reason?.message ?? ''),
  });
  assert.ok(pair.world.calls.includes('standDown'));
  assert.match(stopped.reason!.nextAction, new RegExp(`godwit runs force ${id} undo --yes`));
  const peer = new ModelPeer(async () => ({ state: 'undone', step: null }));
  peer.name = 'w1';
  const { target: journal, targetAnswers } = pair;
  const overrides = new Overrides({
    journal,
    targetAnswers,
    peers: () => [peer],
    clock: systemClock,
  });
  await overrides.force(id, { how: 'undo', targetIsDestroyed: false, by: 'a test' });
  assert.equal((await pair.targetEnd()).state, 'undone');
  assert.equal(pair.world.target.volume, null);
});

test('why a move is not over says at its source what the machine does there meanwhile', async (t) => {
  const pair = new MovePair(t);
  const { targetSide } = pair.world;
  const { hydration } = targetSide;
  targetSide.hydration = async (request) => {
    const status = await hydration(request);
    return status && { ...status, exposedBytes: 4096 };
  };
  targetSide.guest = async () => ({ writtenBytes: 3 * 2 ** 20, waits: 12, waitP99Ms: 7.26 });
  pair.start();
  await pair.source.wait('run1', {
    timeoutMs: patient(20_000),
    until: ({ reason }) =>
      /waited 12 times .* 7\.3 ms .* 3\.0 MiB that are only on w2\.$/.test(reason?.nextAction ?? ''),
  });
  targetSide.hydration = hydration;
  assert.equal((await pair.sourceEnd()).state, 'done');
  await assert.rejects(pair.targetAnswers.guest('run1', {}), { code: 'MIGRATION_NOT_PROVABLE' });
});

test('a dispute that nobody can settle ends without a receipt when an operator says so', async (t) => {
  const pair = new MovePair(t);
  pair.world.fetchLog = ['f'.repeat(64)];
  pair.world.mendable = false;
  pair.start();
  await until('a dispute', () => (pair.source.get('run1').output as MigrateOutOutput).disputed != null);
  pair.targetAnswers.waiveReceipt(pair.target.get(targetRunId('run1')), 'a test');
  assert.equal((await pair.targetEnd()).state, 'done');
  const { state, output } = await pair.sourceEnd();
  assert.deepEqual([state, output.disputed], ['done', null]);
  assert.equal(pair.sourceReceipts.get('run1'), null);
  pair.world.assertMoved();
});

test('only a move that waits for its receipt can do without it', async (t) => {
  const pair = new MovePair(t);
  const refuses = (run: RunView, nextAction: RegExp) =>
    assert.throws(
      () => pair.targetAnswers.waiveReceipt(run, 'a test'),
      (error) => isGodwitError(error, 'MIGRATION_NOTHING_TO_WAIVE') && nextAction.test(error.nextAction),
    );
  let whole = false;
  const hydration = pair.world.targetSide.hydration;
  pair.world.targetSide.hydration = async (request) => {
    const status = await hydration(request);
    return status && !whole ? { ...status, exposedBytes: 4096 } : status;
  };
  refuses(pair.start(), /force run1.in unproven/);
  const id = targetRunId('run1');
  await until(
    'the copy',
    () => pair.source.get('run1').step === 'serve' && pair.target.get(id).step === 'hydrate',
  );
  refuses(pair.target.get(id), /godwit why run1.in/);
  assert.equal(pair.targetReceipts.waivedAtMs('run1'), null);
  whole = true;
  await pair.sourceEnd();
  refuses(await pair.targetEnd(), /godwit why run1.in/);
  assert.ok(pair.targetReceipts.get('run1'));
});

/** The target's kernel has fetched, and has `digest` in the one block that may be in use. */
function copyByKernel({ world }: MovePair, digest: string, guest: GuestWrites): void {
  let comparison: Comparison | null = null;
  world.targetSide.fetched = async () => ({ ranges: [], next: 0, ended: true, untold: true });
  world.targetSide.compare = async (_request, { from, freeMapDigest, ranges }) => {
    if (from === 0) comparison = new Comparison(2 ** 20, freeMapDigest);
    const found = Buffer.from(digest, 'hex');
    for (const { digests, ...range } of ranges) comparison!.add(range, Buffer.from(digests, 'base64'), found);
    return { found: ranges.map(() => found.toString('base64')) };
  };
  world.targetSide.figures = async () => {
    const { root, ranges, comparedBytes, ...disk } = comparison!.sums();
    return {
      root,
      ranges,
      comparedBytes,
      fetchedBytes: comparedBytes,
      disk: { ...disk, guest: { ...guest } },
    };
  };
}

test('where the kernel has fetched, the disk is compared, and the receipt says what differs', async (t) => {
  for (const digest of ['a', 'b']) {
    const pair = new MovePair(t);
    copyByKernel(pair, digest.repeat(64), {
      ...{ writes: 1, writeBytes: 4096, discards: 0, discardBytes: 0 },
      sectorBytes: 4096,
    });
    pair.start();
    assert.equal((await pair.sourceEnd()).state, 'done');
    const receipt = pair.sourceReceipts.get('run1');
    assert.deepEqual(receipt, pair.targetReceipts.get('run1'));
    const { version, bytes, disk } = verifyReceipt(receipt);
    const same = digest === 'a' ? 4096 : 0;
    assert.deepEqual([version, bytes.compared, bytes.fetched], [2, same, same]);
    assert.deepEqual([disk?.changed, disk?.unused, disk?.guest?.writes], [4096 - same, 2 ** 20 - 4096, 1]);
  }
});

test('more that differs than the guest wrote stops the release for good', async (t) => {
  const pair = new MovePair(t);
  const guest: GuestWrites = { writes: 0, writeBytes: 0, discards: 0, discardBytes: 0, sectorBytes: 512 };
  copyByKernel(pair, 'b'.repeat(64), guest);
  pair.start();
  const prove = () => pair.source.get('run1').steps.find(({ name }) => name === 'prove');
  const disputed = () => (pair.source.get('run1').output as MigrateOutOutput).disputed;
  await until('a dispute', () => disputed() != null);
  assert.equal(disputed()?.code, 'MIGRATION_CONTENT_UNEXPLAINED');
  assert.match(
    disputed()?.message ?? '',
    /^4096 bytes of db on w2 .*w1 sealed, most of them in a row in MiB 0,/,
  );
  // What the guest writes later would explain it.
  Object.assign(guest, { writes: 100, writeBytes: 409_600 });
  const attempts = prove()?.attempts ?? 0;
  await until('two more attempts', () => (prove()?.attempts ?? 0) >= attempts + 2);
  const run = pair.source.get('run1');
  assert.equal(disputed()?.code, 'MIGRATION_CONTENT_UNEXPLAINED');
  const row = machineView({ machineId: 'm_1', name: 'db', volumeBytes: 0, usedBytes: 0 }, run, null, null);
  assert.equal(row.state, 'waiting');
  assert.match(row.reason ?? '', /nothing that the guest wrote/);
  assert.equal(pair.world.source.volume.state, 'sealed');
  assert.equal(pair.world.source.exported, 'open');
  assert.equal(pair.sourceReceipts.get('run1'), null);
  assert.equal(pair.targetReceipts.get('run1'), null);
});

test('the target does not sign what it finds otherwise', async (t) => {
  const pair = new MovePair(t);
  const { fetched } = pair.world.targetSide;
  let block!: () => void;
  const blocked = new Promise<void>((resolve) => {
    block = resolve;
  });
  pair.world.targetSide.fetched = async (request, query) => {
    await blocked;
    return fetched(request, query);
  };
  pair.start();
  await until('the proof', () => pair.source.get('run1'), { is: ({ step }) => step === 'prove' });
  const keys = { source: newWorkerKey(), target: newWorkerKey() };
  await assert.rejects(
    pair.targetAnswers.countersign('run1', draftReceipt(receiptBody('run1', keys), keys.source)),
    (error) => isGodwitError(error, 'MIGRATION_PROOF_DIFFERS'),
  );
  const ranges = [{ first: 0, blocks: 1, digests: Buffer.alloc(32).toString('base64') }];
  await assert.rejects(
    pair.targetAnswers.compare('run1', { from: 0, freeMapDigest: 'f'.repeat(64), ranges }),
    (error) => isGodwitError(error, 'MIGRATION_PROOF_DIFFERS'),
  );
  assert.equal(pair.targetReceipts.get('run1'), null);
  block();
  assert.equal((await pair.sourceEnd()).state, 'done');
  await assert.rejects(pair.targetAnswers.fetched('run1', { cursor: 0 }), (error) =>
    isGodwitError(error, 'MIGRATION_NOT_PROVABLE'),
  );
});

test('any one answer of the target gets lost: the move ends all the same', async (t) => {
  for (const call of ['prepare', 'status', 'handoff', 'fetched', 'figures', 'countersign', 'receipt']) {
    await t.test(call, async (t) => {
      const pair = new MovePair(t);
      pair.loseAnswersOf.add(call);
      pair.start();
      assert.equal((await pair.sourceEnd()).state, 'done');
      pair.world.assertMoved();
    });
  }
});

test('the target dies when the handoff has or may have reached it: the source waits with a reason and never starts the machine', async (t) => {
  for (const answer of ['lost', 'given']) {
    await t.test(`an answer that is ${answer}`, async (t) => {
      const pair = new MovePair(t);
      const activate = pair.world.targetSide.activate;
      let blocked = true;
      pair.world.targetSide.activate = async (request) => {
        if (blocked) throw new Error('the disk is slow');
        await activate(request);
      };
      if (answer === 'lost') pair.loseAnswersOf.add('handoff');
      pair.start();
      await pair.source.wait('run1', {
        timeoutMs: patient(20_000),
        until: (run) =>
          answer === 'lost'
            ? run.steps.some((step) => step.name === 'handoff' && step.attempts > 1)
            : /has been told/.test(run.reason?.message ?? ''),
      });
      pair.world.connected = false;
      await pair.source.wait('run1', {
        timeoutMs: patient(20_000),
        until: (run) => run.reason !== null && /does not answer/.test(run.reason.message),
      });
      assert.throws(() => pair.source.cancel('run1', 'impatient'), /may have gone over/);
      await new Promise((resolve) => setTimeout(resolve, 500));
      assert.equal(pair.world.source.running, false);
      assert.equal(pair.world.source.volume.state, 'sealed');
      await until('the way out to be told', () => pair.source.get('run1'), {
        is: ({ reason }) => /godwit runs force run1 undo/.test(reason?.nextAction ?? ''),
      });
      blocked = false;
      pair.world.connected = true;
      assert.equal((await pair.sourceEnd()).state, 'done');
      pair.world.assertMoved();
    });
  }
});

test('a peer that was removed does not keep a machine from coming back', async (t) => {
  const pair = new MovePair(t);
  const { seal } = pair.world.sourceSide;
  pair.world.sourceSide.seal = async (...args) => {
    const report = await seal(...args);
    pair.peerIsRemoved = true;
    pair.source.cancel('run1', 'another fleet');
    return report;
  };
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'undone');
  pair.world.assertUndone();
});

test('nobody takes the machine: it stays untouched, with the reason', async (t) => {
  const pair = new MovePair(t);
  pair.world.accepts = false;
  pair.start();
  const end = await pair.sourceEnd();
  assert.equal(end.state, 'undone');
  assert.equal(end.error?.code, 'MIGRATION_NO_CAPACITY');
  assert.match(end.error?.message ?? '', /w2 memory: full/);
  pair.world.assertUndone();
  assert.ok(!pair.world.calls.includes('stop'));
});

test('a target that would not take it any more once all is prepared is left, and the machine runs on', async (t) => {
  const pair = new MovePair(t);
  const { attachStandby } = pair.world.targetSide;
  pair.world.targetSide.attachStandby = async (...args) => {
    await attachStandby(...args);
    pair.world.accepts = false;
  };
  pair.start();
  const end = await pair.sourceEnd();
  assert.equal(end.state, 'undone');
  assert.match(end.error?.message ?? '', /w2 does not take db: memory: full/);
  assert.equal((await pair.targetEnd()).error?.code, 'MIGRATION_REFUSED');
  assert.ok(!pair.world.calls.includes('stop'));
  pair.world.assertUndone();
  pair.world.assertTargetClean();
});

test('a machine that its owner starts or stops while its move asks for offers arrives as he left it', async (t) => {
  for (const running of [true, false]) {
    const pair = new MovePair(t);
    const { world } = pair;
    world.subject.running = !running;
    const { claim } = world.sourceSide;
    world.sourceSide.claim = async (...args) => {
      if (world.source.claimedBy === null) world.subject.running = running;
      await claim(...args);
    };
    pair.start();
    assert.equal((await pair.sourceEnd()).state, 'done');
    const { input } = await pair.targetEnd();
    assert.equal((input as PrepareRequest).startMachine, running);
  }
});

test('a cancel before the handoff brings everything back', async (t) => {
  const pair = new MovePair(t);
  const stop = pair.world.sourceSide.stop;
  pair.world.sourceSide.stop = async (...args) => {
    await stop(...args);
    pair.source.cancel('run1', 'changed my mind');
  };
  pair.start();
  assert.equal((await pair.sourceEnd()).state, 'undone');
  pair.world.assertUndone();
  assert.equal((await pair.targetEnd()).state, 'undone');
  pair.world.assertTargetClean();
});

test('what was forgotten stays forgotten: a late prepare and a late handoff are refused', async (t) => {
  const pair = new MovePair(t);
  assert.equal((await pair.targetAnswers.cancel('run9')).phase, 'forgotten');
  assert.equal((await pair.targetAnswers.handoff('run9', { freeMap: null })).phase, 'forgotten');
  await assert.rejects(
    pair.targetAnswers.prepare({
      runId: 'run9',
      sourceWorker: 'w1',
      sourceUrl: 'model:',
      machineId: 'm_1',
      machineName: 'db',
      config: pair.world.subject.config,
      placement: pair.world.subject.placement,
      startMachine: true,
      volume: null,
    }),
    (error: Error & { code?: string }) => error.code === 'MIGRATION_REFUSED',
  );
});

test('phases follow the steps that are done', () => {
  const run = (done: string[], state: RunView['state'] = 'running'): RunView =>
    ({ state, steps: done.map((name) => ({ name, state: 'done' })) }) as unknown as RunView;
  assert.equal(phaseOf(run(['reserve', 'volume'])), 'preparing');
  assert.equal(phaseOf(run(['attach'])), 'prepared');
  assert.equal(phaseOf(run(['attach', 'await'])), 'handed-over');
  assert.equal(phaseOf(run(['attach', 'await'], 'undoing')), 'forgotten');
  assert.equal(phaseOf(run(['attach', 'await', 'activate'], 'waiting')), 'activated');
  assert.equal(phaseOf(run(['activate', 'boot', 'healthy', 'finish'], 'done')), 'released');
});
