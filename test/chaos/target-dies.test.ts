import assert from 'node:assert/strict';
import test from 'node:test';
import type { MachineView } from '../../src/contract/schemas.ts';
import type { RunView } from '../../src/journal/run.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { MigrateOutOutput } from '../../src/migration/migrate-out.ts';
import type { HydrationStatus } from '../../src/opening/status.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { patient } from '../support/patience.ts';
import { WriterCollector, type WriterHistory } from '../support/writer-collector.ts';

/** One of the two hosts of a move dies and stays dead for a while. */

const MIB = 2 ** 20;
/**
 * Most of it is still at the source when the test looks, because the target brings no more than `SLOW` of it
 * in a second.
 */
const BALLAST_BYTES = 48 * MIB;
const SLOW = ['--hydration-rate', '1MiB'];

/**
 * The writer ignores this signal, so a stop takes until it is hung up on: time to do things to a move just
 * before its stop.
 */
const STOP_AT_WORD = { signal: 'SIGWINCH', timeoutMs: 3_600_000 };

type Scene = {
  fleet: Fleet;
  source: FleetWorker;
  target: FleetWorker;
  collector: WriterCollector;
  history: WriterHistory;
  machine: MachineView;
};

async function scene(t: test.TestContext): Promise<Scene> {
  const collector = await WriterCollector.open(t);
  const fleet = await Fleet.start(t, ['source', 'target'], { flags: { target: SLOW } });
  const source = fleet.worker('source');
  const machine = await fleet.writerMachine(source, collector, {
    name: 'writer',
    lengthBytes: 128 * MIB,
    config: { stop: STOP_AT_WORD },
  });
  const history = collector.history('writer');
  return { fleet, source, target: fleet.worker('target'), collector, history, machine };
}

/**
 * Starts a move and resolves when the target has prepared everything and the source waits for the machine to
 * stop.
 */
async function moveUpToTheStop({ fleet, source, target, machine }: Scene): Promise<RunView> {
  const run = await source.client.moveMachine(machine.id, { target: target.name });
  await fleet.until('the stop', async () => (await source.client.showRun(run.id)).step === 'stop');
  return run;
}

function nothingLeftAt(worker: FleetWorker, machine: MachineView): void {
  assert.equal(worker.volumeRecord(machine.volumeId!), null, `${worker.name} still has the volume`);
  assert.deepEqual(
    worker.shims().map(({ id }) => id),
    [],
    `${worker.name} still has shims`,
  );
}

test('a target that dies before the handoff and stays dead: the source runs the machine again; back again, it forgets', {
  skip: fleetNeeds,
}, async (t) => {
  const stage = await scene(t);
  const { fleet, source, target, collector, history, machine } = stage;
  const run = await moveUpToTheStop(stage);
  await target.powerOff();
  const incarnations = history.incarnations.length;
  collector.hangUp('writer');
  await fleet.until('a reason', async () => {
    const { conditions } = await source.client.why(machine.id);
    return conditions.some(
      ({ message, nextAction }) => /target does not answer/.test(message) && nextAction !== '',
    );
  });

  const end = await source.ended(run.id);
  assert.equal(end.state, 'undone');
  assert.equal(end.error?.code, 'MIGRATION_TARGET_LOST');
  await history.incarnation(incarnations);
  const record = source.volumeRecord(machine.volumeId!)!;
  assert.deepEqual([record.state, record.generation], ['ready', 3], 'the generation of the target is burnt');
  const why = await source.client.why(machine.id);
  assert.equal(why.runs[0]?.error?.code, 'MIGRATION_TARGET_LOST');
  assert.match(why.runs[0]?.error?.nextAction ?? '', /runs here again/);
  assert.deepEqual(source.exports(), []);

  await target.start();
  const forgotten = await fleet.until('the target to forget', async () => {
    const inside = await target.client.showRun(targetRunId(run.id));
    return inside.endedAtMs === null ? null : inside;
  });
  assert.equal(forgotten.state, 'undone');
  nothingLeftAt(target, machine);
  assert.deepEqual(await target.client.listMachines(), []);
  await history.more(5);
  history.assertSound();
});

test('a target host that dies right after the activation: the source waits and says why; back again, the machine goes on there', {
  skip: fleetNeeds,
}, async (t) => {
  const stage = await scene(t);
  const { fleet, source, target, collector, history, machine } = stage;
  await target.kill();
  await target.start({ crashAt: 'migrate-in:activate:after-done-append' });
  const run = await moveUpToTheStop(stage);
  const acknowledged = history.acknowledged;
  const incarnations = history.incarnations.length;
  collector.hangUp('writer');
  await target.crashed();
  await target.powerOff();

  const condition = await fleet.until('a reason', async () => {
    const { conditions } = await source.client.why(machine.id);
    return conditions.find(({ message }) => /does not answer/.test(message));
  });
  assert.match(condition.message, /may have opened the volume/);
  assert.equal(condition.whoCanClearIt, target.name);
  assert.match(condition.nextAction, /Bring target back/);
  assert.equal(source.volumeRecord(machine.volumeId!)?.state, 'sealed');
  await assert.rejects(source.client.cancelRun(run.id), { code: 'JOURNAL_CANCEL_TOO_LATE' });
  assert.equal(history.incarnations.length, incarnations, 'nobody may run the machine now');

  await target.start();
  assert.equal((await fleet.ended(source, target, run.id)).state, 'done');
  await history.incarnation(incarnations);
  assert.ok(history.acknowledged > acknowledged);
  assert.equal(target.volumeRecord(machine.volumeId!)?.state, 'ready');
  assert.equal(source.volumeRecord(machine.volumeId!)?.state, 'retained');
  history.assertSound();
});

/**
 * Moves the machine with ballast on its volume up to the hydration, which is slow until the test lets it go.
 */
async function moveUpToTheHydration(stage: Scene): Promise<{ run: RunView; digest: string }> {
  const { fleet, source, target, collector, history, machine } = stage;
  const made = await source.client.execInMachine(machine.id, {
    command: [
      ...[
        'sh',
        '-c',
        `head -c ${BALLAST_BYTES} /dev/urandom >/data/ballast; sync /data/ballast; sha256sum </data/ballast`,
      ],
    ],
    timeoutMs: patient(120_000),
  });
  assert.equal(made.exitCode, 0, made.stderr);
  const run = await moveUpToTheStop(stage);
  const incarnations = history.incarnations.length;
  collector.hangUp('writer');
  await fleet.until(
    'the source to serve',
    async () => (await source.client.showRun(run.id)).step === 'serve',
  );
  await history.incarnation(incarnations);
  const { exposedBytes } = await hydration(target, machine);
  assert.ok(exposedBytes >= BALLAST_BYTES / 4, `only ${exposedBytes} bytes are left at the source`);
  return { run, digest: made.stdout };
}

async function hydration(worker: FleetWorker, machine: MachineView): Promise<HydrationStatus> {
  const status = await worker.volumeCommand(machine.id, 'status', {});
  if (!status.hydration) throw new Error('this volume is whole');
  return status.hydration;
}

const GO_ON = { paused: false, rateBytesPerSecondMax: 0 };
const READ_BALLAST = { command: ['sh', '-c', 'sha256sum </data/ballast'], timeoutMs: patient(60_000) };

test('a source whose control dies in mid-hydration: its export serves on, and the volume becomes whole', {
  skip: fleetNeeds,
}, async (t) => {
  const stage = await scene(t);
  const { fleet, source, target, history, machine } = stage;
  const { run, digest } = await moveUpToTheHydration(stage);
  await source.kill();
  await target.volumeCommand(machine.id, 'hydration', GO_ON);
  // For the blocks the target needs the export only; for the proof the source's control has to ask.
  await fleet.until('the target to be whole, and to wait for the proof', async () => {
    const view = await target.client.showRun(targetRunId(run.id));
    return view.step === 'prove' && view.reason?.message.includes(source.name);
  });
  assert.equal((await hydration(target, machine)).exposedBytes, 0);
  assert.equal(target.volumeRecord(machine.volumeId!)?.state, 'clone');
  assert.equal((await target.client.execInMachine(machine.id, READ_BALLAST)).stdout, digest);

  await source.start();
  assert.equal((await fleet.ended(source, target, run.id)).state, 'done');
  assert.equal(target.volumeRecord(machine.volumeId!)?.state, 'ready');
  assert.deepEqual(source.exports(), []);
  assert.equal(source.volumeRecord(machine.volumeId!)?.state, 'retained');
  await history.more(5);
  history.assertSound();
});

test('a source whose control and export die in mid-hydration: reads wait, writes go on; back again, it serves at the same port', {
  skip: fleetNeeds,
}, async (t) => {
  const stage = await scene(t);
  const { fleet, source, target, history, machine } = stage;
  const { run, digest } = await moveUpToTheHydration(stage);
  const { port } = ((await source.client.showRun(run.id)).output as MigrateOutOutput).source!;
  await source.powerOff();
  await target.volumeCommand(machine.id, 'hydration', GO_ON);
  await fleet.until(
    'the loss to be noticed',
    async () => (await hydration(target, machine)).state === 'source-lost',
  );
  let answer: string | null = null;
  const reading = target.client.execInMachine(machine.id, READ_BALLAST).then(({ stdout }) => {
    answer = stdout;
  });
  await history.more(20);
  const { conditions } = await target.client.why(machine.id);
  assert.ok(
    conditions.some(({ message, nextAction }) => /source.* not answer/.test(message) && nextAction !== ''),
    JSON.stringify(conditions),
  );
  assert.equal(answer, null, 'a block that is only at the source cannot be read now');

  await source.start();
  const end = await fleet.ended(source, target, run.id);
  assert.equal(end.state, 'done');
  assert.equal((end.output as MigrateOutOutput).source?.port, port);
  await reading;
  assert.equal(answer, digest);
  assert.equal((end.output as MigrateOutOutput).last?.hydration?.blocksFetchedTwice, 0);
  await history.more(5);
  history.assertSound();
});
