import assert from 'node:assert/strict';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { ModelPeer } from '../../test/support/move-world.ts';
import { testSeed } from '../../test/support/seed.ts';
import { GodwitError } from '../base/errors.ts';
import { seededRandom } from '../base/random.ts';
import type { FitRequest, OfferRequest, PlacementRequest } from '../contract/peer.ts';
import { OfferDesk } from '../migration/offers.ts';
import type { HostLoad } from '../migration/placement.ts';
import type { MoveSubject } from '../migration/source-side.ts';
import { DrainAnswers, type DrainAnswersOptions } from './drain-answers.ts';
import { PlainPeerAnswers } from './plain-peer-answers.ts';

const GIB = 2 ** 30;
const MACHINES = 200;
const TARGETS = 3;
/** What it takes to ask one worker: whether it is there and what it knows, then 25 machines at a time. */
const QUESTIONS = 2 + MACHINES / 25;

/** Answers as a real worker does, and counts what it is asked and how often it looks at its host. */
class Target {
  readonly peer = new ModelPeer((name, args) => this.#answer(name, args));
  readonly counts = { questions: 0, loads: 0, looks: 0, checks: 0 };
  readonly #answers: PlainPeerAnswers;
  readonly #version: 'new' | 'old' | 'hangs';

  constructor(load: HostLoad, version: 'new' | 'old' | 'hangs') {
    const { counts } = this;
    const lacks = () => {
      counts.looks++;
      return null;
    };
    this.#version = version;
    this.peer.name = load.worker;
    this.#answers = new PlainPeerAnswers({
      load: async () => {
        counts.loads++;
        return { ...load, lacks };
      },
      check: async ({ name }) => {
        counts.checks++;
        return name.endsWith('7') && load.worker === 't1' ? 'cannot run it' : null;
      },
      volumes: null as never,
      journal: null as never,
    });
  }

  async #answer(name: string, [body]: unknown[]): Promise<unknown> {
    this.counts.questions++;
    if (name === 'offer') return this.#answers.offer(body as OfferRequest);
    assert.equal(name, 'fit');
    if (this.#version === 'new') return this.#answers.fit(body as FitRequest);
    if (this.#version === 'hangs') return new Promise(() => {});
    throw new GodwitError('API_EARLIER_VERSION', 'it does not know that', { nextAction: 'ask otherwise' });
  }
}

/** Machines and targets of one seed: more than there is room for, some in groups. */
function fleetOf(seed: number, versionOf: (index: number) => 'new' | 'old' | 'hangs' = () => 'new') {
  const random = seededRandom(seed);
  const placed = (id: string): PlacementRequest => ({
    machineId: id,
    machineName: id,
    group: random.below(3) === 0 ? `g${random.below(4)}` : null,
    memoryBytes: random.below(4) * GIB,
    cpus: random.below(3),
    volumeLengthBytes: random.below(4) === 0 ? 0 : 100 * GIB,
    volumeUsedBytes: random.below(50) * 2 ** 24,
  });
  const subjects = Array.from({ length: MACHINES }, (_, index): MoveSubject => {
    const placement = placed(`m${index}`);
    return { ...SUBJECT, machineId: placement.machineId, machineName: placement.machineName, placement };
  });
  const targets = Array.from({ length: TARGETS }, (_, index) => {
    const load: HostLoad = {
      ...{ worker: `t${index}`, draining: false, tls: false, plane: 'userspace', encryption: null },
      lacks: () => null,
      holdsFileOf: () => true,
      memoryBytes: (60 + random.below(60)) * GIB,
      cpus: 16 + random.below(16),
      freeDiskBytes: (10 + random.below(60)) * GIB,
      reserved: [{ machineId: 'm3', bytes: GIB }],
      maps: { dir: '/run/maps', freeBytes: (1 + random.below(40)) * 2 ** 20, reserved: [] },
      totalDiskBytes: 100 * GIB,
      placed: Array.from({ length: random.below(9) }, (_, at) => placed(`p${index}-${at}`)),
    };
    return new Target(load, versionOf(index));
  });
  const clock = new FakeClock();
  const peers = () => targets.map(({ peer }) => peer);
  const answers = new DrainAnswers({
    name: 'w1',
    peers,
    machines: { records: () => subjects.map(recordOf) },
    source: { describe: async (id: string) => subjects.find(({ machineId }) => machineId === id)! },
    desk: new OfferDesk({ peers, clock }),
    journal: { findInTurns: async () => [], open: () => [] },
    drain: { leftVolumes: async () => [] },
    events: null,
    clock,
  } as unknown as DrainAnswersOptions);
  const sum = (what: keyof Target['counts']) =>
    targets.reduce((total, { counts }) => total + counts[what], 0);
  return { clock, plan: () => answers.plan({}), sum };
}

const SUBJECT = { config: {}, running: true, volume: null } as unknown as MoveSubject;
const recordOf = ({ machineId, machineName }: MoveSubject) => ({
  id: machineId,
  name: machineName,
  desired: 'running',
});

test('a plan of 200 machines costs its targets a few questions and looks at their hosts, and no more', async () => {
  const { plan, sum } = fleetOf(testSeed());
  const { steps } = await plan();
  assert.equal(steps.length, MACHINES);
  assert.ok(steps.some(({ target }) => target !== null));
  const questionsMax = TARGETS * QUESTIONS;
  assert.ok(sum('questions') <= questionsMax, `${sum('questions')} questions`);
  assert.ok(sum('loads') <= questionsMax, `${sum('loads')} times what is there`);
  assert.ok(sum('looks') <= questionsMax, `${sum('looks')} looks at the host`);
  assert.ok(sum('checks') <= TARGETS * (2 + MACHINES), `${sum('checks')} checks of a configuration`);
});

test('workers of an earlier version are asked once for each machine, and the plan is the same', async () => {
  for (let round = 0; round < 5; round++) {
    const seed = (testSeed() + round) % 2 ** 31;
    const old = fleetOf(seed, () => 'old');
    const expected = await old.plan();
    assert.ok(old.sum('questions') <= TARGETS * (3 + MACHINES), `${old.sum('questions')} questions`);
    assert.deepEqual(await fleetOf(seed).plan(), expected);
    assert.deepEqual(await fleetOf(seed, (index) => (index === 1 ? 'old' : 'new')).plan(), expected);
  }
});

test('one that falls silent in the middle of a plan is waited for once, and named', async () => {
  const { clock, plan, sum } = fleetOf(testSeed(), (index) => (index === 2 ? 'hangs' : 'new'));
  const made = plan();
  await clock.settle();
  clock.advance(10_000);
  const { steps, warnings } = await made;
  assert.match(warnings.join(), /^the plan is made without t2, which does not answer: nothing within 10 s/);
  assert.ok(steps.every(({ target }) => target !== 't2'));
  assert.ok(sum('questions') <= TARGETS * QUESTIONS);
});
