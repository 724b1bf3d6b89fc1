import type { DatabaseSync, StatementSync } from 'node:sqlite';
import type { Clock } from '../base/clock.ts';
import { messageOf, toWireError, type WireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { questionText } from '../base/progress.ts';
import type { TargetStatus } from '../contract/peer.ts';
import type { DrainMachine, DrainStatus, LeftVolume } from '../contract/schemas.ts';
import type { RunView } from '../journal/run.ts';
import type { MigrateOutInput, MigrateOutOutput } from './migrate-out.ts';
import { MovePace } from './move-pace.ts';
import { isServing } from './move-watch.ts';

/**
 * A drain is desired state: "this worker shall have no machines". The controller looks at what is (machines
 * here, runs of the journal) and does the next thing, again and again; asking twice, restarting the worker or
 * losing a peer changes nothing of that. One machine at a time is between stop and healthy, while the blocks
 * of earlier ones still follow; one that is held up there (move-pace.ts) is not waited for.
 */
export type DrainView = Required<DrainStatus>;

/** A machine that is this worker's own now. */
export type LocalMachine = { machineId: string; name: string; volumeBytes: number; usedBytes: number };

/** Why a machine could not be started on its way, and when it is tried again. */
export type Obstacle = {
  error: WireError;
  /** Wall clock, for people. */
  sinceMs: number;
  attempts: number;
  /** Monotonic clock. */
  retryAtMs: number;
  /** The move that ended so, if it was one. */
  runId: string | null;
};

export type DrainLimits = {
  /** Machines between their stop and their first healthy answer. */
  movingMax: number;
  /**
   * Machines whose blocks still follow, and those that are held up: a fault that all have in common does not
   * take all of them along.
   */
  hydratingMax: number;
  /** How long a move may come no further before the next machine goes. */
  heldAfterMs: number;
};

export const DRAIN_LIMITS: DrainLimits = {
  movingMax: 1,
  hydratingMax: 8,
  heldAfterMs: PATIENCE.drainHeld.ms,
};

const RETRY_FIRST_MS = PAUSE.drainRetry.ms;
const RETRY_MAX_MS = PAUSE.drainRetryMax.ms;
const TICK_MS = PAUSE.drainTick.ms;
const NONE_HELD: ReadonlySet<string> = new Set();

/** When an obstacle that was met `attempts` times is tried again. */
export function retryDelayMs(attempts: number): number {
  return Math.min(RETRY_FIRST_MS * 2 ** Math.max(0, attempts - 1), RETRY_MAX_MS);
}

/** How many moves may begin now, `held` being those that come no further. Pure. */
function roomForMoves(
  runs: readonly RunView[],
  limits: DrainLimits,
  held: ReadonlySet<string> = NONE_HELD,
): number {
  const active = runs.filter((run) => run.endedAtMs === null);
  const moving = active.filter((run) => !isServing(run) && !held.has(run.id)).length;
  return Math.max(0, Math.min(limits.movingMax - moving, limits.hydratingMax - active.length));
}

/**
 * Which machines start their move now, at `nowMs` of the monotonic clock. Smallest first, so that most of the
 * worker is free soonest. Pure.
 */
export function nextMoves(
  machines: readonly LocalMachine[],
  runs: readonly RunView[],
  obstacles: ReadonlyMap<string, Obstacle>,
  limits: DrainLimits,
  nowMs: number,
  held: ReadonlySet<string> = NONE_HELD,
): LocalMachine[] {
  const active = runs.filter((run) => run.endedAtMs === null);
  const busy = new Set(active.map((run) => (run.input as MigrateOutInput).machineId));
  return machines
    .filter((machine) => !busy.has(machine.machineId))
    .filter((machine) => (obstacles.get(machine.machineId)?.retryAtMs ?? 0) <= nowMs)
    .sort((left, right) => left.usedBytes - right.usedBytes || (left.name < right.name ? -1 : 1))
    .slice(0, roomForMoves(runs, limits, held));
}

/** How one machine of a drain stands. Pure. */
export function machineView(
  machine: { machineId: string; name: string; volumeBytes: number; usedBytes: number },
  run: RunView | null,
  live: TargetStatus | null,
  obstacle: Obstacle | null,
  held = false,
): DrainMachine {
  const output = (run?.output ?? {}) as MigrateOutOutput;
  const status = live ?? output.last ?? null;
  const hydration = status?.hydration ?? null;
  const ended = run !== null && run.endedAtMs !== null;
  const undone = ended && run.state !== 'done';
  const ailing = run?.state === 'done' ? ailment(machine.name, output) : null;
  const reason = obstacle?.error ?? ailing ?? (undone ? run.error : ended ? null : (output.disputed ?? null));
  const waits = ended ? null : (run?.reason ?? (held && run ? heldUp(machine.name, run) : null));
  const { activated, hydrated } = status?.timesMs ?? { activated: null, hydrated: null };
  return {
    machineId: machine.machineId,
    name: machine.name,
    state: ailing ? 'failed' : stateOf(run, obstacle, held),
    runId: run?.id ?? null,
    target: output.target ?? null,
    phase: run?.step ?? null,
    hydratedFraction:
      hydration && hydration.totalBytes > 0 ? hydration.presentBytes / hydration.totalBytes : null,
    bytesPerSecond: hydration?.bytesPerSecond ?? null,
    etaMs: hydration?.etaMs ?? null,
    interruptionMs: output.interruptionMs ?? null,
    wireBytes: hydration?.wireBytes ?? 0,
    volumeBytes: output.subject?.volume?.lengthBytes ?? machine.volumeBytes,
    usedBytes: output.subject?.volume?.usedBytes ?? machine.usedBytes,
    hydrationMs: activated !== null && hydrated !== null ? hydrated - activated : null,
    blocksFetchedTwice: hydration?.blocksFetchedTwice ?? null,
    bytesAvoided: output.bytesAvoided ?? null,
    root: output.root ?? null,
    waivedAtMs: output.waivedAtMs ?? null,
    reason: reason?.message ?? waits?.message ?? null,
    nextAction: reason?.nextAction ?? waits?.nextAction ?? null,
  };
}

function leftVolume(volume: Pick<LeftVolume, 'volumeId' | 'name' | 'usedBytes'>): LeftVolume {
  return {
    ...volume,
    reason: 'no machine has it, so it goes with none',
    nextAction: `godwit volume move ${volume.name}; or godwit volume destroy ${volume.name}`,
  };
}

function heldUp(name: string, run: RunView): { message: string; nextAction: string } {
  const { asks } = run;
  if (asks)
    return {
      message: `its move ${questionText(asks)} in step ${run.step ?? '?'}`,
      nextAction: `Look whether ${asks.who} runs, or hangs; godwit why ${name}`,
    };
  return {
    message: `its move comes no further in step ${run.step ?? '?'}, and does not say why`,
    nextAction: `godwit why ${name}; godwit runs show ${run.id}`,
  };
}

/** It is there and its volume is whole, and it does not do what it is for. */
function ailment(
  name: string,
  { last, target }: MigrateOutOutput,
): Pick<WireError, 'message' | 'nextAction'> | null {
  if (!last?.unhealthy) return null;
  return {
    message: `it has moved to ${target ?? 'its target'}, and was not healthy there: ${last.unhealthy}`,
    nextAction: `godwit machine logs ${name}; the sealed volume here is the way back: godwit volume recover`,
  };
}

function stateOf(run: RunView | null, obstacle: Obstacle | null, held: boolean): DrainMachine['state'] {
  if (run?.state === 'done') return 'moved';
  if (run?.state === 'failed') return 'failed';
  // It runs at its target, and this worker cannot let its volume go: no more happens by itself.
  if (run !== null && run.endedAtMs === null && (run.output as MigrateOutOutput).disputed) return 'waiting';
  if (run !== null && run.endedAtMs === null && held) return 'waiting';
  if (run !== null && run.endedAtMs === null) return isServing(run) ? 'hydrating' : 'moving';
  return obstacle ? 'waiting' : 'queued';
}

export type DrainRuns = {
  /** Those that have not ended. */
  open: () => RunView[];
  /** Of each machine the newest that began at `sinceMs` or later, and the open ones. */
  newest: (sinceMs: number) => RunView[];
  /** The same, reading in several turns of the event loop. */
  newestInTurns: (sinceMs: number) => Promise<RunView[]>;
  /** The newest of one machine, and how many it had since then. */
  newestOf: (machineId: string, sinceMs: number) => { run: RunView; attempts: number } | null;
};

export type DrainOptions = {
  worker: string;
  database: DatabaseSync;
  clock: Clock;
  logger: Logger;
  limits: DrainLimits;
  machines: () => Promise<LocalMachine[]>;
  /** Volumes of this worker that no machine has, without the copies that moves left behind. */
  volumes: () => Promise<Pick<LeftVolume, 'volumeId' | 'name' | 'usedBytes'>[]>;
  /** Runs of kind `migrate-out`. None of the answers costs more with a longer history. */
  runs: DrainRuns;
  live: (runId: string) => TargetStatus | null;
  /** Rejects, with the reason, when the machine cannot go now: nobody takes it, or it is not movable. */
  precheck: (machineId: string, target: string | null) => Promise<void>;
  start: (machineId: string, target: string | null, options: { rekey: boolean }) => RunView;
  /** The worker has become empty. */
  onEnded: () => void;
};

export class DrainController {
  readonly #options: DrainOptions;
  readonly #obstacles = new Map<string, Obstacle>();
  /** Moves that ended undone and are known for it. */
  readonly #learned = new Set<string>();
  /** What the machines looked like when they were last here: their rows stay after they have gone. */
  readonly #seen = new Map<string, LocalMachine>();
  readonly #pace: MovePace;
  #select: StatementSync | null = null;
  #cancelTimer: (() => void) | null = null;
  #ticking = false;
  #again = false;
  #closed = false;

  constructor(options: DrainOptions) {
    this.#options = options;
    this.#pace = new MovePace(options.limits.heldAfterMs);
    options.database.exec(
      `CREATE TABLE IF NOT EXISTS drain (
         id INTEGER PRIMARY KEY CHECK (id = 1),
         desired INTEGER NOT NULL,
         since_ms INTEGER NOT NULL,
         ended_at_ms INTEGER,
         target TEXT,
         rekey INTEGER NOT NULL DEFAULT 0
       ) STRICT`,
    );
    const columns = options.database.prepare('PRAGMA table_info(drain)').all();
    if (!columns.some(({ name }) => name === 'rekey'))
      options.database.exec('ALTER TABLE drain ADD COLUMN rekey INTEGER NOT NULL DEFAULT 0');
    if (!columns.some(({ name }) => name === 'runs_since_ms'))
      options.database.exec('ALTER TABLE drain ADD COLUMN runs_since_ms INTEGER');
  }

  /** True: take no machines, and send away those that are here. */
  get desired(): boolean {
    return this.#row()?.desired === 1;
  }

  /**
   * Idempotent; only a new target, or what is said about new keys, changes a drain that is on. `rekey` left
   * out: as it was, at first not.
   */
  request(target: string | null, options: { rekey?: boolean } = {}): void {
    const { database, clock } = this.#options;
    const rekey = options.rekey === undefined ? null : Number(options.rekey);
    if (this.desired && !this.#isOver()) {
      database
        .prepare('UPDATE drain SET target = ?, rekey = COALESCE(?, rekey) WHERE id = 1')
        .run(target, rekey);
    } else {
      this.#obstacles.clear();
      this.#learned.clear();
      this.#seen.clear();
      database
        .prepare(
          'INSERT OR REPLACE INTO drain (id, desired, since_ms, ended_at_ms, target, rekey) VALUES (1, 1, ?, NULL, ?, ?)',
        )
        .run(clock.wallMs(), target, rekey ?? 0);
    }
    this.wake();
  }

  /**
   * All have gone, and some were not healthy where they arrived. That was told; who asks again has seen it.
   */
  #isOver(): boolean {
    const row = this.#row();
    if (!row || row.ended_at_ms === null) return false;
    const latest = [...latestOf(this.#options.runs.newest(row.runs_since_ms)).values()];
    return latest.some(
      ({ state, output }) => state === 'done' && (output as MigrateOutOutput).last?.unhealthy,
    );
  }

  /** Stops before the next machine and lets the worker take machines again. Idempotent. */
  withdraw(): void {
    this.#options.database.exec('UPDATE drain SET desired = 0 WHERE id = 1');
    this.#obstacles.clear();
  }

  /** Looks again now: a run ended, a peer came back, a machine was stopped. */
  wake(): void {
    if (this.#closed) return;
    if (this.#ticking) {
      this.#again = true;
      return;
    }
    this.#cancelTimer?.();
    this.#ticking = true;
    void this.#tick()
      .catch((error: unknown) => {
        this.#options.logger.error({ error: toWireError(error) }, 'the drain stumbled; it looks again');
      })
      .finally(() => {
        this.#ticking = false;
        if (this.#closed) return;
        if (this.#again) {
          this.#again = false;
          this.wake();
        } else if (this.desired) {
          this.#cancelTimer = this.#options.clock.timer(TICK_MS, () => this.wake());
        }
      });
  }

  close(): void {
    this.#closed = true;
    this.#cancelTimer?.();
  }

  /** Volumes that no drain takes along, because no machine has them. */
  async leftVolumes(): Promise<LeftVolume[]> {
    return (await this.#options.volumes()).map(leftVolume);
  }

  async status(): Promise<DrainView> {
    const row = this.#row();
    const { worker } = this.#options;
    if (!row) {
      const idle = { desired: false, sinceMs: null, endedAtMs: null, state: 'idle' as const };
      return { worker, ...idle, machines: [], volumes: [] };
    }
    const local = await this.#options.machines();
    const runs = latestOf(await this.#options.runs.newestInTurns(row.runs_since_ms));
    const { limits, live, clock } = this.#options;
    const held = this.#pace.look([...runs.values()], live, clock.monotonicMs());
    const all = new Map<string, LocalMachine>();
    for (const run of runs.values()) {
      const { machineId } = run.input as MigrateOutInput;
      const subject = (run.output as MigrateOutOutput).subject;
      all.set(machineId, {
        machineId,
        name: subject?.machineName ?? this.#seen.get(machineId)?.name ?? machineId,
        volumeBytes: subject?.volume?.lengthBytes ?? 0,
        usedBytes: subject?.volume?.usedBytes ?? 0,
      });
    }
    for (const machine of local) all.set(machine.machineId, machine);
    const machines = [...all.values()].map((machine) => {
      const run = runs.get(machine.machineId) ?? null;
      const here = local.some((candidate) => candidate.machineId === machine.machineId);
      // A machine that went, came back, and is here again counts by its presence, not by its old run.
      const relevant = run?.state === 'done' && here ? null : run;
      return machineView(
        machine,
        relevant,
        relevant ? live(relevant.id) : null,
        this.#obstacles.get(machine.machineId) ?? null,
        relevant !== null && held.has(relevant.id),
      );
    });
    const left = machines.filter((machine) => machine.state !== 'moved');
    // Behind moves that are held up, and take all the room there is, those that wait for their turn wait with
    // them.
    const room = roomForMoves([...runs.values()], limits, held);
    const goesOn = ({ state }: DrainMachine) =>
      state === 'moving' || state === 'hydrating' || (state === 'queued' && room > 0);
    const busy = left.some(goesOn);
    const volumes = row.desired === 1 ? await this.leftVolumes() : [];
    const empty = left.length === 0 && volumes.length === 0;
    const state = row.desired !== 1 ? 'idle' : empty ? 'drained' : busy ? 'draining' : 'waiting';
    return {
      worker,
      desired: row.desired === 1,
      sinceMs: row.since_ms,
      endedAtMs: row.ended_at_ms,
      state,
      machines,
      volumes,
    };
  }

  async #tick(): Promise<void> {
    this.#followClock();
    const row = this.#row();
    if (row?.desired !== 1) return;
    const { clock, logger, limits, live } = this.#options;
    // Runs first: a move that ends in between still counts as busy here, instead of its machine as one that
    // nobody moves.
    const runs = this.#options.runs.open();
    const machines = await this.#options.machines();
    for (const machine of machines) this.#seen.set(machine.machineId, machine);
    for (const { machineId } of machines) this.#learnFromRuns(machineId, row.runs_since_ms);
    for (const machine of nextMoves(
      machines,
      runs,
      this.#obstacles,
      limits,
      clock.monotonicMs(),
      this.#pace.look(runs, live, clock.monotonicMs()),
    )) {
      try {
        await this.#options.precheck(machine.machineId, row.target);
        if (!this.desired) return;
        const run = this.#options.start(machine.machineId, row.target, { rekey: row.rekey === 1 });
        this.#obstacles.delete(machine.machineId);
        logger.info({ machine: machine.name, run: run.id }, 'the drain moves a machine');
      } catch (error) {
        this.#obstacle(machine.machineId, toWireError(error));
        logger.warn({ machine: machine.name, reason: messageOf(error) }, 'a machine cannot go now');
        // The next one may have better luck: look again at once.
        this.#again = true;
      }
    }
    const busy = this.#options.runs.open().length > 0;
    const isEmpty = machines.length === 0 && !busy && (await this.#options.volumes()).length === 0;
    if (isEmpty && row.ended_at_ms === null) {
      this.#options.database.prepare('UPDATE drain SET ended_at_ms = ? WHERE id = 1').run(clock.wallMs());
      logger.info({}, 'drained');
      this.#options.onEnded();
    } else if (!isEmpty && row.ended_at_ms !== null) {
      this.#options.database.exec('UPDATE drain SET ended_at_ms = NULL WHERE id = 1');
    }
  }

  /**
   * A clock that is set back makes runs that seem to be from before the drain: they are of it all the same,
   * with their failures.
   */
  #followClock(): void {
    const row = this.#row();
    const nowMs = this.#options.clock.wallMs();
    if (row === undefined || nowMs >= row.runs_since_ms) return;
    this.#options.database.prepare('UPDATE drain SET runs_since_ms = ? WHERE id = 1').run(nowMs);
  }

  /**
   * A run that ended undone since the last look is an obstacle: it is tried again later, not at once for
   * ever.
   */
  #learnFromRuns(machineId: string, sinceMs: number): void {
    const newest = this.#options.runs.newestOf(machineId, sinceMs);
    if (!newest) return;
    const { run, attempts } = newest;
    if (run.endedAtMs === null || run.state === 'done' || !run.error) return;
    if (this.#obstacles.get(machineId)?.runId === run.id || this.#learned.has(run.id)) return;
    this.#learned.add(run.id);
    const delayMs = retryDelayMs(attempts);
    const { clock } = this.#options;
    // The clock may have been set since: no wait is longer than it was meant to be.
    const leftMs = Math.min(delayMs, run.endedAtMs + delayMs - clock.wallMs());
    if (leftMs <= 0) return;
    this.#obstacles.set(machineId, {
      error: run.error,
      sinceMs: run.endedAtMs,
      attempts,
      retryAtMs: clock.monotonicMs() + leftMs,
      runId: run.id,
    });
  }

  #obstacle(machineId: string, error: WireError): void {
    const nowMs = this.#options.clock.wallMs();
    const known = this.#obstacles.get(machineId);
    const attempts = (known?.attempts ?? 0) + 1;
    this.#obstacles.set(machineId, {
      error,
      sinceMs: known?.error.code === error.code ? known.sinceMs : nowMs,
      attempts,
      retryAtMs: this.#options.clock.monotonicMs() + retryDelayMs(attempts),
      runId: null,
    });
  }

  #row(): DrainRow | undefined {
    // Asked all the time, and made once.
    this.#select ??= this.#options.database.prepare(
      'SELECT desired, since_ms, min(since_ms, COALESCE(runs_since_ms, since_ms)) AS runs_since_ms, ended_at_ms, target, rekey FROM drain WHERE id = 1',
    );
    return this.#select.get() as DrainRow | undefined;
  }
}

type DrainRow = {
  desired: number;
  since_ms: number;
  /**
   * Runs that began at it or later are of this drain: the lowest that the clock has shown since it was asked
   * for.
   */
  runs_since_ms: number;
  ended_at_ms: number | null;
  target: string | null;
  rekey: number;
};

/** By machine. */
function latestOf(runs: readonly RunView[]): Map<string, RunView> {
  return new Map(runs.map((run) => [(run.input as MigrateOutInput).machineId, run]));
}
