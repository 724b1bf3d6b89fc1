import type { Why } from '../../src/contract/schemas.ts';
import type { RunView } from '../../src/journal/run.ts';
import type { MachineRecord } from '../../src/machine/store.ts';
import type { ConditionCode } from '../../src/worker/condition.ts';
import type { WorkerParts } from '../../src/worker/parts.ts';
import type { Trouble } from './troubles.ts';
import type { World } from './world.ts';

type Condition = Why['conditions'][number];
/** Something that the harness has done to a machine, and that `why` of it has to say. */
type Fact = { codes: readonly ConditionCode[]; isSo: () => boolean };

const LOOK_MS = 4_000;
/** What is younger is nobody's question yet. */
const YOUNG_MS = 20_000;
/** The same is not asked again earlier. */
const AGAIN_MS = 15_000;
/** So long after its end a trouble may still be what something waits for: between two tries are up to 60 s. */
const AFTER_MS = 120_000;
const BRIEFLY_AFTER_MS = 15_000;
/** A run that has said for so long that it goes on, while nothing in it advances, waits for nothing. */
const ADVANCE_MS = 60_000;

const HUNG: readonly Trouble[] = ['server hung', 'shim hung', 'hung'];

/** What a condition cannot be told without; those that are not here may be told at any time. */
const CAUSES: Partial<Record<ConditionCode, { withinMs: number; troubles: readonly Trouble[] | null }>> = {
  // Of a shim or a server that is stopped: what it said last.
  'disk-full': { withinMs: BRIEFLY_AFTER_MS, troubles: ['full', 'full to the last', ...HUNG] },
  'disk-unwritable': { withinMs: BRIEFLY_AFTER_MS, troubles: ['failing'] },
  'shim-silent': { withinMs: BRIEFLY_AFTER_MS, troubles: ['shim hung', 'hung'] },
  'volume-server-silent': { withinMs: BRIEFLY_AFTER_MS, troubles: HUNG },
  'machine-not-started': { withinMs: AFTER_MS, troubles: null },
  'machine-not-stopped': { withinMs: AFTER_MS, troubles: null },
};
/** Nothing in this world is behind these. */
const NEVER: readonly ConditionCode[] = [
  ...(['map-full', 'volume-server-ended', 'machine-failed', 'machine-restarting'] as const),
  ...(['machine-unhealthy', 'drain-volume-left', 'volume-retained', 'run-failed'] as const),
];

/**
 * Asks `why` as an operator does, all the time, and holds the answers against what the harness knows:
 *
 *   1  a machine that runs nowhere has a reason at somebody who has it, unless who has it is away;
 *   2  what was done to a machine, or to the disk below it, is said;
 *   3  a run that does not advance says what it waits for, and that is in trouble, or was of late;
 *   4  what is said is so, or was of late;
 *   5  when all is well nothing is said.
 */
export class WhyChecker {
  readonly #world: World;
  /** Monotonic, of the last time, by what was asked. */
  readonly #askedMs = new Map<string, number>();
  /** Where each open run stands, and since when; where a write waits, and since when. */
  readonly #since = new Map<string, { what: string; sinceMs: number }>();

  constructor(world: World) {
    this.#world = world;
  }

  /** From now on, every few seconds. */
  begin(): void {
    this.#world.simulation.world(LOOK_MS, () => {
      this.#look();
      this.begin();
    });
  }

  /** Resolves when `why` says nothing of anybody any more. */
  async silent(withinMs: number): Promise<void> {
    const world = this.#world;
    let said: string[] | null = null;
    const look = () => {
      if (!world.names.every((name) => world.isUp(name))) {
        world.simulation.world(LOOK_MS, look);
        return;
      }
      const all = world.names.flatMap((name) => {
        const { parts } = world.workers.get(name)!;
        return [name, ...parts!.machines.records().map(({ id }) => id)].map((ref) =>
          world.ask(name, ({ service }) => service.why(ref)),
        );
      });
      void Promise.all(all).then((whys) => {
        said = whys.flatMap(({ subject, conditions }) =>
          conditions.map((each) => `${subject}: ${text(each)}`),
        );
        if (said.length > 0) world.simulation.world(LOOK_MS, look);
      }, world.refused('why'));
    };
    look();
    const { simulation } = world;
    const isSilent = () => said?.length === 0;
    if (!(await simulation.run(isSilent, simulation.nowMs + withinMs)))
      throw simulation.fail(`all is well, and why says\n${(said ?? ['nothing yet']).join('\n')}`);
  }

  #look(): void {
    const world = this.#world;
    for (const { machineId, forMs } of world.checkers.down())
      if (forMs > YOUNG_MS) this.#askOfDown(machineId, forMs);
    for (const name of world.names) {
      const { parts } = world.workers.get(name)!;
      if (parts === null || !world.isUp(name)) continue;
      for (const record of parts.machines.records()) this.#askOfTroubled(name, parts, record);
      for (const run of parts.journal.open({})) this.#askOfStuck(name, run);
    }
  }

  /** Null: it was asked a moment ago. */
  #ask(name: string, ref: string): Promise<Why> | null {
    const world = this.#world;
    const key = `${name} ${ref}`;
    const { nowMs } = world.simulation;
    if (nowMs - (this.#askedMs.get(key) ?? Number.NEGATIVE_INFINITY) < AGAIN_MS) return null;
    this.#askedMs.set(key, nowMs);
    world.simulation.count('questions why');
    return world
      .ask(name, ({ service }) => service.why(ref))
      .then((why) => {
        for (const condition of why.conditions) {
          const wrong = this.#wrong(name, condition);
          if (wrong !== null)
            world.simulation.fail(`why ${ref} at ${name} says ${text(condition)}, and ${wrong}`);
        }
        return why;
      });
  }

  #askOfDown(machineId: string, forMs: number): void {
    const world = this.#world;
    const keepers = world.names.filter((name) => this.#has(name, machineId));
    if (keepers.some((name) => this.#isStopped(name, machineId))) return;
    // Of one whose worker is away `why` says who does not answer.
    const volumeId = keepers.map((name) => this.#record(name, machineId)?.config.volume?.volumeId)[0];
    if (volumeId === undefined) return;
    const owner = world.checkers.ownerOf(volumeId);
    if (!keepers.includes(owner) || world.simulation.troubles.lately(YOUNG_MS, ['off', 'hung'], owner))
      return;
    const answers = keepers.map((name) => this.#ask(name, machineId)).filter((answer) => answer !== null);
    if (answers.length < keepers.length) return;
    void Promise.all(answers).then(
      (whys) => {
        if (whys.some(({ conditions }) => conditions.length > 0)) return;
        const isDown = world.checkers
          .down()
          .some((each) => each.machineId === machineId && each.forMs > forMs);
        if (isDown && keepers.every((name) => this.#has(name, machineId)))
          world.simulation.fail(`${machineId} has been down for ${forMs / 1000} s, and why is silent`);
      },
      world.refused(`why ${machineId}`),
    );
  }

  #record(name: string, machineId: string): MachineRecord | undefined {
    if (!this.#world.isUp(name)) return undefined;
    return this.#world.workers
      .get(name)!
      .parts!.machines.records()
      .find(({ id }) => id === machineId);
  }

  #has(name: string, machineId: string): boolean {
    return this.#record(name, machineId) !== undefined;
  }

  /** By its owner. */
  #isStopped(name: string, machineId: string): boolean {
    return this.#record(name, machineId)?.desired === 'stopped';
  }

  #askOfTroubled(name: string, parts: WorkerParts, record: MachineRecord): void {
    const facts = this.#facts(name, parts, record).filter(({ isSo }) => isSo());
    if (facts.length === 0) return;
    const answer = this.#ask(name, record.id);
    void answer?.then(
      (why) => {
        // It may have gone meanwhile, and then the answer is of its move.
        if (!why.subject.startsWith('machine ') || !this.#has(name, record.id)) return;
        const said = why.conditions.map(({ code }) => code);
        for (const { codes, isSo } of facts)
          if (isSo() && !codes.some((code) => said.includes(code)))
            this.#world.simulation.fail(
              `why ${record.id} at ${name} says ${said}, and not ${codes.join(', or ')}`,
            );
      },
      this.#world.refused(`why ${record.id}`),
    );
  }

  /** What `why` of a machine has to say, as long as it is so. */
  #facts(name: string, parts: WorkerParts, record: MachineRecord): Fact[] {
    const { workers, checkers, simulation } = this.#world;
    const { host } = workers.get(name)!;
    const { troubles } = simulation;
    const folder = parts.machines.runtimeDir(record.id);
    const shim = () => host.shims.get(folder);
    const isFor = (trouble: Trouble, whom: string | undefined, ms: number) =>
      whom !== undefined && (troubles.forMs(trouble, whom) ?? 0) > ms;
    const isWell = () => shim()?.process.isStopped === false && shim()?.isEnding === false;
    const answers = () => isWell() && shim()?.server.isStopped === false;
    const isLost = () => checkers.isLost(record.config.volume?.volumeId ?? '');
    return [
      {
        codes: ['shim-silent'],
        isSo: () => shim()?.process.isStopped === true && isFor('shim hung', shim()?.process.name, 8_000),
      },
      {
        codes: ['volume-server-silent'],
        isSo: () =>
          isWell() &&
          shim()?.server.isStopped === true &&
          shim()?.opening != null &&
          isFor('server hung', shim()?.server.name, 8_000),
      },
      { codes: ['disk-unwritable'], isSo: () => host.disk.fails && isFor('failing', name, 4_000) },
      {
        codes: ['disk-full'],
        isSo: () => answers() && this.#waitsForMs(shim()?.opening?.waiting ?? 0, record.id) > 6_000,
      },
      { codes: ['volume-data-lost'], isSo: () => answers() && isLost() && shim()?.opening?.lost != null },
    ];
  }

  /** Of a machine's writes, for how long some have been waiting for room. */
  #waitsForMs(waiting: number, machineId: string): number {
    return this.#sinceMs(`writes of ${machineId}`, waiting > 0 ? 'wait' : 'go on', waiting === 0);
  }

  /** For how long `what` has been the same. */
  #sinceMs(of: string, what: string, isOver = false): number {
    const { nowMs } = this.#world.simulation;
    const known = this.#since.get(of);
    if (known?.what === what && !isOver) return nowMs - known.sinceMs;
    this.#since.set(of, { what, sinceMs: nowMs });
    return 0;
  }

  #askOfStuck(name: string, run: RunView): void {
    const { id, step, state } = run;
    if (this.#sinceMs(`${name} ${id}`, `${step} ${state}`) < YOUNG_MS) return;
    const world = this.#world;
    void this.#ask(name, id)?.then(
      (why) => {
        if (why.conditions.length > 0 || why.runs.every(({ endedAtMs }) => endedAtMs !== null)) return;
        world.simulation.fail(`run ${id} at ${name} is in ${step}, and why is silent`);
      },
      world.refused(`why ${id}`),
    );
  }

  /** Why it cannot be as said; null: it can. */
  #wrong(name: string, condition: Condition): string | null {
    const { troubles } = this.#world.simulation;
    const code = condition.code as ConditionCode;
    if (NEVER.includes(code)) return 'nothing of that kind was done';
    const cause = CAUSES[code];
    if (cause && !troubles.lately(cause.withinMs, cause.troubles, name)) return 'it is not so';
    if (code === 'disk-full' && /anew fails/.test(condition.message)) return 'its writes wait';
    // What a clock that was set says of ages is nothing to go by; and who was away begins anew.
    if (troubles.lately(600_000, ['clock'], name) || troubles.lately(ADVANCE_MS, ['off', 'hung'], name))
      return null;
    const { boot } = this.#world.workers.get(name)!.host;
    const ageMs = this.#world.simulation.wallMs(boot) - (condition.sinceMs ?? Number.POSITIVE_INFINITY);
    if (code === 'run-goes-on' && ageMs > ADVANCE_MS && condition.whoCanClearIt === 'time: it goes on')
      return condition.message.includes('nothing has advanced') ? 'so it waits for nothing' : null;
    const isWaiting = code === 'run-unanswered' || code === 'run-waits';
    if (!isWaiting || ageMs < ADVANCE_MS) return null;
    const whom = this.#world.names.find((each) => condition.whoCanClearIt.split(/[ ,;]/).includes(each));
    const isExplained = troubles.lately(AFTER_MS, null, name) || troubles.lately(AFTER_MS, null, whom);
    return isExplained ? null : `nothing is the matter with ${whom ?? 'anybody'}, nor with ${name}`;
  }
}

function text({ code, message }: Condition): string {
  return `${code} (${message})`;
}
