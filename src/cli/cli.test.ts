import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { drainMachine, FakeWorkerService, machineView, runView } from '../../test/support/fake-service.ts';
import { programPath } from '../../test/support/programs.ts';
import { diskReceiptBody, receiptOf } from '../../test/support/receipts.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { createApiServer } from '../api/server.ts';
import { GodwitError } from '../base/errors.ts';
import { silentLogger } from '../base/logger.ts';
import type { DrainStatus } from '../contract/schemas.ts';
import { verifyReceipt } from '../receipt/envelope.ts';

/**
 * The program as a process, against workers that are served by this one; and bin/godwit, which starts it,
 * where that is the point.
 */

const TOKEN = 'a-token-of-the-fleet';
const BIN = join(import.meta.dirname, '..', '..', 'bin', 'godwit');
const MAIN = programPath('cli/main.ts');

type Result = { code: number | null; stdout: string; stderr: string };

class Fleet {
  readonly services: FakeWorkerService[] = [];
  readonly dir: string;
  readonly #t: TestContext;

  constructor(t: TestContext) {
    this.#t = t;
    this.dir = scratchDir(t);
  }

  /** Two workers, and with `lost` a third at which nobody listens. */
  async start(lost = false): Promise<this> {
    const workers: { name: string; url: string }[] = [];
    for (const name of ['worker-1', 'worker-2']) {
      const service = new FakeWorkerService(name);
      this.services.push(service);
      const app = await createApiServer({ service, token: TOKEN, logger: silentLogger, version: '1' });
      this.#t.after(() => app.close());
      workers.push({ name, url: await app.listen({ host: '127.0.0.1', port: 0 }) });
    }
    // Port 1 is never given out, and nothing listens there.
    if (lost) workers.push({ name: 'worker-3', url: 'http://127.0.0.1:1' });
    mkdirSync(join(this.dir, '.godwit'));
    writeFileSync(join(this.dir, '.godwit', 'token'), TOKEN);
    writeFileSync(join(this.dir, '.godwit', 'fleet.json'), JSON.stringify({ tokenFile: 'token', workers }));
    return this;
  }

  spawn(...args: string[]): ChildProcess {
    return this.#spawn(process.execPath, '--disable-warning=ExperimentalWarning', MAIN, ...args);
  }

  #spawn(program: string, ...args: string[]): ChildProcess {
    // Below a home of its own nothing would be compiled yet.
    const { PATH, NODE_COMPILE_CACHE } = process.env;
    const env = { PATH, HOME: this.dir, ...(NODE_COMPILE_CACHE && { NODE_COMPILE_CACHE }) };
    const child = spawn(program, args, { cwd: this.dir, env });
    this.#t.after(() => {
      if (child.exitCode === null) child.kill('SIGKILL');
    });
    return child;
  }

  async godwit(...args: string[]): Promise<Result> {
    return ended(this.spawn(...args));
  }

  async launched(...args: string[]): Promise<Result> {
    return ended(this.#spawn(BIN, ...args));
  }
}

function ended(child: ChildProcess): Promise<Result> {
  const result: Result = { code: null, stdout: '', stderr: '' };
  child.stdout!.on('data', (chunk) => {
    result.stdout += chunk;
  });
  child.stderr!.on('data', (chunk) => {
    result.stderr += chunk;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ ...result, code }));
  });
}

const drainStatus = (some: Partial<DrainStatus>): DrainStatus => ({
  worker: 'worker-1',
  desired: true,
  sinceMs: 1_700_000_000_000,
  endedAtMs: null,
  state: 'draining',
  machines: [],
  ...some,
});

test('help and version need no fleet and end with 0, wrong usage ends with 2', async (t) => {
  const fleet = new Fleet(t);
  const help = await fleet.launched('--help');
  assert.equal(help.code, 0);
  assert.match(help.stdout, /drain .*<WORKER>/);
  assert.match(help.stdout, /3 {2}blocked/);
  assert.match((await fleet.godwit('--version')).stdout, /^\d+\.\d+\.\d+\n$/);
  for (const args of [
    ['nonsense'],
    ['drain'],
    ['drain', 'w', '--fast'],
    ['machine', 'run', '--name', 'x'],
    [],
  ]) {
    assert.equal((await fleet.godwit(...args)).code, 2, args.join(' '));
  }
  assert.equal((await fleet.launched('nonsense')).code, 2);
});

test('no fleet: 5, with what to do', async (t) => {
  const { code, stderr } = await new Fleet(t).godwit('machine', 'list');
  assert.equal(code, 5);
  assert.match(stderr, /^error CLI_FLEET_NOT_FOUND: .+\n {2}next: .*godwit dev --workers 3/);
});

test('the launcher is found through symbolic links', async (t) => {
  const fleet = new Fleet(t);
  symlinkSync(BIN, join(fleet.dir, 'one'));
  symlinkSync('one', join(fleet.dir, 'two'));
  const { code, stdout } = await ended(spawn(join(fleet.dir, 'two'), ['--version']));
  assert.equal(code, 0);
  assert.match(stdout, /^\d/);
});

test('the launcher says what is missing', async (t) => {
  const { dir } = new Fleet(t);
  mkdirSync(join(dir, 'package', 'bin'), { recursive: true });
  const { copyFileSync } = await import('node:fs');
  copyFileSync(BIN, join(dir, 'package', 'bin', 'godwit'));
  const { code, stderr } = await ended(spawn(join(dir, 'package', 'bin', 'godwit'), ['--version']));
  assert.equal(code, 1);
  assert.match(stderr, /CLI_NODE_MISSING.*\n.*npm ci/);
});

test('a volume as a socket: instead of the mount, or beside it', async (t) => {
  const fleet = await new Fleet(t).start();
  const machineOf = async (name: string, ...options: string[]) => {
    const run = await fleet.godwit(
      ...[
        'machine',
        'run',
        '--name',
        name,
        '--worker',
        'worker-2',
        ...options,
        '--size',
        '1GiB',
        '--',
        'qemu',
      ],
    );
    assert.deepEqual([run.code, run.stderr], [0, '']);
    const { volumeId, ...place } = (await fleet.services[1]!.showMachine(name)).config.volume!;
    const { filesystem } = await fleet.services[1]!.showVolume(volumeId);
    return { filesystem, ...place };
  };
  const only = { filesystem: 'none', nbd: true };
  assert.deepEqual(await machineOf('a', '--volume', 'a', '--nbd'), only);
  assert.match((await fleet.godwit('machine', 'show', 'a')).stdout, /at \/run\/godwit\/disk\.sock \(NBD\)/);
  const made = ['--volume', 'b', '--nbd', '--filesystem', 'xfs'];
  assert.deepEqual(await machineOf('b', ...made), { ...only, filesystem: 'xfs' });
  const both = { filesystem: 'ext4', mountPath: '/data', nbd: true };
  assert.deepEqual(await machineOf('c', '--volume', 'c:/data', '--nbd'), both);
  assert.match(
    (await fleet.godwit('machine', 'show', 'c')).stdout,
    /at \/data and \/run\/godwit\/disk\.sock \(NBD, read-only\)/,
  );
  const without = await fleet.godwit('machine', 'run', '--name', 'd', '--nbd', '--', 'qemu');
  assert.equal(without.code, 2);
  assert.match(without.stderr, /--volume NAME is missing/);
});

test('a machine with a new volume: made, listed, shown, run in, stopped, destroyed', async (t) => {
  const fleet = await new Fleet(t).start();
  const run = await fleet.godwit(
    ...['machine', 'run', '--name', 'pg', '--worker', 'worker-2', '--volume', 'pgdata:/var/lib/pg'],
    ...['--size', '1GiB', '--env', 'A=1', '--health-tcp', '5432', '--', 'postgres', '-D', '/var/lib/pg'],
  );
  assert.deepEqual([run.code, run.stderr], [0, '']);
  assert.match(run.stdout, /^pg running \(healthy\) on worker-2 \(m_/);
  const service = fleet.services[1]!;
  const machine = await service.showMachine('pg');
  assert.deepEqual(machine.config.command, ['postgres', '-D', '/var/lib/pg']);
  assert.equal(machine.config.volume?.mountPath, '/var/lib/pg');
  assert.equal((await service.showVolume('pgdata')).lengthBytes, 2 ** 30);

  const list = await fleet.godwit('machine', 'list');
  assert.match(list.stdout, /^NAME +ID +WORKER .*\npg +m_\w+ +worker-2 +running \(healthy\)/);
  const json = JSON.parse((await fleet.godwit('--json', 'machine', 'list')).stdout);
  assert.deepEqual(
    json.machines.map((each: { name: string }) => each.name),
    ['pg'],
  );
  assert.match((await fleet.godwit('volume', 'list')).stdout, /pgdata .* 1 GiB .* ready@1/);
  assert.match((await fleet.godwit('machine', 'show', 'pg')).stdout, /command +postgres -D/);
  assert.equal((await fleet.godwit('machine', 'logs', 'pg')).stdout, 'line one\nline two\n');

  const exec = await fleet.godwit('machine', 'exec', 'pg', '--timeout', '5s', '--', 'echo', '--json', 'x');
  assert.deepEqual([exec.code, exec.stdout], [0, 'echo --json x\n']);
  assert.equal((await fleet.godwit('machine', 'exec', 'pg', '--', 'false')).code, 1);
  // Longer than a timer of Node: it is the worker that says that this is too long, and not a clock that it
  // does not answer.
  const long = await fleet.godwit('machine', 'exec', 'pg', '--timeout', '30d', '--', 'true');
  assert.deepEqual([long.code, /the timeout must be at most 1 h/.test(long.stderr)], [2, true], long.stderr);

  assert.equal((await fleet.godwit('machine', 'destroy', 'pg')).code, 6, 'it runs');
  assert.equal((await fleet.godwit('machine', 'stop', 'pg')).code, 0);
  for (const [id, machine] of service.machines)
    service.machines.set(id, { ...machine, startedAtMs: 1, pid: null });
  const listed = await fleet.godwit('machine', 'list');
  assert.match(listed.stdout, /pg +m_\w+ +worker-\d +stopped +- /, 'it was started once, and is not up');
  const destroyed = await fleet.godwit('machine', 'destroy', 'pg', '--volume', '--json');
  assert.equal(JSON.parse(destroyed.stdout).destroyed[0].name, 'pg');
  assert.equal(service.machines.size + service.volumes.size, 0);
});

test('a volume that was made for a machine that does not come about goes again', async (t) => {
  const fleet = await new Fleet(t).start();
  fleet.services[0]!.machines.set('m_1', machineView({ name: 'pg' }));
  const { code, stderr } = await fleet.godwit(
    ...[
      'machine',
      'run',
      '--name',
      'pg',
      '--worker',
      'worker-1',
      '--volume',
      'v',
      '--size',
      '1GiB',
      '--',
      'true',
    ],
  );
  assert.equal(code, 6);
  assert.match(stderr, /MACHINE_NAME_EXISTS/);
  assert.equal(fleet.services[0]!.volumes.size, 0);
});

test('Ctrl-C while a machine is made leaves nothing behind, or says what goes on', async (t) => {
  const fleet = await new Fleet(t).start();
  const service = fleet.services[0]!;
  const interruptedIn = async (method: 'createVolume' | 'createMachine') => {
    const make = service[method].bind(service) as (request: unknown) => Promise<never>;
    const asked = Promise.withResolvers<void>();
    const goOn = Promise.withResolvers<void>();
    service[method] = async (request: unknown) => {
      asked.resolve();
      await goOn.promise;
      return make(request);
    };
    const child = fleet.spawn(
      ...['machine', 'run', '--name', 'pg', '--worker', 'worker-1'],
      ...['--volume', 'v', '--size', '1GiB', '--', 'true'],
    );
    const result = ended(child);
    await asked.promise;
    child.kill('SIGINT');
    await new Promise((said) => child.stderr!.once('data', said));
    goOn.resolve();
    service[method] = make;
    return result;
  };
  const early = await interruptedIn('createVolume');
  assert.deepEqual([early.code, service.volumes.size, service.machines.size], [130, 0, 0], early.stderr);
  assert.match(early.stderr, /Interrupted: waiting for what worker-1 answers.*\nThe machine pg was not made/);
  const late = await interruptedIn('createMachine');
  assert.deepEqual([late.code, service.volumes.size, service.machines.size], [130, 1, 1], late.stderr);
  assert.match(late.stderr, /the machine goes on starting/);
});

test('Ctrl-C while a worker does what it was asked for says that it may go on', async (t) => {
  const fleet = await new Fleet(t).start();
  const service = fleet.services[0]!;
  service.machines.set('m_1', machineView({}));
  const asked = Promise.withResolvers<void>();
  const goOn = Promise.withResolvers<void>();
  service.stopMachine = async () => {
    asked.resolve();
    await goOn.promise;
    return machineView({});
  };
  const child = fleet.spawn('machine', 'stop', 'pg');
  const result = ended(child);
  await asked.promise;
  child.kill('SIGINT');
  const { code, stderr } = await result;
  goOn.resolve();
  assert.equal(code, 130);
  assert.match(stderr, /^Interrupted\. What was asked of worker-1 may go on there: godwit why worker-1/);
});

test('errors: not found 5, ambiguous and invalid 2, with --json as JSON', async (t) => {
  const fleet = await new Fleet(t).start();
  const missing = await fleet.godwit('machine', 'show', 'nobody', '--json');
  assert.equal(missing.code, 5);
  assert.equal(JSON.parse(missing.stdout).error.code, 'CLI_MACHINE_NOT_FOUND');
  assert.match(missing.stderr, /next: godwit machine list/);
  for (const [index, service] of fleet.services.entries()) {
    service.machines.set(`m_${index}`, machineView({ id: `m_${index}`, name: 'twin' }));
  }
  const twin = await fleet.godwit('machine', 'stop', 'twin');
  assert.equal(twin.code, 2);
  assert.match(twin.stderr, /CLI_AMBIGUOUS_REF: several machines are called twin: m_0, m_1/);
  assert.equal((await fleet.godwit('volume', 'create', 'v', '--size', 'big')).code, 2);
  assert.equal((await fleet.godwit('volume', 'create', 'v', '--size', '1')).code, 2);
  assert.equal((await fleet.godwit('drain', 'worker-9')).code, 5);
});

test('a worker that does not answer: the others are listed, it is named, 4', async (t) => {
  const fleet = await new Fleet(t).start(true);
  fleet.services[0]!.machines.set('m_1', machineView({}));
  const list = await fleet.godwit('machine', 'list');
  assert.equal(list.code, 4);
  assert.equal((await fleet.godwit('top', '--once')).code, 4);
  assert.match(list.stdout, /^pg /m);
  assert.match(list.stderr, /warning: worker-3 does not answer .*ECONNREFUSED/);
  const json = JSON.parse((await fleet.godwit('machine', 'list', '--json')).stdout);
  assert.equal(json.unreachable[0].worker, 'worker-3');
  assert.equal((await fleet.godwit('machine', 'show', 'pg')).code, 0, 'what is found is enough');
  const missing = await fleet.godwit('machine', 'show', 'other');
  assert.equal(missing.code, 4, 'it may be there');
  assert.match(missing.stderr, /no answer from worker-3/);
  assert.equal((await fleet.godwit('drain', 'worker-3')).code, 4);
});

test('a worker with trouble of its own keeps nobody else from answering: it is named, with what to do, 4', async (t) => {
  const fleet = await new Fleet(t).start();
  const [, second] = fleet.services;
  fleet.services[0]!.machines.set('m_1', machineView({}));
  second!.listMachines = async () => {
    throw new GodwitError('INTERNAL', 'its disk is broken', { nextAction: 'look at its disk' });
  };
  const list = await fleet.godwit('machine', 'list');
  assert.deepEqual([list.code, /^pg /m.test(list.stdout)], [4, true], list.stderr);
  assert.match(
    list.stderr,
    /warning: worker-2 has no answer \(its disk is broken\)\n {2}next: look at its disk/,
  );
  assert.equal((await fleet.godwit('machine', 'show', 'pg')).code, 0);
  const missing = await fleet.godwit('machine', 'show', 'other');
  assert.match(missing.stderr, /INTERNAL: no machine other .*no answer from worker-2: its disk is broken/);
  // Where nobody has an answer, what is wrong is with the question, or with who asks.
  writeFileSync(join(fleet.dir, '.godwit', 'token'), 'another-token-of-the-fleet');
  const refused = await fleet.godwit('machine', 'list');
  assert.match(refused.stderr, /^error API_UNAUTHORIZED/, refused.stdout);
});

test('of several machines one that cannot be destroyed does not keep the others, and nobody has to guess which', async (t) => {
  const fleet = await new Fleet(t).start();
  const [first] = fleet.services;
  for (const name of ['a', 'c'])
    first!.machines.set(`m_${name}`, machineView({ id: `m_${name}`, name, state: 'stopped' }));
  const both = await fleet.godwit('machine', 'destroy', 'a', 'b', 'c', '--json');
  assert.equal(both.code, 5, both.stderr);
  const { destroyed, failed } = JSON.parse(both.stdout);
  assert.deepEqual(
    destroyed.map(({ name }: { name: string }) => name),
    ['a', 'c'],
  );
  assert.deepEqual([failed[0].ref, failed[0].error.code], ['b', 'CLI_MACHINE_NOT_FOUND']);
  assert.match(both.stderr, /^b: error CLI_MACHINE_NOT_FOUND/);
});

const moved = drainMachine({
  state: 'moved',
  target: 'worker-2',
  hydratedFraction: 1,
  interruptionMs: { stop: 1, seal: 2, handoff: 3, attach: 4, boot: 5, total: 15 },
});

test('a drain without a terminal: a line for every change, a table, 0', async (t) => {
  const fleet = await new Fleet(t).start();
  const script = () => [
    drainStatus({ machines: [drainMachine({})] }),
    drainStatus({ machines: [drainMachine({ state: 'moving', phase: 'stop', target: 'worker-2' })] }),
    drainStatus({
      machines: [drainMachine({ state: 'hydrating', target: 'worker-2', hydratedFraction: 0.5 })],
    }),
    drainStatus({ state: 'drained', machines: [moved] }),
  ];
  fleet.services[0]!.drainScript = script();
  const text = await fleet.godwit('drain', 'worker-1');
  assert.deepEqual([text.code, text.stderr], [0, '']);
  // The first answer is that of the request itself; the watching begins with the second.
  assert.deepEqual(text.stdout.split('\n').slice(0, 6), [
    'worker-1: draining',
    'pg: moving to worker-2, stop',
    'pg: runs on worker-2, 50% hydrated',
    'worker-1: drained',
    'pg: moved to worker-2, 0 B over the wire, interrupted 15 ms',
    'MACHINE  STATE  TARGET    VOLUME   USED   WIRE  AVOIDED  STOP  SEAL  HANDOFF  ATTACH  BOOT  TOTAL  HYDRATION  RECEIPT',
  ]);

  fleet.services[0]!.drainScript = script();
  const json = await fleet.godwit('drain', 'worker-1', '--json');
  assert.equal(json.code, 0);
  assert.deepEqual(JSON.parse(json.stdout).machines, [moved]);
  assert.match(json.stderr, /pg: moving to worker-2/);

  fleet.services[0]!.drainScript = script();
  const lines = (await fleet.godwit('drain', 'worker-1', '--json-lines')).stdout.trimEnd().split('\n');
  const parsed = lines.map((line) => JSON.parse(line));
  assert.deepEqual(
    parsed.map(({ final }) => final),
    [false, false, false, true],
  );
  assert.equal(parsed.at(-1).exitCode, 0);
});

test('a drain that cannot be finished: 3, with every reason', async (t) => {
  const fleet = await new Fleet(t).start();
  const waiting = drainMachine({
    state: 'waiting',
    reason: 'no worker has room',
    nextAction: 'godwit undrain worker-2',
  });
  fleet.services[0]!.drainScript = [drainStatus({ state: 'waiting', machines: [moved, waiting] })];
  const { code, stderr } = await fleet.godwit('drain', 'worker-1', '--wait', '100ms');
  assert.equal(code, 3);
  assert.match(
    stderr,
    /cannot be finished now:\n {2}pg: no worker has room\n {4}next: godwit undrain worker-2\n/,
  );
});

test('Ctrl-C leaves the drain to the worker and says so', async (t) => {
  const fleet = await new Fleet(t).start();
  fleet.services[0]!.drainScript = [drainStatus({ machines: [drainMachine({})] })];
  const child = fleet.spawn('drain', 'worker-1');
  child.stdout!.once('data', () => child.kill('SIGINT'));
  const { code, stderr } = await ended(child);
  assert.equal(code, 130);
  assert.match(stderr, /drain goes on in worker-1/);
  assert.match(stderr, /godwit undrain worker-1/);
  assert.equal((await fleet.services[0]!.drainStatus()).desired, true);
});

test('dry run, detach and undrain', async (t) => {
  const fleet = await new Fleet(t).start();
  fleet.services[0]!.machines.set('m_1', machineView({}));
  const plan = await fleet.godwit('drain', 'worker-1', '--dry-run');
  assert.equal(plan.code, 0);
  assert.match(plan.stdout, /^1 +pg +worker-2 +5 MiB +~400 ms/m);
  assert.deepEqual(fleet.services[0]!.calls, [], 'nothing was asked for');
  assert.equal((await fleet.godwit('drain', 'worker-1', '--detach')).code, 0);
  assert.deepEqual(fleet.services[0]!.calls, ['drain']);
  assert.match((await fleet.godwit('undrain', 'worker-1')).stdout, /^worker-1 takes machines again/);
});

test('a move is watched to its end', async (t) => {
  const fleet = await new Fleet(t).start();
  const service = fleet.services[0]!;
  service.machines.set('m_1', machineView({}));
  const states = [
    runView({ id: 'run1', step: 'prepare' }),
    runView({ id: 'run1', state: 'done', step: null, endedAtMs: 1_700_000_001_000 }),
  ];
  service.showRun = async () => states.shift() ?? assert.fail('asked after the end');
  const good = await fleet.godwit('move', 'pg', '--to', 'worker-2');
  assert.deepEqual([good.code, good.stdout], [0, 'pg: done\n']);
  service.showRun = async () =>
    runView({ id: 'run1', state: 'undone', step: null, endedAtMs: 1_700_000_001_000 });
  assert.equal((await fleet.godwit('move', 'pg')).code, 3);
});

test('why, runs and top', async (t) => {
  const fleet = await new Fleet(t).start();
  const service = fleet.services[0]!;
  service.machines.set('m_1', machineView({}));
  service.runs.push(
    runView({ id: 'run7', reason: { message: 'target is away', nextAction: 'start it', sinceMs: 0 } }),
  );
  const why = await fleet.godwit('why', 'pg');
  assert.equal(why.code, 0);
  assert.match(
    why.stdout,
    /machine pg on worker-1: running\n {2}- no worker has room .*\n.*an operator\n {4}next: godwit undrain/,
  );
  assert.equal((await fleet.godwit('why', 'nothing')).code, 5);
  assert.match((await fleet.godwit('runs', 'list')).stdout, /run7 +worker-1 +migrate-out .*target is away/);
  assert.match(
    (await fleet.godwit('runs', 'show', 'run7')).stdout,
    /waits: target is away\n {2}next: start it/,
  );
  assert.equal((await fleet.godwit('runs', 'cancel', 'run7')).code, 0);
  assert.equal((await fleet.godwit('runs', 'force', 'run7', 'undo')).code, 2, 'force wants --yes');
  assert.equal((await fleet.godwit('runs', 'force', 'run7', 'undo', '--yes')).code, 0);
  assert.equal((await fleet.godwit('runs', 'show', 'run8')).code, 5);
  const top = await fleet.godwit('top');
  assert.match(top.stdout, /^WORKER .*\nworker-1 +up +1 /);
  assert.match(top.stdout, /^MACHINE .*\npg +worker-1 +running \(healthy\)/m);
});

test('completion asks the fleet', async (t) => {
  const fleet = await new Fleet(t).start();
  fleet.services[1]!.machines.set('m_1', machineView({}));
  assert.equal((await fleet.godwit('complete', '--', 'machine', 'stop', '')).stdout, 'pg\n');
  assert.equal((await fleet.godwit('complete', '--', 'drain', '--to', '')).stdout, 'worker-1\nworker-2\n');
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { code, stdout } = await fleet.godwit('completion', shell);
    assert.equal(code, 0);
    assert.match(stdout, /godwit complete --/);
  }
});

test('a receipt: asked for, saved, verified offline, and refused when it was changed', async (t) => {
  const fleet = await new Fleet(t).start();
  const missing = await fleet.godwit('receipt', 'pg');
  assert.deepEqual([missing.code, /CLI_RECEIPT_NOT_FOUND/.test(missing.stderr)], [5, true]);
  const made = receiptOf('run1');
  fleet.services[1]!.receipt = made;
  const text = await fleet.godwit('receipt', 'pg');
  assert.deepEqual([text.code, text.stderr], [0, '']);
  assert.match(text.stdout, /^move run1 of db \(m_1\)\nvolume db \(v_1\), encrypted\nfrom w1, generation 1/);
  assert.match(text.stdout, /\nfetched +64 KiB +65536 +came over the wire\n/);
  const json = await fleet.godwit('receipt', 'pg', '--json');
  assert.deepEqual(JSON.parse(json.stdout), made);

  // Offline: in a folder of its own, without a fleet.
  const alone = new Fleet(t);
  const file = join(alone.dir, 'receipt.json');
  writeFileSync(file, json.stdout);
  assert.equal((await alone.godwit('receipt', '--verify', file)).code, 0);
  const guest = { writes: 3, writeBytes: 8192, discards: 0, discardBytes: 0, sectorBytes: 4096 } as const;
  for (const known of [guest, null]) {
    writeFileSync(file, JSON.stringify(receiptOf('run2', (id, keys) => diskReceiptBody(id, keys, known))));
    const { code, stdout } = await alone.godwit('receipt', '--verify', file);
    assert.equal(code, 0);
    assert.match(stdout, /\ncleared +4 KiB +4096 /);
    assert.match(
      stdout,
      known ? /\nguest wrote +8 KiB +8192 +3 requests/ : /\nguest +- +- +what it wrote is not known/,
    );
  }
  writeFileSync(file, json.stdout);
  const { source, target } = verifyReceipt(made);
  const keys = ['--key', source.keyFingerprint, '--key', target.keyFingerprint];
  const verified = await alone.godwit('receipt', '--verify', file, ...keys, '--json');
  assert.deepEqual([verified.code, JSON.parse(verified.stdout).verified], [0, true]);
  const stranger = await alone.godwit('receipt', '--verify', file, '--key', source.keyFingerprint);
  assert.deepEqual([stranger.code, /RECEIPT_UNKNOWN_KEY/.test(stranger.stderr)], [1, true]);
  const body = { ...verifyReceipt(made), rangesMended: 0 };
  const payload = Buffer.from(JSON.stringify(body)).toString('base64');
  writeFileSync(file, JSON.stringify({ ...made, payload }));
  const changed = await alone.godwit('receipt', '--verify', file);
  assert.deepEqual([changed.code, /RECEIPT_FIGURES/.test(changed.stderr)], [1, true]);
  writeFileSync(file, 'nothing');
  assert.match((await alone.godwit('receipt', '--verify', file)).stderr, /RECEIPT_MALFORMED/);
  assert.equal((await alone.godwit('receipt')).code, 2);
  assert.equal((await alone.godwit('receipt', '--verify', join(alone.dir, 'gone'))).code, 1);

  fleet.services[0]!.drainScript = [
    drainStatus({ state: 'drained', machines: [{ ...moved, runId: 'run1', root: 'ab' }] }),
  ];
  const folder = join(fleet.dir, 'receipts');
  const drained = await fleet.godwit('drain', 'worker-1', '--receipts', folder);
  assert.equal(drained.code, 0, drained.stderr);
  assert.deepEqual(JSON.parse(readFileSync(join(folder, `${moved.name}-run1.json`), 'utf8')), made);
});

test('the loss of a volume is shown, and accepted by the one word that says so', async (t) => {
  const fleet = await new Fleet(t).start();
  const [here] = fleet.services;
  const volume = await here!.createVolume({ name: 'data', lengthBytes: 4096, filesystem: 'none' });
  const accepted = () => here!.calls.filter((call) => call.startsWith('accept-loss'));
  const whole = await fleet.godwit('volume', 'accept-loss', 'data', '--yes');
  assert.match(whole.stderr, /VOLUME_NO_SUCH_LOSS/);
  const dataLoss = { atMs: 86_400_000, reason: 'flush failed: EIO', file: '/data-loss.json' };
  here!.volumes.set(volume.id, { ...volume, dataLoss });
  assert.match((await fleet.godwit('volume', 'show', 'data')).stdout, /DATA LOST.*1970-01-02.*EIO/);
  const asked = await fleet.godwit('volume', 'accept-loss', 'data');
  assert.equal(asked.code, 2);
  assert.match(asked.stderr, /EIO.*may be old/s);
  assert.deepEqual(accepted(), []);
  const result = await fleet.godwit('volume', 'accept-loss', 'data', '--yes');
  assert.equal(result.code, 0, result.stderr);
  assert.deepEqual(accepted(), [`accept-loss ${volume.id} 86400000`]);
});

test('the volume that a move left is recovered where it is kept', async (t) => {
  const fleet = await new Fleet(t).start();
  const [here, there] = fleet.services;
  const kept = {
    ...(await here!.createVolume({ name: 'data', lengthBytes: 4096, filesystem: 'none' })),
    name: 'data',
  };
  there!.volumes.set(kept.id, { ...kept, worker: 'worker-2', state: 'retained', generation: 3 });
  const result = await fleet.godwit('volume', 'recover', 'data', '--as', 'data-then');
  assert.equal(result.code, 0, result.stderr);
  assert.deepEqual(
    there!.calls.filter((call) => call.startsWith('recover')),
    [`recover ${kept.id} data-then`],
  );
  assert.equal((await fleet.godwit('volume', 'recover', 'other', '--as', 'x')).code, 5);
});

test('a volume that arrives says how: over TLS, in the clear, or from a disk of another system', async (t) => {
  const fleet = await new Fleet(t).start();
  const [here] = fleet.services;
  const volume = await here!.createVolume({ name: 'data', lengthBytes: 4096, filesystem: 'none' });
  const words = { tls: 'TLS', tcp: 'in the clear', foreign: 'from a foreign disk' } as const;
  for (const transport of ['tls', 'tcp', 'foreign'] as const) {
    const hydration = {
      state: 'running' as const,
      blocksTotal: 10,
      blocksPresent: 5,
      exposedBytes: 20_480,
      wireBytes: 1_048_576,
      blocksFetchedTwice: 0,
      missesKept: true,
      bytesPerSecond: 4096,
      etaMs: 5_000,
      sourceLostForMs: null,
      lastError: null,
      transport,
    };
    here!.volumes.set(volume.id, { ...volume, hydration });
    const { stdout } = await fleet.godwit('volume', 'show', 'data');
    assert.match(stdout, new RegExp(`over the wire +1 MiB \\(${words[transport]}\\)`));
    assert.match(stdout, /hydrated +50% \(running\)/);
  }
});
