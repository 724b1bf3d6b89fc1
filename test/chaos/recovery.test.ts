import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import type { VolumeServerStatus } from '../../src/opening/status.ts';
import { Fleet, fleetNeeds, killProcess } from '../support/fleet.ts';

/** What should be there comes back by itself, and says why it is not there yet. */

const DEAF = 'trap "echo asked" TERM; echo up; while :; do sleep 0.1; done';

test('a key program that is away for a moment keeps a machine down only for that moment; a target with other keys is told at once, one that hangs is waited for', {
  skip: fleetNeeds,
}, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'gw-k-'));
  const [program, other] = [join(dir, 'key'), join(dir, 'other')];
  writeFileSync(program, '#!/bin/sh\nprintf "a key of %s" "$GODWIT_VOLUME_ID"\n');
  writeFileSync(other, '#!/bin/sh\nprintf "another key of %s" "$GODWIT_VOLUME_ID"\n');
  for (const path of [program, other]) chmodSync(path, 0o755);
  const keys = (path: string) => ['--key-exec', path];
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    flags: { a: keys(program), b: keys(other), c: keys(program) },
  });
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  const worker = fleet.worker('a');
  const orphan = await worker.client.createVolume({
    name: 'orphan',
    lengthBytes: 16 * 2 ** 20,
    filesystem: 'ext4',
  });
  const made = await fleet.run(
    ...[
      'machine',
      'run',
      '--name',
      'm',
      '--worker',
      'a',
      '--volume',
      'm',
      '--size',
      '32MiB',
      '--',
      'sleep',
      'infinity',
    ],
  );
  assert.equal(made.exitCode, 0, made.stderr);
  await worker.powerOff();
  renameSync(program, `${program}.away`);
  // What a worker leaves that dies while it makes a machine.
  const record = { ...worker.volumeRecord(orphan.id), machineId: 'm_01jd0000000000000000000000' };
  writeFileSync(join(worker.dataDir, 'volumes', orphan.id, 'volume.json'), JSON.stringify(record));
  await worker.start();
  assert.equal((await worker.client.showVolume('orphan')).machineId, null, 'it is free for another machine');
  const why = await fleet.until('a second try', async () => {
    const { stdout } = await fleet.run('why', 'm');
    return /could not be started \((?!1 try)/.test(stdout) ? stdout : null;
  });
  assert.match(why, /tried again by itself\): .*key/);
  assert.notEqual((await worker.client.showMachine('m')).state, 'running');
  renameSync(`${program}.away`, program);
  await fleet.until('the machine', async () => (await worker.client.showMachine('m')).state === 'running');
  assert.doesNotMatch((await fleet.run('why', 'm')).stdout, /could not be started/);

  // A worker that dies in the middle of a restart has not said that the machine shall stay down.
  const deaf = ['machine', 'run', '--name', 'deaf', '--worker', 'a', '--stop-timeout', '1h', '--detach'];
  assert.equal((await fleet.run(...deaf, '--', 'sh', '-c', DEAF)).exitCode, 0);
  await fleet.until('it to listen', async () =>
    /up/.test((await fleet.run('machine', 'logs', 'deaf')).stdout),
  );
  const { pid: deafPid } = await worker.client.showMachine('deaf');
  const restarting = fleet.run('machine', 'restart', 'deaf');
  const asked = async () => /asked/.test((await fleet.run('machine', 'logs', 'deaf')).stdout);
  await fleet.until('its signal', asked);
  await worker.kill();
  assert.equal((await restarting).exitCode, 4);
  await worker.start();
  process.kill(deafPid!, 'SIGKILL');
  await fleet.until('its second beginning', async () => {
    const { stdout } = await fleet.run('machine', 'logs', 'deaf', '--lines', '100');
    const { state } = await worker.client.showMachine('deaf');
    return state === 'running' && stdout.match(/^up$/gm)?.length === 2;
  });

  // `never`: trying the wrong key again does not help.
  const refused = await fleet.run('move', 'm', '--to', 'b');
  assert.equal(refused.exitCode, 3, refused.stderr);
  assert.match(refused.stdout, /b gave the move up: .*key/);
  const { id } = await worker.client.showMachine('m');
  const [first] = await fleet.moves(worker, id);
  const inside = await fleet.worker('b').client.showRun(targetRunId(first!.id));
  assert.deepEqual(
    [first?.error?.retry, first?.state, inside.error?.retry, inside.steps.map(({ attempts }) => attempts)],
    ['never', 'undone', 'never', [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
  );

  // `later`: a target that hangs is asked again, by the same run; and who is waited for is named at once,
  // and since when.
  await worker.kill();
  await worker.start({ crashAt: 'migrate-out:prepare:before-start-append' });
  const { id: runId } = await worker.client.moveMachine(id, { target: 'c' });
  await worker.crashed();
  const target = fleet.worker('c');
  process.kill(target.pid, 'SIGSTOP');
  const askedAtMs = Date.now();
  await worker.start();
  let silences = 0;
  const named = await fleet.until('why to name c', async () => {
    const { conditions } = await worker.client.why('m');
    if (conditions.length === 0) silences++;
    return conditions.find(({ message }) => /in step prepare: it waits for an answer of c/.test(message));
  });
  assert.deepEqual([named.whoCanClearIt, silences], ['c', 0], 'it never waits for nothing');
  assert.ok(named.sinceMs! >= askedAtMs && /runs on here/.test(named.nextAction), named.nextAction);
  const tries = async () => {
    const { steps } = await worker.client.showRun(runId);
    return steps.find(({ name }) => name === 'prepare')?.attempts ?? 0;
  };
  await fleet.until('a second try', async () => (await tries()) > 1);

  // While that is called off, everybody says so, why, and for whom the undo waits.
  const cancelled = await fleet.run('runs', 'cancel', runId);
  assert.match(cancelled.stdout, /goes back \(cancelled: an operator asked for it, over the API\)/);
  const told = [
    ['why', 'm'],
    ['machine', 'list'],
    ['top', '--once'],
    ['runs', 'show', runId],
  ];
  const [said, list, top, shown] = await Promise.all(told.map((words) => fleet.run(...words)));
  const back = /goes back \(cancelled: an operator .*\), and undoes step prepare now/;
  assert.match(said!.stdout, new RegExp(`- migrate-out ${back.source}: it waits for an answer of c`));
  assert.match(list!.stdout, /^m .* moving \(goes back\) .* undoing prepare, back from c/m);
  assert.match(list!.stderr, /^1 move is being undone, of m: cancelled: an operator .*godwit why m/m);
  assert.match(top!.stdout, /^1 move is being undone, of m: [\s\S]*^m .*moving \(goes back\)/m);
  assert.match(shown!.stdout, back);
  assert.match(shown!.stdout, /waits for an answer of c/);
  process.kill(target.pid, 'SIGCONT');
  assert.equal((await worker.ended(runId)).state, 'undone');
  const again = await worker.client.moveMachine(id, { target: 'c' });
  assert.equal((await fleet.ended(worker, target, again.id)).state, 'done');
  assert.equal((await target.client.showMachine(id)).hydration, null, 'nothing arrives any more');
});

test('a run that was forgotten leaves no claim, no export, no half of a volume; its machine runs', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const [source, target] = [fleet.worker('a'), fleet.worker('b')];
  const made = await fleet.run(
    ...[
      'machine',
      'run',
      '--name',
      'm',
      '--worker',
      'a',
      '--volume',
      'm',
      '--size',
      '32MiB',
      '--no-encryption',
    ],
    ...['--stop-timeout', '1h', '--', 'sh', '-c', DEAF],
  );
  assert.equal(made.exitCode, 0, made.stderr);
  const { id, volumeId } = await source.client.showMachine('m');
  const { id: runId } = await source.client.moveMachine(id, { target: 'b' });
  await fleet.until('the stop', async () => (await source.client.showRun(runId)).step === 'stop');
  // What is kept back of the disk is open for who leaves, through the death of the volume server too.
  const leaving = async () =>
    ((await source.volumeCommand(id, 'status', {})) as Pick<VolumeServerStatus, 'leaving'>).leaving ?? 'no';
  await fleet.until('the reserve to be open', async () => (await leaving()) === 'running');
  const server = () => source.shims().find((shim) => shim.id === id)?.state.volumeServer ?? null;
  const first = server();
  killProcess(first!);
  await fleet.until('another volume server', () => server() !== null && server()?.pid !== first?.pid);
  assert.equal(await leaving(), 'running');
  const inside = targetRunId(runId);
  for (const run of [inside, runId]) {
    const forced = await fleet.run('runs', 'force', run, 'forget', '--yes');
    assert.equal(forced.exitCode, 0, forced.stderr);
  }
  await fleet.until('the machine to run', async () => {
    const machine = await source.client.showMachine(id);
    return machine.state === 'running' && machine.move === null;
  });
  await fleet.until('the reserve to be closed', async () => (await leaving()) === 'no');
  await fleet.until('the export to go', () => source.exports().length === 0);
  await fleet.until('the target to have nothing', async () => {
    const here = await target.client.listMachines();
    return here.length === 0 && target.volumeRecord(volumeId!) === null && target.shims().length === 0;
  });
  const stopped = await fleet.run('machine', 'destroy', 'm', '--force', '--volume');
  assert.equal(stopped.exitCode, 0, stopped.stderr);
});
