import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readdirSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import test from 'node:test';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/** What is slow, hangs, is in doubt or is damaged keeps nothing beside it waiting, and is what is named. */

const VOLUMES = 14;
const VOLUME = ['--size', '16MiB', '--no-encryption'];

test('filesystems that are being made keep no seal waiting; a worker that hangs costs one wait, and is the one who is named', {
  skip: fleetNeeds,
}, async (t) => {
  const dir = scratchDir(t);
  const go = join(dir, 'go');
  // A disk on which it takes as long as the test wants.
  const slow = join(dir, 'mkfs.ext4');
  writeFileSync(
    slow,
    `#!/bin/sh\n: >${dir}/began.$$\nwhile [ ! -e ${go} ]; do sleep 0.05; done\nPATH=/usr/sbin:/sbin exec mkfs.ext4 "$@"\n`,
  );
  writeFileSync(go, '');
  chmodSync(slow, 0o755);
  const fleet = await Fleet.start(t, ['a', 'b', 'c'], {
    through: { a: ['env', `PATH=${dir}:${process.env.PATH}`] },
    flags: { a: ['--memory', '4GiB'], b: ['--memory', '1GiB'], c: ['--memory', '4GiB'] },
  });
  const { godwit } = fleet;
  const [a, c] = [fleet.worker('a'), fleet.worker('c')];
  for (const name of ['small', 'other', 'third']) {
    const run = ['machine', 'run', '--worker', 'a', '--name', name, '--volume', name, ...VOLUME];
    await godwit(0, ...run, '--', 'sleep', 'infinity');
  }
  // The last one in the order of the drain: that another has accepted ends the wait for who hangs.
  const vast = [
    '--name',
    'vast',
    '--memory',
    '2GiB',
    '--volume',
    'vast',
    '--size',
    '64MiB',
    '--no-encryption',
  ];
  await godwit(0, ...['machine', 'run', '--worker', 'a', ...vast, '--', 'sleep', 'infinity']);

  // 1. Fourteen at a time, none of which comes to its end before the move has.
  execFileSync('rm', [go]);
  let made = 0;
  const creations = Array.from({ length: VOLUMES }, async (_, index) => {
    const words = ['volume', 'create', `v${index}`, '--worker', 'a', ...VOLUME];
    await godwit(0, ...words);
    made++;
  });
  await fleet.until('the first mkfs', () => readdirSync(dir).some((name) => name.startsWith('began.')));
  await godwit(0, 'move', 'small', '--to', 'b');
  assert.deepEqual([made, existsSync(go)], [0, false], 'the move did not wait for them');
  writeFileSync(go, '');
  await Promise.all(creations);
  assert.equal(made, VOLUMES);

  // 2. A worker that hangs is waited for once, whatever the number of machines, and is named; others are not.
  process.kill(c.pid, 'SIGSTOP');
  const asked = async (peer: string) => {
    const headers = { authorization: `Bearer ${fleet.token}` };
    const text = await (await fetch(`${a.url}/metrics`, { headers })).text();
    const series = `godwit_peer_call_duration_seconds_count{peer="${peer}",question="offer"} `;
    const line = text.split('\n').find((one) => one.startsWith(series));
    return Number(line?.slice(series.length) ?? 0);
  };
  const before = await asked('c');
  const dry = await godwit(3, 'drain', 'a', '--dry-run');
  assert.match(dry, /^\d+ +vast +stays .*b memory: needs 2048 MiB, has 1024 MiB; c does not answer/m);
  for (const name of ['other', 'third']) assert.match(dry, new RegExp(`^\\d+ +${name} +b `, 'm'));
  assert.match(dry, /^warning: the plan is made without c, which does not answer/m);
  assert.doesNotMatch(dry, /[ab] does not answer/);
  // What it was asked besides would be answered now, and counted.
  process.kill(c.pid, 'SIGCONT');
  await c.client.worker();
  assert.equal((await asked('c')) - before, 1, 'once for all of them');
  process.kill(c.pid, 'SIGSTOP');
  // One bounded wait again, and what comes then knows of it: a move would wait longer, for nobody else takes it.
  assert.match(await godwit(3, 'drain', 'a', '--dry-run'), /^warning: the plan is made without c/m);
  assert.match(await godwit(3, 'move', 'vast'), /b memory: .*c does not answer/);
  const wanted = await godwit(3, 'move', 'other', '--to', 'c');
  assert.match(wanted, /no worker takes other: c does not answer/);
  assert.doesNotMatch(wanted, /[ab] does not answer/);
  await godwit(0, 'machine', 'destroy', 'vast', '--force', '--volume');
  const rest = await godwit(3, 'drain', 'a', '--dry-run');
  assert.match(rest, /^2 of 2 machines can go/m);
  assert.match(rest, /^warning: the plan is made without c, which does not answer/m);
  process.kill(c.pid, 'SIGCONT');
});

/** Overwrites the checksum of its first group of blocks, as a disk does that has lost a write. */
function tear(worker: FleetWorker, machineId: string): void {
  const fd = openSync(deviceOf(worker, machineId), 'r+');
  const word = Buffer.alloc(2);
  // Blocks of 1024 bytes have the descriptors in the third one, others in the second.
  const block = Buffer.alloc(1024);
  readSync(fd, block, 0, 1024, 1024);
  const at = Math.max(2048, 1024 << block.readUInt32LE(0x18)) + 0x1e;
  readSync(fd, word, 0, 2, at);
  word.writeUInt16LE(word.readUInt16LE(0) ^ 0x5a5a);
  writeSync(fd, word, 0, 2, at);
  fsyncSync(fd);
  closeSync(fd);
}

/** The free space header of the second allocation group, where the kernel of the machine does not see it. */
async function sink(worker: FleetWorker, machineId: string): Promise<void> {
  const { volumeId } = await worker.client.showMachine(machineId);
  const fd = openSync(join(worker.dataDir, 'volumes', volumeId!, 'data.raw'), 'r+');
  const superblock = Buffer.alloc(512);
  readSync(fd, superblock, 0, 512, 0);
  const at = superblock.readUInt32BE(84) * superblock.readUInt32BE(4) + superblock.readUInt16BE(102);
  writeSync(fd, Buffer.alloc(4, 0xff), 0, 4, at);
  fsyncSync(fd);
  closeSync(fd);
}

function deviceOf(worker: FleetWorker, machineId: string): string {
  return worker.shims().find(({ id }) => id === machineId)!.state.loopDevice!;
}

test('a drain goes on past a target that is in doubt, and past filesystems with errors', {
  skip: fleetNeeds || requires('mkfs.xfs'),
}, async (t) => {
  const fleet = await Fleet.start(t, ['a', 'b', 'c']);
  const { godwit } = fleet;
  const [a, b, c] = [fleet.worker('a'), fleet.worker('b'), fleet.worker('c')];
  const make = async (name: string, mebibytes: number, size = ['--size', '32MiB']) => {
    const run = ['machine', 'run', '--worker', 'a', '--name', name, '--volume', name];
    const script = `head -c ${mebibytes}M /dev/urandom >/data/x; sync; touch /tmp/up; exec sleep infinity`;
    await godwit(0, ...run, ...size, '--no-encryption', '--', 'sh', '-c', script);
    const { id } = await a.client.showMachine(name);
    const look = { command: ['test', '-e', '/tmp/up'], timeoutMs: 60_000 };
    await fleet.until('its ballast', async () => (await a.client.execInMachine(id, look)).exitCode === 0);
    return id;
  };
  // The smallest goes first.
  const doubt = await make('doubt', 1);
  const marked = await make('marked', 3);
  const torn = await make('torn', 5);
  const tornSinceMs = (await a.client.showMachine(torn)).startedAtMs;
  await make('good', 8);
  const sunk = await make('sunk', 9, ['--size', '320MiB', '--filesystem', 'xfs']);
  const sunkSinceMs = (await a.client.showMachine(sunk)).startedAtMs;
  writeFileSync(`/sys/fs/ext4/${basename(deviceOf(a, marked))}/trigger_fs_error`, 'an error of a test');
  tear(a, torn);
  await sink(a, sunk);
  await b.kill();
  await b.start({ crashAt: 'migrate-in:activate:before-done-append' });

  const { exitCode, stdout, stderr } = await fleet.run('drain', 'a', '--wait', '1s');
  const said = `${stdout}\n${stderr}`;
  assert.equal(exitCode, 3, said);
  await b.crashed();
  for (const name of ['marked', 'good']) assert.match(stdout, new RegExp(`^${name}: moved to c`, 'm'), said);
  assert.match(stderr, /^ {2}doubt: b does not answer, and it may have opened the volume/m, said);
  assert.match(stderr, /next: Bring b back: .*godwit runs force r_\w+ undo --target-is-destroyed/, said);
  for (const name of ['torn', 'sunk'])
    assert.match(
      stderr,
      new RegExp(
        `^ {2}${name}: the filesystem of its volume is damaged, and would not be mounted again: `,
        'm',
      ),
      said,
    );
  assert.doesNotMatch(stderr, /^ +(?:marked|good): /m);

  // It was not stopped to find that out; what has only been marked runs as it did.
  const { state, startedAtMs } = await a.client.showMachine(torn);
  assert.deepEqual([state, startedAtMs], ['running', tornSinceMs]);
  assert.equal((await a.client.showMachine(sunk)).startedAtMs, sunkSinceMs);
  assert.equal((await c.client.showMachine(marked)).state, 'running');

  // The doubt ends by the word of the target, and what is left is the one that cannot go.
  await b.start();
  await fleet.until('the other half of the move', async () => (await fleet.owners(doubt))[0]?.name === 'b');
  const rest = await fleet.until('the drain to be done with it', async () => {
    const { machines } = await a.client.drainStatus();
    return machines.every((one) => one.state === 'moved' || ['torn', 'sunk'].includes(one.name)) && machines;
  });
  assert.deepEqual(
    rest
      .filter((one) => one.state !== 'moved')
      .map(({ name }) => name)
      .sort(),
    ['sunk', 'torn'],
  );
  const again = await fleet.run('drain', 'a', '--wait', '1s');
  assert.equal(again.exitCode, 3, again.stderr);
});
