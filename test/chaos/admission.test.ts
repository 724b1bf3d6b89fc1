import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';

/** What a worker does not begin, and what is told of what is left: at the command line, with real workers. */

const MIB = 2 ** 20;

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

  // 1. In the units of who asked, and before anything is made.
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
    1,
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
  const volume = await b.client.createVolume({
    name: 'data',
    lengthBytes: 32 * MIB,
    filesystem: 'none',
    encrypted: false,
  });
  const machine = await b.client.createMachine({
    name: 'mover',
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
