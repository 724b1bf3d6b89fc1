import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { type ModelAnswer, ModelPeer, MoveWorld } from '../../test/support/move-world.ts';
import { receiptOf } from '../../test/support/receipts.ts';
import { checkSaga, type World } from '../../test/support/saga-checks.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { newWorkerKey } from '../../test/support/worker-keys.ts';
import { systemClock } from '../base/clock.ts';
import {
  type Peer,
  type PeerAnswers,
  type PrepareRequest,
  type TargetPhase,
  type TargetStatus,
  VOLUME_QUESTIONS,
} from '../contract/peer.ts';
import { countersign, type Receipt } from '../receipt/envelope.ts';
import { MoveInbox } from './inbox.ts';
import { migrateIn } from './migrate-in.ts';
import { migrateOut } from './migrate-out.ts';
import { ReceiptBook } from './receipt-book.ts';
import type { VolumeQuestion } from './volume-questions.ts';

const SOURCE_KEY = newWorkerKey();

/** A target that does at once what it is told, without a journal of its own. */
class InstantTarget extends MoveWorld implements World {
  readonly receipts = new ReceiptBook(new DatabaseSync(':memory:'));
  readonly #key = newWorkerKey();
  #phase: TargetPhase = 'preparing';
  #receipt: Receipt | null = null;

  assertClean(): void {
    this.assertUndone();
  }

  assertDone(): void {
    assert.equal(this.source.owned, false);
    assert.equal(this.source.volume.state, 'retained');
    assert.equal(this.source.exported, null);
    assert.equal(this.#phase, 'released');
    assert.ok(this.receipts.find('db'), 'the source keeps the receipt');
  }

  get instantPeer(): Peer {
    const at = (phase: TargetPhase): TargetStatus => {
      if (this.#phase !== 'released') this.#phase = phase;
      return {
        runId: 'run',
        phase: this.#phase,
        reason: null,
        nextAction: null,
        timesMs: {
          answered: 2,
          handedOver: 1,
          activated: 2,
          attached: 3,
          booted: 4,
          healthy: 5,
          hydrated: 6,
        },
        hydration: null,
        waivedAtMs: null,
      };
    };
    const passedOn = Object.fromEntries(
      VOLUME_QUESTIONS.map((op) => [
        op,
        (_runId: string, args: never) => this.targetSide[op as VolumeQuestion](REQUEST, args),
      ]),
    ) as Pick<PeerAnswers, VolumeQuestion>;
    const answers: PeerAnswers = {
      offer: async () => this.offer(),
      fit: async () => assert.fail('a move asks for one machine'),
      prepare: async () => at('prepared'),
      status: async () => at(this.#phase),
      warm: async () => {
        throw new Error('a hint may be lost');
      },
      handoff: async () => {
        assert.equal(this.source.volume.state, 'sealed', 'handed over before the seal');
        this.target.attached = 'writable';
        return at('hydrated');
      },
      cancel: async () => at('forgotten'),
      ...passedOn,
      figures: async (_runId, query) => ({
        ...(await this.targetSide.figures(REQUEST, query)),
        worker: { worker: 'w2', publicKey: this.#key.publicKey, keyFingerprint: this.#key.fingerprint },
      }),
      countersign: async (_runId, draft) => {
        this.#receipt ??= countersign(draft, this.#key);
        at('released');
        return this.#receipt;
      },
      receipt: async () => this.#receipt,
      volumeHeader: async () => '',
      run: async () => null,
    };
    return new ModelPeer((name, args) => (answers as unknown as Record<string, ModelAnswer>)[name]!(...args));
  }
}

test('migrate-out: fails at each step and unwinds, undos repeated, steps repeated, dies at each append', async (t) => {
  const dir = scratchDir(t);
  let databases = 0;
  await checkSaga({
    makeWorld: () => new InstantTarget(),
    makeDefinition: (world, clock) =>
      migrateOut({
        source: world.sourceSide,
        peers: () => [world.instantPeer],
        clock,
        key: SOURCE_KEY,
        receipts: world.receipts,
        worker: { name: 'w1', url: 'model:' },
        retentionMs: 1000,
      }),
    input: { machineId: 'm_1', targetWorker: null, requestedBy: 'test' },
    databasePath: () => join(dir, `out-${databases++}.sqlite`),
  });
});

/** The source has sealed its volume and handed it over; only the target's run is under test. */
class SealedSource extends MoveWorld implements World {
  readonly database = new DatabaseSync(':memory:');
  readonly inbox = new MoveInbox(this.database, systemClock);
  readonly receipts = new ReceiptBook(this.database);

  constructor() {
    super();
    this.source.running = false;
    this.source.volume.state = 'sealed';
    this.source.exported = 'open';
    this.inbox.decide(REQUEST.runId, 'handed-over', 1);
    this.receipts.keep(receiptOf(REQUEST.runId));
  }

  assertClean(): void {
    this.assertTargetClean();
  }

  assertDone(): void {
    assert.deepEqual(this.target, {
      owned: true,
      running: true,
      volume: { state: 'ready', generation: 2 },
      attached: 'writable',
    });
  }
}

const REQUEST: PrepareRequest = (() => {
  const { subject } = new MoveWorld();
  return {
    runId: 'run',
    sourceWorker: 'w1',
    sourceUrl: 'model:',
    machineId: subject.machineId,
    machineName: subject.machineName,
    config: subject.config,
    placement: subject.placement,
    startMachine: true,
    volume: {
      volumeId: 'v_1',
      name: 'db',
      lengthBytes: 2 ** 20,
      filesystem: 'ext4',
      sealedGeneration: 1,
      source: {
        host: '127.0.0.1',
        port: 3260,
        targetIqn: 'iqn.2024-07.example:v_1',
        lun: 0,
        initiatorIqn: 'iqn.2024-07.example:w2',
        chapUser: 'move',
        chapSecret: 'a secret of twelve',
      },
    },
  };
})();

test('migrate-in: fails at each step and unwinds, undos repeated, steps repeated, dies at each append', async (t) => {
  const dir = scratchDir(t);
  let databases = 0;
  await checkSaga({
    makeWorld: () => new SealedSource(),
    makeDefinition: (world, clock) =>
      migrateIn({ target: world.targetSide, inbox: world.inbox, receipts: world.receipts, clock }),
    input: REQUEST,
    databasePath: () => join(dir, `in-${databases++}.sqlite`),
  });
});
