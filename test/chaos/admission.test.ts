import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';

/** What a worker does not begin, and what is told of what is left: at the command line, with real workers. */

const MIB = 2 ** 20;

/** A machine that was never started, with a volume of its own. */
async function resting({ client }: FleetWorker, name: string, volumeName: string) {
  const volume = await client.createVolume({
    name: volumeName,
    lengthBytes: 32 * MIB,
    filesystem: 'none',
    encrypted: false,
  });
  const machine = await client.createMachine({
    name,
    start: false,
    config: {
      command: ['true'],
      env: {},
      volume: { volumeId: volume.id, nbd: true },
      restart: { policy: 'no', retriesMax: 0 },
      stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
      resources: {},
      network: 'host',
      metadata: {},
    },
  });
  return { machine, volume };
}

test('what is too much, too small, meant for another worker, or new on one that is drained, is refused in a line; and the copies of a volume are accounted for', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b'], { flags: { a: ['--memory', '200MiB'] } });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const refused = async (exitCode: number, message: RegExp, ...words: string[]) => {
    const reply = await fleet.run(...words);
    assert.equal(reply.exitCode, exitCode, reply.stderr);
    assert.match(reply.stderr, message);
  };

  // 1. In the words and units of who asked, and before anything is made.
  await refused(
    2,
    /^error API_INVALID_REQUEST: the name must be 1 to 63 of a-z, 0-9 and "-", without "-" at its ends$/m,
    ...['machine', 'run', '--name', 'My_db', '--worker', 'a', '--', 'true'],
  );
  await refused(
    2,
    /^error API_INVALID_REQUEST: the length must be at least 16 MiB$/m,
    'volume',
    'create',
    'tiny',
    '--size',
    '1MiB',
    '--worker',
    'a',
    '--no-encryption',
  );
  const run = ['machine', 'run', '--worker', 'a', '--memory', '150MiB', '--name'];
  assert.equal((await fleet.run(...run, 'one', '--', 'sleep', 'infinity')).exitCode, 0);
  await refused(
    3,
    /WORKER_NO_CAPACITY: a has no room for two: memory: needs 150 MiB, has 50 MiB/,
    ...run,
    'two',
    '--',
    'sleep',
    'infinity',
  );
  assert.deepEqual(
    (await a.client.listMachines()).map(({ name }) => name),
    ['one'],
  );

  // Where else in the fleet something of that name is, the command looks itself: two could only be told apart
  // by their ids.
  await refused(
    6,
    /CLI_NAME_TAKEN: a machine one is on a already/,
    'machine',
    'run',
    '--worker',
    'b',
    '--name',
    'one',
    '--',
    'true',
  );
  await a.client.createVolume({ name: 'there', lengthBytes: 32 * MIB, filesystem: 'none', encrypted: false });
  await refused(
    6,
    /CLI_NAME_TAKEN: a volume there is on a already/,
    'volume',
    'create',
    'there',
    '--size',
    '32MiB',
    '--worker',
    'b',
    '--no-encryption',
  );
  await a.client.destroyVolume('there');

  // 2. Two addresses the wrong way round: the drain of one empties nobody.
  const wrong = join(fleet.dir, 'swapped.json');
  const workers = [
    { name: 'a', url: b.url },
    { name: 'b', url: a.url },
  ];
  writeFileSync(wrong, JSON.stringify({ tokenFile: 'token', workers }));
  await refused(2, /API_WRONG_WORKER: .* is b, and not a/, '--fleet', wrong, 'drain', 'a', '--detach');
  for (const { client } of [a, b]) assert.equal((await client.drainStatus()).desired, false);

  // 3. A copy that a move left is told of, goes with the rest, and is not the last one without a word.
  const { machine, volume } = await resting(b, 'mover', 'data');
  const moved = await fleet.run('move', 'mover', '--to', 'a');
  assert.equal(moved.exitCode, 0, moved.stderr);
  await fleet.until('the copy to be retained', async () =>
    (await b.client.listVolumes()).some(({ id, state }) => id === volume.id && state === 'retained'),
  );
  await a.client.destroyMachine(machine.id, { force: true });
  const destroyed = await fleet.run('volume', 'destroy', 'data');
  assert.match(
    destroyed.stdout,
    /^data destroyed; what moves left of it is on b \(retained, generation 1\): .*--all-copies/m,
  );
  const last = await fleet.run('volume', 'destroy', volume.id, '--all-copies');
  assert.match(last.stdout, /^data destroyed; no copy of it is left$/m);
  assert.deepEqual(
    (await b.client.listVolumes()).filter(({ id }) => id === volume.id),
    [],
  );

  // 4. A worker that is being emptied begins nothing.
  await b.client.drain();
  await refused(
    6,
    /WORKER_DRAINING: b is being drained/,
    'machine',
    'run',
    '--worker',
    'b',
    '--name',
    'new',
    '--',
    'sleep',
    'infinity',
  );
  await refused(
    6,
    /WORKER_DRAINING/,
    'volume',
    'create',
    'new',
    '--size',
    '32MiB',
    '--worker',
    'b',
    '--no-encryption',
  );
});

test('a start and an import are admitted as a creation is: room, drains, names, and what is too small, in a line', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b'], {
    flags: { a: ['--memory', '200MiB', '--disk', '320MiB'], b: ['--memory', '1GiB'] },
  });
  const [a, b] = [fleet.worker('a'), fleet.worker('b')];
  const refused = async (exitCode: number, message: RegExp, ...words: string[]) => {
    const { stderr } = await fleet.reply(exitCode, ...words);
    assert.match(stderr, message);
    assert.doesNotMatch(stderr, /\n {4}at |\/body\/|\bBytes\b/, 'one line for a person, and what to do');
  };
  const create = (worker: FleetWorker, name: string, memoryBytes: number) =>
    worker.client.createMachine({
      name,
      start: false,
      config: {
        command: ['sleep', 'infinity'],
        env: {},
        restart: { policy: 'no', retriesMax: 0 },
        stop: { signal: 'SIGKILL', timeoutMs: 1_000 },
        resources: { memoryBytes },
        network: 'host',
        metadata: {},
      },
    });
  const stateOf = async (worker: FleetWorker, name: string) =>
    (await worker.client.listMachines()).find((machine) => machine.name === name)?.state;

  // 1. Of two that have room one at a time, the second is refused while the first is wanted; asked for at
  // once, exactly one begins.
  await create(a, 'one', 150 * MIB);
  await create(a, 'two', 150 * MIB);
  const both = await Promise.all([
    fleet.run('machine', 'start', 'one'),
    fleet.run('machine', 'start', 'two'),
  ]);
  assert.deepEqual(both.map(({ exitCode }) => exitCode).sort(), [0, 3], JSON.stringify(both));
  const [on, off] = both[0]!.exitCode === 0 ? ['one', 'two'] : ['two', 'one'];
  const noRoom = new RegExp(
    `^error WORKER_NO_CAPACITY: a has no room for ${off}: memory: needs 150 MiB, has 50 MiB$`,
    'm',
  );
  for (const verb of ['start', 'restart']) await refused(3, noRoom, 'machine', verb, off!);
  assert.equal(await stateOf(a, off!), 'stopped');
  await fleet.reply(0, 'machine', 'stop', on!);
  await fleet.reply(0, 'machine', 'start', off!);

  // 2. An import counts what is in use at its source against what is free but for what is kept back (256
  // MiB).
  const image = (name: string, dataBytes: number) => {
    const path = join(fleet.dir, name);
    writeFileSync(path, Buffer.alloc(dataBytes, 7));
    return path;
  };
  const [small, large] = [image('small.img', 16 * MIB), image('large.img', 96 * MIB)];
  const into = (worker: string, name: string, path: string) =>
    ['volume', 'import', name, path, '--filesystem', 'none', '--no-encryption', '--worker', worker] as const;
  await refused(
    3,
    /^error WORKER_IMPORT_NO_SPACE: no room for disk: it needs 105 MiB, and \d+ MiB are neither used nor promised$/m,
    ...into('a', 'disk', large),
  );
  assert.deepEqual(await a.client.listVolumes(), []);

  // 3. A name is given once: of two at a time, and while its owner is on its way here.
  const twice = await Promise.all([
    fleet.run(...into('b', 'disk', small)),
    fleet.run(...into('b', 'disk', small)),
  ]);
  assert.deepEqual(twice.map(({ exitCode }) => exitCode).sort(), [0, 6], JSON.stringify(twice));
  await refused(6, /^error WORKER_VOLUME_NAME_TAKEN: .* disk already$/m, ...into('b', 'disk', small));
  await fleet.reply(0, 'volume', 'destroy', 'disk');
  const { machine: dup, volume } = await resting(b, 'dup', 'dup-data');
  await b.kill();
  await b.start({ crashAt: 'migrate-out:prepare:after-done-append' });
  await b.client.moveMachine(dup.id, { target: 'a' });
  await b.crashed();
  const arriving = await fleet.until('a to be told of what comes', async () =>
    (await a.client.listVolumes()).find(({ id, state }) => id === volume.id && state === 'incoming'),
  );
  assert.equal(arriving.name, 'dup-data');
  await refused(6, /^error WORKER_VOLUME_NAME_TAKEN: /m, ...into('a', 'dup-data', small));
  const newDup = ['machine', 'run', '--worker', 'a', '--name', 'dup', '--', 'sleep', 'infinity'];
  await refused(
    6,
    /^error MACHINE_NAME_TAKEN: .*dup.*\n.*\n {2}trying again does not help before that$/m,
    ...newDup,
  );
  await b.start();
  await fleet.until('dup to be at a', async () => (await fleet.owners(dup.id))[0]?.name === 'a');

  // 4. What is being emptied begins nothing, and begins again when it is not.
  await create(b, 'idle', 512 * MIB);
  await b.client.drain();
  await refused(
    6,
    /^error WORKER_DRAINING: b is being drained, and takes nothing new$/m,
    'machine',
    'start',
    'idle',
  );
  await refused(6, /^error WORKER_DRAINING: /m, ...into('b', 'disk', small));
  assert.equal(await stateOf(b, 'idle'), 'stopped');
  await fleet.reply(0, 'undrain', 'b');
  await fleet.reply(0, 'machine', 'start', 'idle');
  await fleet.reply(0, ...into('b', 'disk', small));
});
