import type { Shim } from './host.ts';
import type { Simulation } from './simulation.ts';
import type { Opening } from './volume.ts';
import { BLOCKS } from './volume.ts';

type Volume = {
  /** Newest acknowledged value of each block, and the newest that a flush covered. */
  acknowledged: number[];
  flushed: number[];
  nextValue: number;
  /** Highest generation that was opened for writing, and where. */
  generation: number;
  owner: string;
  writer: Opening | null;
  /** Content of each sealed generation. */
  sealed: Map<number, number[]>;
  /** Its disk lost writes, and nobody has accepted that. */
  isLost: boolean;
};

function loseUnflushed(volume: Volume): void {
  volume.acknowledged = volume.acknowledged.map((value, block) =>
    value === volume.flushed[block] ? value : -Math.abs(value),
  );
}

/**
 * What must always hold (ARCHITECTURE.md, "The move"), held against all that happens, as it happens:
 *
 *   1  a volume is open for writing once at most, and a machine runs once at most;
 *   2  no acknowledged write is lost, but by a power cut, or a disk that fails, those that no flush covered;
 *   3  a read gives the newest write, and nothing of a volume whose disk lost some until that is accepted;
 *   4  a generation that is opened for writing is higher than all before it, or the same at the same worker;
 *   5  a sealed generation stays as it was sealed;
 *   6  a verdict of a move is one, for ever;
 *   7  a machine whose owner was told that it is stopped runs nowhere, until somebody has it started.
 */
export class Checkers {
  readonly #simulation: Simulation;
  readonly #volumes = new Map<string, Volume>();
  readonly #machines = new Map<string, { shim: Shim; host: string }>();
  /** Of machines that run nowhere: since when. */
  readonly #downSinceMs = new Map<string, number>();
  readonly #verdicts = new Map<string, string>();
  /** Machines that their owners were told are stopped; and how often each was asked to be started. */
  readonly #stopped = new Set<string>();
  readonly #starts = new Map<string, number>();
  acknowledgedWrites = 0;
  checkedReads = 0;

  constructor(simulation: Simulation) {
    this.#simulation = simulation;
  }

  #volume(id: string): Volume {
    const known = this.#volumes.get(id) ?? {
      acknowledged: new Array<number>(BLOCKS).fill(0),
      flushed: new Array<number>(BLOCKS).fill(0),
      ...{ nextValue: 1, generation: 0, owner: '', writer: null, sealed: new Map<number, number[]>() },
      isLost: false,
    };
    this.#volumes.set(id, known);
    return known;
  }

  nextValue(volumeId: string): number {
    return this.#volume(volumeId).nextValue++;
  }

  opened(host: string, opening: Opening): void {
    const { volumeId, generation } = opening.spec;
    const volume = this.#volume(volumeId);
    this.#simulation.log(`${host} opens ${volumeId} for writing at ${generation}`);
    if (volume.writer !== null && volume.writer !== opening)
      this.#simulation.fail(`two writers of ${volumeId}: ${volume.owner} and ${host}, at ${generation}`);
    if (generation < volume.generation || (generation === volume.generation && host !== volume.owner))
      this.#simulation.fail(
        `${host} opens ${volumeId} at ${generation}; ${volume.owner} had it at ${volume.generation}`,
      );
    Object.assign(volume, { writer: opening, generation, owner: host });
  }

  closed(opening: Opening): void {
    const volume = this.#volume(opening.spec.volumeId);
    if (volume.writer === opening) volume.writer = null;
  }

  wrote(opening: Opening, block: number, value: number): void {
    const { volumeId } = opening.spec;
    const volume = this.#volume(volumeId);
    if (volume.writer !== opening)
      this.#simulation.fail(`${opening.process.name} writes ${volumeId}, which ${volume.owner} has`);
    volume.acknowledged[block] = value;
    this.acknowledgedWrites += 1;
  }

  flushed(opening: Opening): void {
    if (opening.spec.kind === 'export') return;
    const volume = this.#volume(opening.spec.volumeId);
    // What a power cut has left open is not known by that.
    if (volume.writer === opening)
      volume.flushed = volume.acknowledged.map((value, block) =>
        value < 0 ? volume.flushed[block]! : value,
      );
  }

  /** A power cut: from here on each block there has what was flushed, or something newer. */
  mayHaveLost(host: string): void {
    for (const volume of this.#volumes.values()) {
      if (volume.owner !== host) continue;
      loseUnflushed(volume);
      // It may have been known in memory only.
      volume.isLost = false;
    }
  }

  /** The same of one volume, by its disk. Until somebody has accepted that nothing of it is read. */
  diskLost(volumeId: string): void {
    const volume = this.#volume(volumeId);
    loseUnflushed(volume);
    volume.isLost = true;
  }

  /** Somebody has accepted it; or nobody knows of it any more, and nobody could have written it down. */
  lossIsOver(volumeId: string): void {
    this.#volume(volumeId).isLost = false;
  }

  isLost(volumeId: string): boolean {
    return this.#volume(volumeId).isLost;
  }

  read(opening: Opening, block: number, value: number): void {
    const volume = this.#volume(opening.spec.volumeId);
    const newest = volume.acknowledged[block]!;
    this.checkedReads += 1;
    if (volume.isLost)
      this.#simulation.fail(`${opening.process.name} reads ${opening.spec.volumeId}, whose disk lost writes`);
    if (newest < 0 && value >= volume.flushed[block]! && value <= -newest) volume.acknowledged[block] = value;
    else if (value !== newest)
      this.#simulation.fail(
        `${opening.process.name} reads ${value} in block ${block} of ${opening.spec.volumeId}; ` +
          `${Math.abs(newest)} was acknowledged, ${volume.flushed[block]} flushed`,
      );
  }

  sealed(opening: Opening): void {
    const { volumeId, generation } = opening.spec;
    this.flushed(opening);
    this.#simulation.log(`${volumeId} is sealed at ${generation}`);
  }

  /** What is exported is sealed: it is the newest of all that was acknowledged, and stays so. */
  exported({ spec: { volumeId, generation }, content }: Opening): void {
    const volume = this.#volume(volumeId);
    if (volume.sealed.has(generation)) return;
    volume.sealed.set(generation, [...content.blocks]);
    for (const [block, value] of content.blocks.entries()) {
      const newest = volume.acknowledged[block]!;
      if (newest < 0 && value >= volume.flushed[block]! && value <= -newest)
        volume.acknowledged[block] = value;
      else if (value !== newest)
        this.#simulation.fail(
          `${volumeId} is handed on at ${generation} with ${value} in block ${block}, not ${newest}`,
        );
    }
    volume.flushed = [...volume.acknowledged];
  }

  served({ spec: { volumeId, generation }, content }: Opening, block: number): number {
    const value = content.blocks[block]!;
    const sealed = this.#volume(volumeId).sealed.get(generation)?.[block];
    if (sealed !== value)
      this.#simulation.fail(
        `${volumeId} at ${generation} was sealed with ${sealed} in block ${block}, and has ${value}`,
      );
    return value;
  }

  started(machineId: string, shim: Shim, host: string): void {
    const other = this.#machines.get(machineId);
    this.#simulation.log(`${host} runs ${machineId}`);
    if (other && other.shim !== shim && other.shim.process.alive)
      this.#simulation.fail(`${machineId} runs on ${other.host} and on ${host}`);
    if (this.#stopped.has(machineId))
      this.#simulation.fail(`${machineId} runs on ${host}, and its owner was told that it is stopped`);
    this.#machines.set(machineId, { shim, host });
    this.#downSinceMs.delete(machineId);
  }

  /** How often somebody has asked for its start. */
  startsOf(machineId: string): number {
    return this.#starts.get(machineId) ?? 0;
  }

  /** Its owner was told that it is stopped, and asked for that after the start number `starts`. */
  ownerStopped(machineId: string, starts: number): void {
    if (this.startsOf(machineId) > starts) return;
    this.#stopped.add(machineId);
    const host = this.runsOn(machineId);
    if (host !== null) this.#simulation.fail(`${machineId} is said to be stopped, and runs on ${host}`);
  }

  /** Somebody asks for it now. */
  ownerStarts(machineId: string): void {
    this.#stopped.delete(machineId);
    this.#starts.set(machineId, this.startsOf(machineId) + 1);
  }

  ended(machineId: string, shim: Shim): void {
    if (this.#machines.get(machineId)?.shim !== shim) return;
    this.#machines.delete(machineId);
    this.#downSinceMs.set(machineId, this.#simulation.nowMs);
  }

  /** Machines that have run once and run nowhere now, and for how long. */
  down(): { machineId: string; forMs: number }[] {
    const { nowMs } = this.#simulation;
    return [...this.#downSinceMs].map(([machineId, sinceMs]) => ({ machineId, forMs: nowMs - sinceMs }));
  }

  /** Where it was opened for writing last. */
  ownerOf(volumeId: string): string {
    return this.#volume(volumeId).owner;
  }

  /** The shim that it runs in. */
  shimOf(machineId: string): Shim | null {
    return this.#machines.get(machineId)?.shim ?? null;
  }

  runsOn(machineId: string): string | null {
    return this.#machines.get(machineId)?.host ?? null;
  }

  verdict(worker: string, moveId: string, verdict: string): void {
    const key = `${worker} ${moveId}`;
    const known = this.#verdicts.get(key);
    if (known === undefined) this.#simulation.log(`${worker} decides ${moveId}: ${verdict}`);
    else if (known !== verdict)
      this.#simulation.fail(`${worker} said ${known} of ${moveId}, and now ${verdict}`);
    this.#verdicts.set(key, verdict);
  }
}
