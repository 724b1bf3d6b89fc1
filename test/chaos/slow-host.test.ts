import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { postgresClient, preparePostgres, readPostgres } from '../../demo/clients.ts';
import { postgresMachine } from '../../demo/machines.ts';
import { targetRunId } from '../../src/migration/migrate-in.ts';
import { Fleet, type FleetWorker, fleetNeeds } from '../support/fleet.ts';
import { until } from '../support/patience.ts';
import { reservePorts } from '../support/ports.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/**
 * A host in trouble is the one that must be emptied. Each host here has a tenth of a processor for all that
 * godwit runs on it (worker, shims, volume servers and the programs that they start), and each fsync of
 * theirs takes 100 ms more. Its machine has the processor that it always had.
 */

const CPU_GROUPS = '/sys/fs/cgroup/cpu';
const SHARE = 0.1;
const PERIOD_US = 100_000;
const FSYNC_DELAY_MS = 100;
/** Its client leaves the host some of its tenth, and tries to connect now and then while it is down. */
const PAUSES = { commitMs: 20, connectMs: 250 };

/** Interposes what flushes: of Node (libuv's threads) and of SQLite within it. */
const SLOW_FSYNC = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
static void wait_ms(long ms) { struct timespec t = { ms / 1000, ms % 1000 * 1000000L }; nanosleep(&t, 0); }
#define SLOW(name) int name(int fd) { \\
  static int (*real)(int); \\
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \\
  wait_ms(${FSYNC_DELAY_MS}); \\
  return real(fd); }
SLOW(fsync) SLOW(fdatasync) SLOW(syncfs)
`;

const hasCpuGroups = existsSync(join(CPU_GROUPS, 'cpu.cfs_quota_us'));
const skip =
  fleetNeeds ||
  requires('gcc', 'postgres') ||
  (hasCpuGroups ? false : 'the cpu controller of cgroup v1 is not there');

/** The library that delays, made here. */
function slowFsync(t: test.TestContext): string {
  const folder = scratchDir(t);
  const source = join(folder, 'slow-fsync.c');
  const library = join(folder, 'slow-fsync.so');
  writeFileSync(source, SLOW_FSYNC);
  execFileSync('gcc', ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl']);
  return library;
}

/**
 * A control group of one host; everything of that worker that runs now goes into it, and what those start
 * later is born in it.
 */
class SlowHost {
  readonly #folder: string;
  readonly #worker: FleetWorker;

  constructor(t: test.TestContext, worker: FleetWorker) {
    this.#worker = worker;
    this.#folder = join(CPU_GROUPS, `gw-slow-${process.pid}-${worker.name}`);
    mkdirSync(this.#folder);
    writeFileSync(join(this.#folder, 'cpu.cfs_period_us'), String(PERIOD_US));
    // After the fleet's own end: a group goes when its processes have gone.
    t.after(() => this.remove());
    this.#takeIn();
    writeFileSync(join(this.#folder, 'cpu.cfs_quota_us'), String(SHARE * PERIOD_US));
  }

  #takeIn(): void {
    for (const pid of this.#worker.pids()) {
      try {
        writeFileSync(join(this.#folder, 'cgroup.procs'), String(pid));
      } catch {
        // It ended just now.
      }
    }
  }

  /**
   * How often something of it wanted to run and had no quota left, so that the test knows that it was slow.
   */
  get throttled(): number {
    const text = readFileSync(join(this.#folder, 'cpu.stat'), 'utf8');
    return Number(/nr_throttled (\d+)/.exec(text)?.[1] ?? 0);
  }

  /** Full speed again, for the end of the test. */
  release(): void {
    if (existsSync(this.#folder)) writeFileSync(join(this.#folder, 'cpu.cfs_quota_us'), '-1');
  }

  async remove(): Promise<void> {
    this.release();
    await until('the slow group to be empty', async () => {
      try {
        if (existsSync(this.#folder)) rmdirSync(this.#folder);
        return true;
      } catch {
        return false;
      }
    });
  }
}

test('a host with a tenth of a processor and 100 ms for each fsync is drained of PostgreSQL: slow, nothing lost, nothing undone', {
  skip,
}, async (t) => {
  const library = slowFsync(t);
  const [port] = await reservePorts(t, 1);
  const before = process.env.LD_PRELOAD;
  process.env.LD_PRELOAD = library;
  const hosts: SlowHost[] = [];
  const fleet = await Fleet.start(t, ['source', 'target']).finally(() => {
    if (before === undefined) delete process.env.LD_PRELOAD;
    else process.env.LD_PRELOAD = before;
  });
  const source = fleet.worker('source');
  const target = fleet.worker('target');
  const { volume, machine } = postgresMachine('postgres', 2 ** 30, port!);
  const { id: volumeId } = await source.client.createVolume({ ...volume, encrypted: false });
  const wanted = machine(volumeId);
  const { id: machineId } = await source.client.createMachine({
    ...wanted,
    config: { ...wanted.config, resources: {} },
  });
  await fleet.until('PostgreSQL to answer', async () => {
    await preparePostgres(port!);
    return true;
  });
  const client = postgresClient(port!, PAUSES);
  client.start();
  await fleet.until('commits', async () => client.acknowledged > 50);

  for (const worker of [source, target]) hosts.push(new SlowHost(t, worker));
  const startedMs = performance.now();
  await source.client.drain();
  await fleet.until('the drain to end', async () => (await source.client.drainStatus()).state === 'drained', {
    patienceMs: 1_200_000,
  });
  const tookS = Math.round((performance.now() - startedMs) / 1_000);
  const throttled = hosts.map((host) => host.throttled);
  for (const host of hosts) host.release();
  const acknowledged = client.acknowledged;
  await fleet.until('commits at the target', async () => client.acknowledged > acknowledged + 20);
  const report = await client.stop();

  t.diagnostic(`drained in ${tookS} s, longest gap ${Math.round(report.longestGapMs / 1_000)} s`);
  for (const count of throttled) assert.ok(count > 50, `the quota was hardly felt: ${count}`);
  const moves = await fleet.moves(source, machineId);
  assert.equal(moves.length, 1, 'no move was begun again');
  assert.equal(moves[0]!.state, 'done');
  for (const run of [moves[0]!, await target.client.showRun(targetRunId(moves[0]!.id))]) {
    const again = run.steps.filter(({ attempts }) => attempts !== 1).map(({ name }) => name);
    assert.deepEqual([run.state, again], ['done', []], 'no step was begun again');
  }
  assert.deepEqual(await fleet.owners(machineId).then((owners) => owners.map(({ name }) => name)), [
    'target',
  ]);
  const { numbers } = await readPostgres(port!);
  const lost = report.acknowledged.filter((number) => !numbers.has(number));
  assert.deepEqual(lost, [], 'acknowledged commits are lost');
});
