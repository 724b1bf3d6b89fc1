import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { memoryController } from '../support/memory.ts';
import { reservePorts } from '../support/ports.ts';
import { requires } from '../support/requires.ts';

/** Commands that are not what they start: wrappers and daemons; and a worker under another name. */

test('a wrapper leaves its server the time of the stop; a program that goes into the background is told to stay', {
  skip: fleetNeeds || requires('tini'),
}, async (t) => {
  const fleet = await Fleet.start(t, ['a']);
  const run = ['machine', 'run', '--name'];
  const log = async (name: string) => (await fleet.run('machine', 'logs', name)).stdout;

  const server = `sh -c 'trap "sleep 0.5; echo flushed; exit 0" TERM; echo up; while :; do sleep 0.05; done' & wait`;
  const started = await fleet.run(...run, 'wrapped', '--stop-timeout', '60s', '--', 'sh', '-c', server);
  assert.equal(started.exitCode, 0, started.stderr);
  await fleet.until('the server behind the wrapper', async () => /^up$/m.test(await log('wrapped')));
  const stopped = await fleet.run('machine', 'stop', 'wrapped');
  assert.equal(stopped.exitCode, 0, stopped.stderr);
  assert.match(await log('wrapped'), /^flushed$/m);
  assert.doesNotMatch(await log('wrapped'), /killed, since it did not end/);

  if (memoryController() !== null) {
    const grows = ['--memory', '32MiB', '--detach', '--', 'sh', '-c', 'exec tail /dev/zero'];
    const hog = await fleet.run(...run, 'hog', ...grows);
    assert.equal(hog.exitCode, 0, hog.stderr);
    await fleet.until('why to say what it ends for', async () =>
      /last exit code 137; \d+ of its processes were killed, out of memory/.test(
        (await fleet.run('why', 'hog')).stdout,
      ),
    );
    assert.match((await fleet.run('machine', 'show', 'hog')).stdout, /memory +32 MiB; \d+ of its processes/);
  }

  // Twice into the background, as a daemon does it: for its machine it ends, well and at once.
  const daemon = 'sh -c "setsid sh -c \'sleep 1000\' &" & exit 0';
  const begun = await fleet.run(...run, 'daemon', '--detach', '--', 'sh', '-c', daemon);
  assert.equal(begun.exitCode, 0, begun.stderr);
  const why = await fleet.until('why to say what is wrong with it', async () => {
    const { stdout } = await fleet.run('why', 'daemon');
    return /ends whenever it is started/.test(stdout) ? stdout : null;
  });
  assert.match(why, /it ends whenever it is started \(\d+ restarts, last exit code 0\)/);
  assert.match(
    why,
    /A program that goes into the background ends for its machine: have it stay in the foreground/,
  );
  const waited = await fleet.run(...run, 'daemon2', '--', 'sh', '-c', daemon);
  assert.equal(waited.exitCode, 6, waited.stdout);
  assert.match(waited.stderr, /foreground/, 'and who waits for its first start is told at once');
});

test('a worker that is started under another name on the data of one refuses by name, and harms nothing', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a']);
  const a = fleet.worker('a');
  assert.equal((await fleet.run('machine', 'run', '--name', 'one', '--', 'sleep', 'infinity')).exitCode, 0);
  const { pid } = await a.client.showMachine('one');
  const [port] = await reservePorts(t, 1);
  const worker = (name: string) =>
    fleet.run(
      ...['worker', '--name', name, '--data', a.dataDir, '--listen', `127.0.0.1:${port}`],
      ...['--token-file', `${fleet.dir}/token`],
    );
  const second = await worker('a');
  assert.equal(second.exitCode, 6, second.stderr);
  assert.match(second.stderr, /WORKER_ALREADY_RUNS/);
  await a.kill();
  const renamed = await worker('z');
  assert.notEqual(renamed.exitCode, 0);
  assert.match(renamed.stderr, /WORKER_OTHER_DATA: .* is the data folder of a, and not of z/);
  assert.match(renamed.stderr, /--name a/);
  await a.start();
  assert.equal((await a.client.showMachine('one')).pid, pid, 'the machine ran on all the time');
});
