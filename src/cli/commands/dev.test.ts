import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../../../test/support/patience.ts';
import { requires } from '../../../test/support/requires.ts';
import { scratchDir } from '../../../test/support/scratch.ts';
import { readFleetFile } from '../fleet-file.ts';

/**
 * A fleet without machines: what the keeper of local workers does. Machines on it are the business of test/.
 */

const BIN = join(import.meta.dirname, '..', '..', '..', 'bin', 'godwit');

function ended(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => child.once('close', resolve));
}

function runs(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test('workers start, come back when they die, end with Ctrl-C, and go', {
  skip: requires('root'),
}, async (t) => {
  const dir = scratchDir(t);
  const fleetPath = join(dir, '.godwit', 'fleet.json');
  const pids = new Set<number>();
  t.after(() => {
    for (const pid of pids) if (runs(pid)) process.kill(pid, 'SIGKILL');
  });
  const start = (...args: string[]) => {
    // Below a home of its own nothing would be compiled yet.
    const { PATH, NODE_COMPILE_CACHE } = process.env;
    const env = { PATH, HOME: dir, ...(NODE_COMPILE_CACHE && { NODE_COMPILE_CACHE }) };
    const child = spawn(BIN, args, { cwd: dir, env });
    pids.add(child.pid!);
    const output = { text: '' };
    child.stdout.on('data', (chunk) => {
      output.text += chunk;
    });
    child.stderr.on('data', (chunk) => {
      output.text += chunk;
    });
    return { child, output, exit: ended(child) };
  };
  const pidOf = (name: string) =>
    readFleetFile(fleetPath).workers.find((worker) => worker.name === name)?.pid;

  const dev = start('dev', '--workers', '2', '--respawn');
  await until('ready', () => dev.output.text.includes('Ctrl-C ends') || dev.child.exitCode !== null);
  assert.equal(dev.child.exitCode, null, dev.output.text);
  const first = pidOf('worker-1')!;
  pids.add(first).add(pidOf('worker-2')!);

  const second = start('dev', '--workers', '2');
  assert.equal(await second.exit, 6, 'the folder is taken');

  process.kill(first, 'SIGKILL');
  await until('started again', () => pidOf('worker-1') !== undefined && pidOf('worker-1') !== first);
  pids.add(pidOf('worker-1')!);
  const listed = start('machine', 'list', '--json');
  // The new worker may not listen yet: then the list says so and ends with 4.
  assert.ok([0, 4].includes((await listed.exit) ?? -1), listed.output.text);

  // What is served to others goes too when all goes.
  await until('both to answer', async () => (await start('machine', 'list', '--json').exit) === 0);
  const made = start(
    'volume',
    'create',
    'v',
    '--size',
    '16MiB',
    '--filesystem',
    'none',
    '--worker',
    'worker-2',
  );
  assert.equal(await made.exit, 0, made.output.text);
  const served = start('volume', 'serve', 'v', '--nbd', `unix:${join(dir, 'v.sock')}`, '--detach');
  assert.equal(await served.exit, 0, served.output.text);

  const { url } = readFleetFile(fleetPath).workers[0]!;
  dev.child.kill('SIGINT');
  assert.equal(await dev.exit, 0, dev.output.text);
  assert.match(dev.output.text, /Machines go on running/);
  for (const pid of pids) if (pid !== second.child.pid) assert.ok(!runs(pid), `process ${pid} is left`);
  assert.equal(
    readFleetFile(fleetPath).workers[0]!.url,
    url,
    'the next one comes back under the same address',
  );

  const down = start('dev', 'down');
  assert.equal(await down.exit, 0, down.output.text);
  assert.ok(!existsSync(fleetPath) && !existsSync(join(dir, '.godwit', 'worker-1')));
  assert.equal(await start('dev', 'down').exit, 5, 'nothing is left to take down');
});
