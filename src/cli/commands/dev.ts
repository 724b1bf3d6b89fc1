import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../api/client.ts';
import { entryPoint } from '../../base/entry-point.ts';
import { GodwitError, messageOf } from '../../base/errors.ts';
import type { VolumeView } from '../../contract/schemas.ts';
import { namedFolder, ownPath, removeDataFolder } from '../../sys/named-path.ts';
import type { Context } from '../context.ts';
import { FleetClient, owned } from '../fleet-client.ts';
import { type FleetFile, readFleetFile, readToken, writeFleetFile } from '../fleet-file.ts';
import { interruption } from '../interruption.ts';

export type DevOptions = {
  workers: string;
  data: string;
  respawn?: boolean;
  stop?: boolean;
};

const HEALTHY_WITHIN_MS = 60_000;
/** A worker closes its API and journal within this, or it is killed: its machines do not notice either. */
const STOP_WITHIN_MS = 15_000;
const RESPAWN_AFTER_MS = 500;
/** In the folder of the fleet: a key file for each volume, made with it. */
const KEYS_FOLDER = 'keys';

type DevWorker = { name: string; url: string; dataDir: string };

/** A fleet on this machine: worker processes of their own, looked after until Ctrl-C. */
export async function dev(context: Context, options: DevOptions): Promise<void> {
  if (options.stop) return down(context, options);
  const count = Number(options.workers);
  if (!Number.isInteger(count) || count < 1 || count > 32) {
    throw new GodwitError('CLI_INVALID_OPTIONS', `--workers is 1 to 32, not ${options.workers}`, {
      nextAction: 'godwit dev --workers 3',
    });
  }
  const dataDir = resolve(context.cwd, options.data);
  namedFolder(join(dataDir, KEYS_FOLDER), 0o700);
  const fleetPath = join(dataDir, 'fleet.json');
  const before = existsSync(fleetPath) ? readFleetFile(fleetPath) : null;
  if (before?.devPid !== undefined && isGodwitProcess(before.devPid, 'dev')) {
    throw new GodwitError('CLI_DEV_ALREADY_RUNNING', `a fleet in ${dataDir} is already looked after`, {
      values: { pid: before.devPid },
      nextAction: `Use it (--fleet ${fleetPath}), or take another --data folder.`,
    });
  }
  const token = ensureToken(join(dataDir, 'token'));
  // Workers of an earlier fleet come back with their names and ports: their machines may still be running.
  const workers: DevWorker[] = (before?.workers ?? []).map(({ name, url }) => ({
    name,
    url,
    dataDir: ownPath(dataDir, name),
  }));
  while (workers.length < count) {
    const name = `worker-${workers.length + 1}`;
    workers.push({ name, url: `http://127.0.0.1:${await freePort()}`, dataDir: ownPath(dataDir, name) });
  }

  const interrupt = interruption();
  const keeper = new Keeper(context, workers, token, fleetPath, options.respawn === true);
  try {
    await keeper.startAll(before, interrupt.signal);
    const fleet = workers.map(({ name, url }) => ({ name, url, pid: keeper.pidOf(name) }));
    if (context.json) context.print(JSON.stringify({ fleet: fleetPath, workers: fleet }));
    else {
      context.print(`${workers.length} workers run on this machine; the fleet file is ${fleetPath}`);
      for (const { name, url, pid } of fleet) context.print(`  ${name}  ${url}  pid ${pid}`);
      const prefix = options.data === '.godwit' ? 'godwit' : `godwit --fleet ${fleetPath}`;
      context.print(`\nIn another terminal:
  ${prefix} machine run --name hello --volume hello --size 1GiB -- sh -c 'while date >> /data/dates; do sleep 1; done'
  ${prefix} top
  ${prefix} drain ${workers[0]!.name}
Ctrl-C ends the workers and leaves the machines running; ${prefix === 'godwit' ? 'godwit dev down' : `godwit dev down --data ${dataDir}`} destroys everything.`);
    }
    if (!interrupt.signal.aborted) {
      await new Promise((done) => interrupt.signal.addEventListener('abort', done, { once: true }));
    }
    context.note('Ending the workers. Machines go on running, and the next godwit dev finds them again.');
  } finally {
    await keeper.stopAll();
    interrupt.dispose();
  }
}

/** Destroys the machines and volumes of a local fleet, ends its workers and removes its folder. */
export async function down(context: Context, options: { data: string }): Promise<void> {
  const dataDir = resolve(context.cwd, options.data);
  const fleetPath = join(dataDir, 'fleet.json');
  if (!existsSync(fleetPath)) {
    throw new GodwitError('CLI_FLEET_NOT_FOUND', `there is no local fleet in ${dataDir}`, {
      values: { path: fleetPath },
      nextAction: 'Name its folder with --data DIR.',
    });
  }
  const before = readFleetFile(fleetPath);
  const token = readToken(join(dataDir, 'token'));
  // A keeper that looks on would start the workers again.
  if (before.devPid !== undefined && isGodwitProcess(before.devPid, 'dev')) {
    process.kill(before.devPid, 'SIGTERM');
    await gone(before.devPid, 'dev', STOP_WITHIN_MS + 10_000);
  }
  const workers = before.workers.map(({ name, url }) => ({ name, url, dataDir: ownPath(dataDir, name) }));
  const keeper = new Keeper(context, workers, token, fleetPath, false);
  const interrupt = interruption();
  const fleet = new FleetClient({ path: fleetPath, workers, token, caFile: null });
  const destroyed = { machines: [] as string[], volumes: [] as string[] };
  try {
    await keeper.startAll(readFleetFile(fleetPath), interrupt.signal);
    for (const { client } of fleet.workers) await client.undrain();
    await destroyMachines(fleet, destroyed);
    await destroyVolumes(fleet, destroyed, isOwn);
    if (await takeBack(fleet)) await destroyMachines(fleet, destroyed);
    await destroyVolumes(fleet, destroyed, () => true);
  } finally {
    fleet.close();
    await keeper.stopAll();
    interrupt.dispose();
  }
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.startsWith(`${dataDir}/`));
  if (mounts.length > 0) {
    throw new GodwitError('CLI_DEV_STILL_MOUNTED', `something is still mounted: ${mounts.join(', ')}`, {
      values: { dataDir },
      nextAction: `Unmount it, then remove ${dataDir}.`,
    });
  }
  for (const { name } of workers) removeDataFolder(ownPath(dataDir, name));
  for (const name of ['fleet.json', 'token', KEYS_FOLDER])
    rmSync(join(dataDir, name), { recursive: true, force: true });
  context.result(
    destroyed,
    () =>
      `Destroyed ${destroyed.machines.length} machines and ${destroyed.volumes.length} volumes; the workers are gone.`,
  );
}

/** Not a copy that a move left. */
const isOwn = ({ state }: VolumeView) => state === 'ready' || state === 'clone';

type Destroyed = { machines: string[]; volumes: string[] };

/** Moves under way come to their end first or are undone; a machine can only be destroyed where it is. */
async function destroyMachines(fleet: FleetClient, destroyed: Destroyed): Promise<void> {
  for (const machine of owned('machine', (await fleet.machines()).items)) {
    const { worker } = await fleet.machine(machine.id);
    await worker.client.destroyMachine(machine.id, { force: true });
    if (!destroyed.machines.includes(machine.name)) destroyed.machines.push(machine.name);
  }
}

async function destroyVolumes(
  fleet: FleetClient,
  destroyed: Destroyed,
  goes: (volume: VolumeView) => boolean,
): Promise<void> {
  for (const { client } of fleet.workers) {
    for (const volume of (await client.listVolumes()).filter(goes)) {
      // To other systems: those that machines had are gone with them.
      if (volume.served !== null) await client.stopServing(volume.id);
      await client.destroyVolume(volume.id, { force: true });
      const had = destroyed.volumes.includes(volume.name);
      if (!had && isOwn(volume)) destroyed.volumes.push(volume.name);
    }
  }
}

/** The source of a move whose target had its run forgotten has its machine again. */
async function takeBack(fleet: FleetClient): Promise<boolean> {
  let taken = false;
  for (const { client } of fleet.workers) {
    for (const { id } of await client.listRuns({ state: 'unfinished' })) {
      await client.forceRun(id, { how: 'forget' });
      taken = true;
    }
  }
  return taken;
}

/** Starts worker processes and ends them again. */
class Keeper {
  readonly #context: Context;
  readonly #workers: DevWorker[];
  readonly #token: string;
  readonly #fleetPath: string;
  readonly #respawn: boolean;
  readonly #children = new Map<string, ChildProcess>();
  /** Workers that were found running. */
  readonly #adopted = new Map<string, number>();
  #stopping = false;

  constructor(context: Context, workers: DevWorker[], token: string, fleetPath: string, respawn: boolean) {
    this.#context = context;
    this.#workers = workers;
    this.#token = token;
    this.#fleetPath = fleetPath;
    this.#respawn = respawn;
  }

  pidOf(name: string): number {
    return this.#children.get(name)?.pid ?? this.#adopted.get(name) ?? 0;
  }

  /** Resolves when all answer. Rejects when one ends before it does, with the end of its log. */
  async startAll(before: FleetFile | null, signal: AbortSignal): Promise<void> {
    for (const worker of this.#workers) {
      const pid = before?.workers.find(({ name }) => name === worker.name)?.pid;
      if (pid !== undefined && isGodwitProcess(pid, worker.name)) this.#adopted.set(worker.name, pid);
      else this.#spawn(worker);
    }
    this.#write(true);
    await Promise.all(this.#workers.map((worker) => this.#awaitHealthy(worker, signal)));
  }

  #spawn(worker: DevWorker): void {
    mkdirSync(worker.dataDir, { recursive: true, mode: 0o700 });
    const log = openSync(join(worker.dataDir, 'worker.log'), 'a', 0o600);
    const peers = this.#workers.filter(({ name }) => name !== worker.name);
    const child = spawn(
      process.execPath,
      [
        ...process.execArgv,
        fileURLToPath(entryPoint('cli/main.ts')),
        'worker',
        ...['--name', worker.name],
        ...['--data', worker.dataDir],
        ...['--listen', new URL(worker.url).host],
        ...['--token-file', join(this.#fleetPath, '..', 'token')],
        // Of all workers, so that the keys of a volume that moves are where it goes.
        ...['--key-file', join(this.#fleetPath, '..', KEYS_FOLDER, '{volume}')],
        ...peers.flatMap(({ name, url }) => ['--peer', `${name}=${url}`]),
      ],
      // A session of its own: Ctrl-C in this terminal is for us, and we end the workers in order.
      { stdio: ['ignore', log, log], detached: true },
    );
    closeSync(log);
    this.#children.set(worker.name, child);
    child.once('error', () => {});
    child.once('exit', (code, exitSignal) => void this.#onExit(worker, child, exitSignal ?? `code ${code}`));
  }

  async #onExit(worker: DevWorker, child: ChildProcess, how: string): Promise<void> {
    if (this.#stopping || this.#children.get(worker.name) !== child) return;
    this.#context.note(
      `${worker.name} ended (${how}); its machines go on running${this.#respawn ? ', it is started again' : ''}`,
    );
    if (!this.#respawn) {
      this.#children.delete(worker.name);
      this.#write(true);
      return;
    }
    await sleep(RESPAWN_AFTER_MS);
    if (this.#stopping) return;
    this.#spawn(worker);
    this.#write(true);
  }

  async #awaitHealthy(worker: DevWorker, signal: AbortSignal): Promise<void> {
    const client = new ApiClient({ url: worker.url, token: this.#token, timeoutMs: 2_000 });
    const deadlineMs = performance.now() + HEALTHY_WITHIN_MS;
    let last = 'no answer yet';
    try {
      for (;;) {
        signal.throwIfAborted();
        try {
          const view = await client.worker();
          if (view.name === worker.name) return;
          last = `${view.name} answers there`;
        } catch (error) {
          last = messageOf(error);
        }
        const child = this.#children.get(worker.name);
        const ended = child
          ? child.exitCode !== null || child.signalCode !== null || child.pid === undefined
          : !this.#adopted.has(worker.name);
        if (ended || performance.now() >= deadlineMs) {
          throw new GodwitError(
            'CLI_DEV_WORKER_FAILED',
            `${worker.name} ${ended ? 'ended while it started' : `does not answer: ${last}`}${tail(join(worker.dataDir, 'worker.log'))}`,
            {
              values: { worker: worker.name },
              nextAction: `See ${join(worker.dataDir, 'worker.log')}.`,
            },
          );
        }
        await sleep(50);
      }
    } finally {
      client.close();
    }
  }

  /** Ends every worker process: SIGTERM, then SIGKILL. */
  async stopAll(): Promise<void> {
    this.#stopping = true;
    await Promise.all(
      this.#workers.map(async ({ name }) => {
        const child = this.#children.get(name);
        if (child?.pid !== undefined && child.exitCode === null && child.signalCode === null) {
          const exited = new Promise<void>((done) => child.once('exit', () => done()));
          child.kill('SIGTERM');
          const timeout = setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS);
          await exited;
          clearTimeout(timeout);
        }
        const adopted = this.#adopted.get(name);
        if (adopted !== undefined && isGodwitProcess(adopted, name)) {
          process.kill(adopted, 'SIGTERM');
          await gone(adopted, name, STOP_WITHIN_MS);
        }
      }),
    );
    this.#children.clear();
    this.#adopted.clear();
    this.#write(false);
  }

  #write(running: boolean): void {
    writeFleetFile(this.#fleetPath, {
      tokenFile: 'token',
      ...(running ? { devPid: process.pid } : {}),
      workers: this.#workers.map(({ name, url }) => {
        const pid = this.pidOf(name);
        return { name, url, ...(pid > 0 ? { pid } : {}) };
      }),
    });
  }
}

/**
 * True when the process is one of godwit's with `word` in its command line, and not another that has got its
 * pid since.
 */
function isGodwitProcess(pid: number, word: string): boolean {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    return words.some((each) => /\bcli\/main\.[jt]s$/.test(each)) && words.includes(word);
  } catch {
    return false;
  }
}

/** Waits for the end of a process that is not our child; kills it when the time is up. */
async function gone(pid: number, word: string, withinMs: number): Promise<void> {
  const deadlineMs = performance.now() + withinMs;
  while (isGodwitProcess(pid, word)) {
    if (performance.now() >= deadlineMs) {
      process.kill(pid, 'SIGKILL');
      return;
    }
    await sleep(50);
  }
}

function ensureToken(path: string): string {
  if (!existsSync(path))
    writeFileSync(path, `${randomBytes(24).toString('base64url')}\n`, { mode: 0o600, flag: 'wx' });
  return readToken(path);
}

/** A port that is free now. The system does not give it out again soon. */
function freePort(): Promise<number> {
  return new Promise((found, failed) => {
    const server = createServer();
    server.once('error', failed);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      const port = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => found(port));
    });
  });
}

function tail(path: string): string {
  try {
    const lines = readFileSync(path, 'utf8').trimEnd().split('\n').slice(-5);
    return `\n  ${lines.join('\n  ')}`;
  } catch {
    return '';
  }
}
