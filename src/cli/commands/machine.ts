import { setTimeout as sleep } from 'node:timers/promises';
import type { ApiClient } from '../../api/client.ts';
import { systemClock } from '../../base/clock.ts';
import { GodwitError, isGodwitError, messageOf, toWireError } from '../../base/errors.ts';
import { PATIENCE } from '../../base/patience.ts';
import { questionText, unanswered } from '../../base/progress.ts';
import type { HealthCheck, MachineConfig } from '../../contract/machine-config.ts';
import { networkOf, runOf } from '../../contract/machine-run.ts';
import type { MachineView, VolumeView } from '../../contract/schemas.ts';
import { DAEMON_HINT, killedText } from '../../machine/ailment.ts';
import type { MigrateOutOutput } from '../../migration/migrate-out.ts';
import { askAgain, tellAway } from '../ask-again.ts';
import type { Context } from '../context.ts';
import { describeError, EXIT, ExitWith, exitCodeOf } from '../exit.ts';
import { type FleetClient, owned, type WorkerClient } from '../fleet-client.ts';
import { Interrupted, interruption } from '../interruption.ts';
import { printable, table } from '../table.ts';
import { formatDuration, formatSize, parseDuration, parseSize } from '../units.ts';

export type RunOptions = {
  name: string;
  worker?: string;
  volume?: string;
  size?: string;
  nbd?: boolean;
  filesystem?: 'ext4' | 'xfs' | 'none';
  encryption?: boolean;
  env: string[];
  hostFolder: string[];
  device: string[];
  user?: string;
  workdir?: string;
  memory?: string;
  cpus?: string;
  network: string;
  healthExec?: string;
  healthTcp?: string;
  healthHttp?: string;
  healthInterval?: string;
  healthTimeout?: string;
  healthStartPeriod?: string;
  stopSignal?: string;
  stopTimeout?: string;
  restart?: string;
  group?: string;
  detach?: boolean;
  wait: string;
};

/** Between two looks at a machine that starts. */
const POLL_MS = 100;
/** A machine without a health check runs when it has for so long. */
const SETTLED_MS = 1_000;
const LAST_LINES = 5;
const LOG_TIMEOUT_MS = 5_000;

export async function run(context: Context, command: string[], options: RunOptions): Promise<void> {
  const waitMs = parseDuration(options.wait);
  const config = configOf(command, options);
  const fleet = context.fleet();
  const wanted = options.volume === undefined ? null : parseVolume(options.volume, options.nbd === true);
  const lengthBytes = options.size === undefined ? null : parseSize(options.size);
  if (lengthBytes !== null && wanted === null)
    throw invalid('--size is the size of a new volume: --volume NAME is missing');
  if (options.nbd && wanted === null)
    throw invalid('--nbd is how the machine gets a volume: --volume NAME is missing');

  const existing = wanted === null ? null : await volumeIfAny(fleet, wanted.name);
  if (wanted !== null && existing === null && lengthBytes === null) {
    throw new GodwitError('CLI_VOLUME_NOT_FOUND', `no volume ${wanted.name} in this fleet`, {
      values: { name: wanted.name },
      nextAction: 'Give --size to make one, e.g. --size 10GiB.',
    });
  }
  if (existing && lengthBytes !== null && existing.volume.lengthBytes !== lengthBytes) {
    throw invalid(
      `volume ${existing.volume.name} is there already with ${formatSize(existing.volume.lengthBytes)}: leave out --size, or choose another name`,
    );
  }
  const worker = await workerFor(fleet, options.worker, existing?.worker);
  await fleet.mustBeFree('machine', options.name, worker.name);

  const interrupt = interruption();
  let making = true;
  interrupt.signal.addEventListener('abort', () => {
    if (making)
      context.note(`Interrupted: waiting for what ${worker.name} answers; once more ends this at once.`);
  });
  try {
    const makeVolume = () =>
      worker.client.createVolume({
        name: wanted!.name,
        lengthBytes: lengthBytes!,
        filesystem: options.filesystem ?? (wanted!.mountPath === undefined ? 'none' : 'ext4'),
        ...(options.encryption === false && { encrypted: false }),
      });
    const made = wanted !== null && existing === null ? await makeVolume() : null;
    const volume = made ?? existing?.volume;
    if (wanted !== null && volume !== undefined) {
      const { mountPath } = wanted;
      const places = { ...(mountPath !== undefined && { mountPath }), ...(options.nbd && { nbd: true }) };
      config.volume = { volumeId: volume.id, ...places };
    }
    const make = async () => {
      interrupt.signal.throwIfAborted();
      return worker.client.createMachine({ name: options.name, config, start: true });
    };
    let machine = await make().catch((error: unknown) => unmade(context, worker, options.name, made, error));
    making = false;
    const remove = `godwit machine destroy ${machine.name} --force${made ? ' --volume' : ''}`;
    if (!options.detach)
      machine = await awaitHealthy(context, worker, machine.id, { waitMs, remove, signal: interrupt.signal });
    context.result(machine, () => `${machine.name} ${stateOf(machine)} on ${machine.worker} (${machine.id})`);
  } finally {
    interrupt.dispose();
  }
}

/**
 * A volume made for a machine that does not come about goes too, unless nobody knows whether it came about.
 * Rejects with `error`.
 */
async function unmade(
  context: Context,
  worker: WorkerClient,
  name: string,
  made: VolumeView | null,
  error: unknown,
): Promise<never> {
  const isUnknown = isGodwitError(error, 'API_UNREACHABLE') && error.values.delivered !== false;
  if (made && isUnknown) {
    context.note(
      `The volume ${made.name} was made; whether the machine was is not known. \`godwit machine show ${name}\` tells; if it was not: godwit volume destroy ${made.name}`,
    );
  } else if (made) {
    await worker.client.destroyVolume(made.id).catch((left: unknown) => {
      context.note(
        `warning: the volume ${made.name} was made and could not be destroyed again (${messageOf(left)}); when that is over: godwit volume destroy ${made.name}`,
      );
    });
  }
  if (error instanceof Interrupted) context.note(`The machine ${name} was not made.`);
  throw error;
}

/**
 * Watches a machine until it is healthy (without a health check: until it has run for a second, or has done
 * what it was to do). One whose first start fails is told at once, with its last words; `remove` is the
 * command that takes it away.
 */
async function awaitHealthy(
  context: Context,
  worker: WorkerClient,
  id: string,
  { waitMs, remove, signal }: { waitMs: number; remove: string; signal: AbortSignal },
): Promise<MachineView> {
  const { client } = worker;
  const deadlineMs = performance.now() + waitMs;
  let upSinceMs: number | null = null;
  try {
    for (;;) {
      signal.throwIfAborted();
      const machine = await askAgain(() => client.showMachine(id), {
        away: tellAway((text) => context.note(text), worker.name, 'the start'),
        clock: systemClock,
        signal,
      });
      const { health, state, restarts } = machine;
      const checked = machine.config.health !== undefined;
      if (state === 'running' && health.state === 'healthy') return machine;
      if (state === 'stopped' && !checked && machine.config.restart.policy !== 'always') return machine;
      if (restarts > 0 || ['restarting', 'failed', 'stopped'].includes(state)) {
        const why =
          restarts > 0 || state === 'restarting' ? 'ended as soon as it was started' : `is ${state}`;
        throw await notHealthy(client, machine, why, remove);
      }
      if (state === 'running' && !checked) {
        upSinceMs ??= performance.now();
        if (performance.now() - upSinceMs >= SETTLED_MS) return machine;
      }
      if (performance.now() >= deadlineMs) {
        const why =
          `is not healthy after ${formatDuration(waitMs)}: ${state}, ${health.state} ${health.message}`.trim();
        throw await notHealthy(client, machine, why, remove);
      }
      await sleep(POLL_MS);
    }
  } catch (error) {
    if (signal.aborted) context.note('No longer waiting; the machine goes on starting.');
    throw error;
  }
}

async function notHealthy(
  client: ApiClient,
  machine: MachineView,
  why: string,
  remove: string,
): Promise<GodwitError> {
  const { id, name, state } = machine;
  const said = await lastWords(client, id);
  const goesOn = state === 'failed' || state === 'stopped' ? '' : ' It goes on trying by itself.';
  const daemon = machine.ailment?.endsWell ? `${DAEMON_HINT} ` : '';
  return new GodwitError(
    'CLI_MACHINE_NOT_HEALTHY',
    `${name} ${why}${said === '' ? '' : `; its log ends with:\n${said}`}`,
    {
      values: { id },
      nextAction: `${daemon}\`godwit machine logs ${name}\` has more.${goesOn} To take it away: \`${remove}\`.`,
    },
  );
}

/** The end of its log, indented; '' where there is none. */
async function lastWords(client: ApiClient, id: string): Promise<string> {
  const chunks: Uint8Array[] = [];
  try {
    const log = client.machineLogs(
      id,
      { lines: LAST_LINES, follow: false },
      AbortSignal.timeout(LOG_TIMEOUT_MS),
    );
    for await (const chunk of log) chunks.push(chunk);
  } catch {
    // Only to explain something else.
  }
  const lines = Buffer.concat(chunks)
    .toString('utf8')
    .trimEnd()
    .split('\n')
    .filter((line) => line !== '');
  return lines.map((line) => `    ${printable(line)}`).join('\n');
}

async function volumeIfAny(
  fleet: FleetClient,
  name: string,
): Promise<{ worker: WorkerClient; volume: VolumeView } | null> {
  try {
    return await fleet.volume(name);
  } catch (error) {
    if (isGodwitError(error, 'CLI_VOLUME_NOT_FOUND')) return null;
    throw error;
  }
}

/** The named worker, the one that has the volume, or the one with the most free memory. */
export async function workerFor(
  fleet: FleetClient,
  name: string | undefined,
  volumeWorker?: WorkerClient,
): Promise<WorkerClient> {
  if (name !== undefined) {
    const worker = await fleet.worker(name);
    if (volumeWorker && volumeWorker.url !== worker.url) {
      throw invalid(`the volume is on ${volumeWorker.name}, not on ${name}`);
    }
    return worker;
  }
  if (volumeWorker) return volumeWorker;
  const { items, unreachable } = await fleet.gather(async (worker) => [
    { worker, view: await worker.client.worker() },
  ]);
  const best = items
    .filter(({ view }) => !view.draining)
    .sort((left, right) => right.view.free.memoryBytes - left.view.free.memoryBytes)[0];
  if (best) return best.worker;
  if (unreachable[0]) throw unreachable[0].error;
  throw new GodwitError('CLI_NO_CAPACITY', 'every worker of the fleet is draining', {
    nextAction: 'godwit undrain WORKER',
  });
}

export function configOf(command: string[], options: RunOptions): MachineConfig {
  const config: MachineConfig = {
    command,
    env: Object.fromEntries(options.env.map(parseEnv)),
    restart: parseRestart(options.restart ?? 'always'),
    stop: {
      signal: `SIG${(options.stopSignal ?? 'TERM').toUpperCase().replace(/^SIG/, '')}`,
      timeoutMs: parseDuration(options.stopTimeout ?? '10s'),
    },
    resources: {
      ...(options.memory === undefined ? {} : { memoryBytes: parseSize(options.memory) }),
      ...(options.cpus === undefined ? {} : { cpus: parseNumber('--cpus', options.cpus) }),
    },
    network: options.network as 'host' | 'none',
    metadata: {},
  };
  if (options.user !== undefined) config.user = options.user;
  if (options.hostFolder.length > 0) config.hostFolders = options.hostFolder;
  if (options.device.length > 0) config.devices = options.device;
  if (options.workdir !== undefined) config.workingDirectory = options.workdir;
  if (options.group !== undefined) config.group = options.group;
  const health = healthOf(options);
  if (health) config.health = health;
  return config;
}

function healthOf(options: RunOptions): HealthCheck | null {
  const { healthExec, healthTcp, healthHttp } = options;
  const given = [healthExec, healthTcp, healthHttp].filter((check) => check !== undefined);
  const timing = {
    intervalMs: parseDuration(options.healthInterval ?? '2s'),
    timeoutMs: parseDuration(options.healthTimeout ?? '2s'),
    retries: 3,
    startPeriodMs: parseDuration(options.healthStartPeriod ?? '60s'),
  };
  if (given.length > 1) throw invalid('give one of --health-exec, --health-tcp and --health-http');
  if (healthExec !== undefined) return { ...timing, kind: 'exec', command: ['/bin/sh', '-c', healthExec] };
  if (healthHttp !== undefined) return { ...timing, kind: 'http', url: healthHttp };
  if (healthTcp === undefined) return null;
  const match = /^(?:(.+):)?(\d+)$/.exec(healthTcp);
  if (!match) throw invalid(`--health-tcp is [HOST:]PORT, not ${healthTcp}`);
  const host = match[1];
  return { ...timing, kind: 'tcp', port: Number(match[2]), ...(host === undefined ? {} : { host }) };
}

/** With `nbd` a volume is mounted only where the path says so. */
function parseVolume(text: string, nbd: boolean): { name: string; mountPath?: string } {
  const colon = text.indexOf(':');
  if (colon !== -1) return { name: text.slice(0, colon), mountPath: text.slice(colon + 1) };
  return nbd ? { name: text } : { name: text, mountPath: '/data' };
}

/** Volume and how the machine gets at it, for people. */
function placeOf(volume: NonNullable<MachineConfig['volume']>): string {
  const { volumeId, mountPath, nbd } = volume;
  const places = [
    ...(mountPath === undefined ? [] : [mountPath]),
    ...(nbd ? [`/run/godwit/disk.sock (NBD${mountPath === undefined ? '' : ', read-only'})`] : []),
  ];
  return `${volumeId} at ${places.join(' and ')}`;
}

function parseEnv(text: string): [string, string] {
  const equals = text.indexOf('=');
  if (equals > 0) return [text.slice(0, equals), text.slice(equals + 1)];
  const inherited = process.env[text];
  if (inherited === undefined)
    throw invalid(`--env is NAME=VALUE, or NAME of a variable that is set: ${text}`);
  return [text, inherited];
}

function parseRestart(text: string): MachineConfig['restart'] {
  const match = /^(no|always|on-failure)(?::(\d+))?$/.exec(text);
  if (!match) throw invalid(`--restart is no, always or on-failure[:RETRIES], not ${text}`);
  return {
    policy: match[1] as MachineConfig['restart']['policy'],
    retriesMax: match[2] === undefined ? 10 : Number(match[2]),
  };
}

function parseNumber(option: string, text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw invalid(`${option} is a number, not ${text}`);
  return value;
}

function invalid(message: string): GodwitError {
  return new GodwitError('CLI_INVALID_OPTIONS', message, { nextAction: 'See godwit machine run --help.' });
}

/**
 * For people: state and health in a word or two, and for how long it is down because of godwit, or waits for
 * room on a full disk.
 */
export function stateOf(machine: MachineView, nowMs: number = Date.now()): string {
  const { health, down, ioPaused, move: moving } = machine;
  const since = (sinceMs: number) => formatDuration(Math.max(0, nowMs - sinceMs));
  const back = moving?.undoneBecause === undefined ? '' : 'goes back';
  if (down) return `${machine.state} (${back && `${back}, `}down ${since(down.sinceMs)})`;
  if (back) return `${machine.state} (${back})`;
  if (ioPaused) {
    const what = ioPaused.waiting === 0 ? 'no room' : 'I/O paused';
    return `${machine.state} (${what} ${since(ioPaused.sinceMs)})`;
  }
  return machine.state === 'running' && health.state !== 'none' ? `running (${health.state})` : machine.state;
}

export async function list(context: Context): Promise<void> {
  const { items, unreachable } = await context.fleet().machines();
  const machines = owned('machine', items).sort((left, right) => left.name.localeCompare(right.name));
  context.result(
    {
      machines,
      unreachable: unreachable.map(({ worker, url, error }) => ({ worker, url, error: error.toWire() })),
    },
    () => (machines.length === 0 && unreachable.length === 0 ? 'No machines.' : machineTable(machines)),
  );
  for (const line of [downLine, undoneLine, ioPausedLine]) {
    const text = line(machines, Date.now());
    if (text !== null) context.note(text);
  }
  context.noteUnreachable(unreachable);
  if (unreachable.length > 0) throw new ExitWith(EXIT.unreachable);
}

/** How many machines are down because of godwit, and the one that has been for longest; null: none. Pure. */
export function downLine(machines: readonly MachineView[], nowMs: number): string | null {
  const down = machines.flatMap(({ name, down: since }) => (since ? [{ name, ...since }] : []));
  const longest = down.sort((left, right) => left.sinceMs - right.sinceMs)[0];
  if (!longest) return null;
  const count = down.length === 1 ? '1 machine is' : `${down.length} machines are`;
  const forMs = formatDuration(Math.max(0, nowMs - longest.sinceMs));
  return `${count} down because of godwit, ${printable(longest.name)} for ${forMs}: it ${printable(longest.why)}`;
}

/** How many machines go back to where they came from, and why one of them does; null: none. Pure. */
export function undoneLine(machines: readonly MachineView[]): string | null {
  const back = machines.filter(({ move: moving }) => moving?.undoneBecause !== undefined);
  const [first] = back;
  if (!first) return null;
  const count = back.length === 1 ? '1 move is' : `${back.length} moves are`;
  const name = printable(first.name);
  return `${count} being undone, of ${name}: ${printable(first.move!.undoneBecause!)} (now: godwit why ${name})`;
}

/** How many machines wait for room on a full disk, and the one that has for longest; null: none. Pure. */
export function ioPausedLine(machines: readonly MachineView[], nowMs: number): string | null {
  const paused = machines.flatMap(({ name, worker, ioPaused }) =>
    ioPaused ? [{ name, worker, ...ioPaused }] : [],
  );
  const longest = paused.sort((left, right) => left.sinceMs - right.sinceMs)[0];
  if (!longest) return null;
  const count = paused.length === 1 ? '1 machine finds' : `${paused.length} machines find`;
  const forMs = formatDuration(Math.max(0, nowMs - longest.sinceMs));
  const name = printable(longest.name);
  return `${count} no room on a full disk, ${name} on ${printable(longest.worker)} for ${forMs}: godwit why ${name}`;
}

function machineTable(machines: readonly MachineView[]): string {
  const rows = machines.map((machine) => [
    machine.name,
    machine.id,
    machine.worker,
    stateOf(machine),
    machine.startedAtMs === null || machine.pid === null
      ? '-'
      : formatDuration(Math.max(0, Date.now() - machine.startedAtMs)),
    String(machine.restarts),
    machine.volumeId ?? '-',
    machine.hydration && machine.hydration.state !== 'complete'
      ? `hydrating ${percent(machine.hydration.blocksPresent, machine.hydration.blocksTotal)}`
      : machine.move
        ? moveOf(machine.move)
        : '-',
  ]);
  return table(['NAME', 'ID', 'WORKER', 'STATE', 'UP', 'RESTARTS', 'VOLUME', 'MOVE'], rows);
}

function moveOf({ phase, target, undoneBecause }: NonNullable<MachineView['move']>): string {
  return undoneBecause === undefined
    ? `${phase} → ${target ?? '?'}`
    : `undoing ${phase}, back from ${target ?? '?'}`;
}

export function percent(part: number, whole: number): string {
  return `${whole === 0 ? 100 : Math.floor((part / whole) * 100)}%`;
}

export async function show(context: Context, ref: string): Promise<void> {
  const { machine } = await context.fleet().machine(ref);
  context.result(machine, () => {
    const { config } = machine;
    const rows = [
      ['name', machine.name],
      ['id', machine.id],
      ['worker', machine.worker],
      ['state', stateOf(machine)],
      ...(machine.down
        ? [
            [
              'down',
              `since ${new Date(machine.down.sinceMs).toISOString()}: it ${printable(machine.down.why)}`,
            ],
          ]
        : []),
      ...(machine.ioPaused
        ? [
            [
              'i/o',
              `${machine.ioPaused.waiting === 0 ? 'no room' : `paused, ${machine.ioPaused.waiting} writes wait for room`} since ${new Date(machine.ioPaused.sinceMs).toISOString()}`,
            ],
          ]
        : []),
      ...(machine.health.message === '' ? [] : [['health', printable(machine.health.message)]]),
      ['command', printable(runOf(config).command.join(' '))],
      ['volume', config.volume ? placeOf(config.volume) : 'none'],
      ['memory', memoryText(machine)],
      ['cpus', config.resources.cpus ? String(config.resources.cpus) : 'no limit'],
      ['network', networkOf(config).kind],
      ['restart', `${config.restart.policy}, ${machine.restarts} so far`],
      ['stop', `${config.stop.signal}, killed after ${formatDuration(config.stop.timeoutMs)}`],
      ['pid', String(machine.pid ?? '-')],
      ['created', new Date(machine.createdAtMs).toISOString()],
      ['started', machine.startedAtMs === null ? '-' : new Date(machine.startedAtMs).toISOString()],
      ...(machine.move
        ? [
            [
              'move',
              `${moveOf(machine.move)} (run ${machine.move.runId})${machine.move.undoneBecause === undefined ? '' : `: ${printable(machine.move.undoneBecause)}`}`,
            ],
          ]
        : []),
    ];
    return table(['', ''], rows).trimStart();
  });
}

export async function start(context: Context, ref: string): Promise<void> {
  const { worker, machine } = await context.fleet().machine(ref);
  const started = await worker.client.startMachine(machine.id, { timeoutMs: stopWaitMs(machine) });
  context.result(started, () => `${started.name} ${stateOf(started)}`);
}

export async function stop(context: Context, ref: string): Promise<void> {
  const { worker, machine } = await context.fleet().machine(ref);
  const stopped = await worker.client.stopMachine(machine.id, { timeoutMs: stopWaitMs(machine) });
  context.result(stopped, () => `${stopped.name} ${stateOf(stopped)}`);
}

export async function restart(context: Context, ref: string): Promise<void> {
  const { worker, machine } = await context.fleet().machine(ref);
  const restarted = await worker.client.restartMachine(machine.id, { timeoutMs: stopWaitMs(machine) });
  context.result(restarted, () => `${restarted.name} ${stateOf(restarted)}`);
}

/** The machine's own patience, and a minute for unmounting and starting. */
function stopWaitMs(machine: MachineView): number {
  return Math.max(PATIENCE.personOperation.ms, machine.config.stop.timeoutMs + 60_000);
}

export async function destroy(
  context: Context,
  refs: string[],
  options: { force?: boolean; volume?: boolean },
): Promise<void> {
  const destroyed: { machineId: string; name: string; volumeId: string | null }[] = [];
  const failed: { ref: string; error: unknown }[] = [];
  for (const ref of refs) {
    try {
      destroyed.push(await destroyOne(context, ref, options));
    } catch (error) {
      // One that cannot go does not keep the others.
      if (refs.length === 1) throw error;
      failed.push({ ref, error });
    }
  }
  const wire = failed.map(({ ref, error }) => ({ ref, error: toWireError(error) }));
  context.result({ destroyed, ...(failed.length > 0 && { failed: wire }) }, () =>
    destroyed
      .map(({ name, volumeId }) => `${name} destroyed${volumeId === null ? '' : ' with its volume'}`)
      .join('\n'),
  );
  for (const { ref, error } of failed) context.note(`${ref}: ${describeError(error).text}`);
  if (failed[0]) throw new ExitWith(exitCodeOf(failed[0].error));
}

async function destroyOne(
  context: Context,
  ref: string,
  options: { force?: boolean; volume?: boolean },
): Promise<{ machineId: string; name: string; volumeId: string | null }> {
  const { worker, machine } = await context.fleet().machine(ref);
  await worker.client.destroyMachine(
    machine.id,
    { force: options.force === true },
    { timeoutMs: stopWaitMs(machine) },
  );
  const volumeId = options.volume ? machine.volumeId : null;
  if (volumeId !== null) {
    await worker.client.destroyVolume(volumeId).catch((error: unknown) => {
      const { code, message, values, nextAction } = toWireError(error);
      throw new GodwitError(code, `${machine.name} is destroyed, and its volume is not: ${message}`, {
        values,
        nextAction: `${nextAction} Then: godwit volume destroy ${volumeId}`,
        cause: error,
      });
    });
  }
  return { machineId: machine.id, name: machine.name, volumeId };
}

export async function exec(
  context: Context,
  ref: string,
  command: string[],
  options: { timeout: string; interactive?: boolean; tty?: boolean },
): Promise<void> {
  if (options.interactive || options.tty) {
    const { execSession } = await import('./exec-session.ts');
    return execSession(context, ref, command, options.tty === true);
  }
  const timeoutMs = parseDuration(options.timeout);
  const { worker, machine } = await context.fleet().machine(ref);
  const result = await worker.client.execInMachine(machine.id, { command, timeoutMs });
  if (context.json) context.print(JSON.stringify(result, null, 2));
  else {
    context.stdout.write(result.stdout);
    context.stderr.write(result.stderr);
    if (result.timedOut) context.note(`error: killed after ${formatDuration(timeoutMs)}`);
  }
  // As timeout(1) has it for a command that took too long; a command that a signal ended has no exit code of
  // its own.
  const exitCode = result.timedOut ? 124 : (result.exitCode ?? 125);
  if (exitCode !== 0) throw new ExitWith(exitCode);
}

export async function logs(
  context: Context,
  ref: string,
  options: { lines: string; follow?: boolean },
): Promise<void> {
  const { worker, machine } = await context.fleet().machine(ref);
  const lines = parseNumber('--lines', options.lines);
  const interrupt = interruption();
  try {
    const log = worker.client.machineLogs(
      machine.id,
      { lines, follow: options.follow === true },
      interrupt.signal,
    );
    for await (const chunk of log) {
      if (!context.stdout.write(chunk)) await new Promise((resolve) => context.stdout.once('drain', resolve));
    }
  } finally {
    interrupt.dispose();
  }
}

export async function move(
  context: Context,
  ref: string,
  options: { to?: string; rekey?: boolean; detach?: boolean },
): Promise<void> {
  const { worker, machine } = await context.fleet().machine(ref);
  let moving = await worker.client.moveMachine(machine.id, {
    target: options.to ?? null,
    ...(options.rekey && { rekey: true }),
  });
  if (options.detach) {
    context.result(moving, () => `${machine.name}: run ${moving.id}; godwit runs show ${moving.id}`);
    return;
  }
  const interrupt = interruption();
  let said = '';
  try {
    while (moving.endedAtMs === null) {
      const silent = unanswered(moving.asks, Date.now());
      const reason = moving.reason
        ? ` (${moving.reason.message}; next: ${moving.reason.nextAction})`
        : silent
          ? ` (${questionText(silent)})`
          : '';
      const line = printable(`${machine.name}: ${moving.state} ${moving.step ?? ''}${reason}`);
      if (line !== said) context.note(line);
      said = line;
      await sleep(POLL_MS, undefined, { signal: interrupt.signal }).catch(() =>
        interrupt.signal.throwIfAborted(),
      );
      moving = await askAgain(() => worker.client.showRun(moving.id), {
        away: tellAway((text) => context.note(text), worker.name, 'the move'),
        clock: systemClock,
        signal: interrupt.signal,
      });
    }
  } catch (error) {
    if (interrupt.signal.aborted) {
      context.note(
        `No longer watching; the move goes on in ${worker.name}. To undo it: godwit runs cancel ${moving.id}`,
      );
    }
    throw error;
  } finally {
    interrupt.dispose();
  }
  context.result(
    moving,
    () =>
      `${machine.name}: ${moving.state}${moving.error ? `: ${moving.error.message}` : ''}${travelled(moving.output)}`,
  );
  if (moving.state !== 'done') throw new ExitWith(EXIT.blocked);
}

/** What a finished move sent and did not have to send, as far as the run says it. */
function travelled(output: unknown): string {
  const { bytesAvoided, last } = (output ?? {}) as Partial<MigrateOutOutput>;
  const wireBytes = last?.hydration?.wireBytes;
  if (wireBytes === undefined || bytesAvoided === undefined) return '';
  return `; ${formatSize(wireBytes)} over the wire, ${formatSize(bytesAvoided)} avoided`;
}

function memoryText({ config, outOfMemoryKills }: MachineView): string {
  const { memoryBytes } = config.resources;
  return `${memoryBytes ? formatSize(memoryBytes) : 'no limit'}${killedText(outOfMemoryKills)}`;
}
