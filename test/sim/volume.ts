import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GodwitError, isGodwitError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { NO_GUEST } from '../../src/opening/guest.ts';
import type { OperationArgs, VolumeOperation } from '../../src/opening/operations.ts';
import type { Access, Leaving, OpeningSpec } from '../../src/opening/spec.ts';
import { RootHash } from '../../src/receipt/root.ts';
import { DataGuard } from '../../src/volume/data-guard.ts';
import type { DataLock } from '../../src/volume/data-lock.ts';
import { DiskRoom } from '../../src/volume/disk-room.ts';
import { passFence } from '../../src/volume/fence.ts';
import { VOLUME_FILES } from '../../src/volume/files.ts';
import { TOTAL_BYTES } from './disk.ts';
import type { Host } from './host.ts';
import { type Process, running } from './simulation.ts';

/** Blocks of a volume that anything is written to. All others are holes, everywhere and always. */
export const BLOCKS = 12;
const BLOCK_BYTES = 4096;

type Fetched = { block: number; value: number };

/** What a disk has of a volume: a number in each block; 0: nothing was written there. By inode of `data.raw`. */
export class Content {
  readonly blocks = new Array<number>(BLOCKS).fill(0);
  /** Of a clone: what is here. Null: all. */
  present: boolean[] | null = null;
  /** It was a clone and is none any more, whether or not its worker has written that down. */
  isWhole = false;
  written = new Array<boolean>(BLOCKS).fill(false);
  fetched: Fetched[] = [];
  /** Of a clone, in its live map: what its guard knows, whichever server it is of (volume/data-guard.ts). */
  readonly unflushed = new Uint32Array(2);
  #durable = this.#copy();

  #copy() {
    const { blocks, present, written, fetched } = this;
    return {
      blocks: [...blocks],
      present: present && [...present],
      written: [...written],
      fetched: [...fetched],
    };
  }

  flush(): void {
    this.#durable = this.#copy();
  }

  /** Of what the guest wrote. What was fetched comes again. */
  get isFlushed(): boolean {
    const isFetched = (block: number) => this.present !== null && !this.written[block];
    return this.blocks.every((value, block) => value === this.#durable.blocks[block] || isFetched(block));
  }

  /** What no flush has made durable may be there and may not, block by block. */
  cut(survives: () => boolean): void {
    const { blocks, present, written, fetched } = this.#durable;
    for (let block = 0; block < BLOCKS; block++) {
      const stays = survives();
      if (!stays) this.blocks[block] = blocks[block]!;
      // A bit is written after its data: it is never there without them.
      if (this.present && present && !present[block]) {
        this.present[block] = false;
        this.written[block] = written[block]!;
      }
    }
    this.present &&= present;
    this.fetched = [...fetched];
    this.flush();
  }
}

/** Of the writes, those of what the file has no room for yet. */
const GROWS = 0.4;
/** Before a block that the disk did not take is fetched again. */
const FETCH_AGAIN_MS = 1_000;

/**
 * One opening of a volume: what a volume server does, without the bytes. What waits for room and what counts
 * as lost are the product's own words.
 */
export class Opening {
  readonly spec: OpeningSpec;
  readonly port: number | null;
  access: Access;
  readonly content: Content;
  /** Of its volume server. */
  readonly process: Process;
  readonly #host: Host;
  readonly #room: DiskRoom;
  /** Blocks whose write, which is under way, needs room. */
  readonly #growing = new Set<number>();
  /** An export is read, and loses nothing. */
  readonly #guard: DataGuard | null;
  #lock: DataLock | null = null;
  #sealed = false;
  #hydrates = false;
  #wireBlocks = 0;
  #sourceLostSinceMs: number | null = null;

  constructor(host: Host, process: Process, spec: OpeningSpec) {
    this.#host = host;
    this.process = process;
    this.spec = spec;
    this.access = 'standby';
    this.content = host.content(join(spec.volumeDir, 'data.raw'));
    if (spec.kind === 'clone' && this.content.present === null && !this.content.isWhole)
      this.content.present = new Array<boolean>(BLOCKS).fill(false);
    this.port = spec.kind === 'export' ? host.world.exportPort(spec.export.listenPort) : null;
    const clock = host.world.simulation.clockOf(process);
    this.#room = new DiskRoom({
      look: async () => ({ totalBytes: TOTAL_BYTES, availableBytes: host.disk.availableBytes }),
      extents: async (offsetBytes, lengthBytes) => {
        const isThere = !this.#growing.has(offsetBytes / BLOCK_BYTES);
        return [{ kind: isThere ? 'data' : 'hole', offsetBytes, lengthBytes }];
      },
      whenFull: 'pause',
      clock,
    });
    const { volumeDir, volumeId, generation } = spec;
    const guarded = { volumeDir, volumeId, generation, clock, logger: silentLogger };
    this.#guard = spec.kind === 'export' ? null : new DataGuard(guarded);
    this.#guard?.onLost(() => host.world.onDataLost(spec.volumeId));
    if (spec.kind === 'clone' && !this.content.isWhole) this.#guard?.share(this.content.unflushed);
    if (spec.kind === 'clone' && !spec.clone.hydration.paused) this.#hydrate();
  }

  async open(): Promise<void> {
    if (this.spec.access !== 'standby') await this.activate(this.spec.access);
    if (this.port !== null) this.#host.world.exports.set(this.port, this);
  }

  async activate(access: Access): Promise<void> {
    const { world } = this.#host;
    if (this.access === access) return;
    const clock = world.simulation.clockOf(this.process);
    this.#lock = await passFence(this.spec, access === 'writable' ? 'write' : 'export', clock);
    this.access = access;
    if (access === 'writable') world.checkers.opened(this.#host.name, this);
    else world.checkers.exported(this);
  }

  /** Its process has ended, or it is closed in good order. */
  close(): void {
    this.#room.close({ refuse: false });
    const { volumeDir, volumeId } = this.spec;
    // Its shim was killed with all that it knew, while the disk refused to have it; a clone has its live map.
    const hasMap = this.spec.kind === 'clone' && !this.content.isWhole;
    if (!hasMap && this.lost && !existsSync(join(volumeDir, VOLUME_FILES.dataLoss)))
      this.#host.world.checkers.lossIsOver(volumeId);
    this.#lock?.release();
    this.#lock = null;
    this.#host.world.checkers.closed(this);
    if (this.port !== null && this.#host.world.exports.get(this.port) === this)
      this.#host.world.exports.delete(this.port);
    this.access = 'standby';
  }

  /** Its server ends in good order, and whoever ends it has written down what is `lost`. */
  rest(): void {
    this.#guard?.rest();
  }

  /** Writes of the guest that wait for room. */
  get waiting(): number {
    return this.#room.shortage()?.waiting ?? 0;
  }

  /** Why it refuses everything; null: it does not. */
  get lost(): { atMs: number; reason: string } | null {
    const lost = this.#guard?.lost;
    return lost ? { atMs: lost.atMs, reason: lost.reason } : null;
  }

  get writes(): boolean {
    return this.access === 'writable' && !this.#sealed;
  }

  /**
   * Waits for room. False: it was not written, since the volume was sealed meanwhile, or the machine
   * `isGone`. Rejects as the guard does.
   */
  async write(block: number, value: number, isGone: () => boolean): Promise<boolean> {
    const { disk, world } = this.#host;
    // Where there is plenty it would be looked at, and let in.
    const isShort = !disk.isPlentiful || this.#room.shortage() !== null;
    const grows = isShort && world.simulation.chance(GROWS);
    if (grows && world.bugs.droppedWhenFull) {
      world.checkers.wrote(this, block, value);
      return true;
    }
    if (grows) this.#growing.add(block);
    if (isShort) await this.#room.admit(block * BLOCK_BYTES, BLOCK_BYTES);
    try {
      // Others were quicker.
      while (grows && disk.availableBytes === 0 && this.writes && !isGone()) await this.#room.refused();
      if (!this.writes || isGone()) return false;
      if (!world.bugs.lossIgnored) this.#guard?.check();
      this.#guard?.noteWrite();
      this.content.blocks[block] = value;
      this.content.written[block] = true;
      if (this.content.present) this.content.present[block] = true;
      world.checkers.wrote(this, block, value);
      return true;
    } finally {
      this.#growing.delete(block);
      if (isShort) this.#room.done(BLOCK_BYTES);
    }
  }

  /** Rejects where the disk loses what was written, and from then on. */
  async flush(): Promise<void> {
    if (this.#guard === null) return;
    const flush = async () => {
      try {
        this.#host.disk.syncData();
      } catch (error) {
        if (!this.content.isFlushed) this.#loseWritten();
        throw error;
      }
      this.content.flush();
      this.#host.world.checkers.flushed(this);
    };
    if (this.#host.world.bugs.lossIgnored) await flush();
    else await this.#guard.flush(flush);
  }

  /** What waited to be written is clean to the kernel, and goes from its cache sooner or later. */
  #loseWritten(): void {
    const { simulation, checkers } = this.#host.world;
    simulation.count('volumes that lost writes');
    simulation.log(`the disk of ${this.#host.name} loses writes of ${this.spec.volumeId}`);
    checkers.diskLost(this.spec.volumeId);
    this.content.cut(() => simulation.chance(0.5));
  }

  /** As the guest gets it. Waits for the source. Rejects as the guard does. */
  async read(block: number): Promise<number> {
    const check = () => this.#host.world.bugs.lossIgnored || this.#guard?.check();
    check();
    const passed = await this.#fetch(block);
    check();
    return passed ?? this.content.blocks[block]!;
  }

  /** Null: it is here. Else what it is at the source, which the disk here does not take. */
  async #fetch(block: number): Promise<number | null> {
    const { world, name } = this.#host;
    if (this.spec.kind !== 'clone') return null;
    const { source } = this.spec.clone;
    while (this.content.present?.[block] === false) {
      await world.network.travel(name, source.host);
      const served = world.exports.get(source.port);
      if (served?.access !== 'readonly' || !served.process.alive || served.process.isStopped) {
        this.#sourceLostSinceMs ??= world.simulation.nowMs;
        await world.simulation.pause(500);
        continue;
      }
      const value = served.serve(source, block);
      await world.network.travel(source.host, name);
      this.#sourceLostSinceMs = null;
      // A write of the guest was quicker, or another fetch.
      if (this.content.present?.[block] !== false) return null;
      this.#wireBlocks += 1;
      if (!(await this.#isTaken())) return value;
      if (this.content.present?.[block] !== false) return null;
      this.content.blocks[block] = value;
      this.content.present[block] = true;
      this.content.fetched.push({ block, value });
    }
    return null;
  }

  /** Whether a fetched block may be written here. */
  async #isTaken(): Promise<boolean> {
    const { disk } = this.#host;
    if (disk.failsData || this.lost) return false;
    if (disk.isPlentiful) return true;
    try {
      await this.#room.admitFetched(BLOCK_BYTES);
      return true;
    } catch (error) {
      if (isGodwitError(error, 'BLOCK_NO_SPACE')) return false;
      throw error;
    }
  }

  /** One block of the sealed volume, for who has the grant. */
  serve(source: { chapSecret: string; initiatorIqn: string }, block: number): number {
    const grants = this.spec.kind === 'export' ? this.spec.export.grants : [];
    const grant = grants.find(({ initiatorIqn }) => initiatorIqn === source.initiatorIqn);
    if (grant?.chapSecret !== source.chapSecret)
      this.#host.world.simulation.fail(`${this.spec.volumeId} is read without its grant`);
    return this.#host.world.checkers.served(this, block);
  }

  #hydrate(): void {
    if (this.#hydrates) return;
    this.#hydrates = true;
    running.run(this.process, async () => {
      for (let block = 0; block < BLOCKS; block++) {
        await this.#host.world.simulation.pause(this.#host.world.simulation.between(1, 60));
        while ((await this.#fetch(block)) !== null) await this.#host.world.simulation.pause(FETCH_AGAIN_MS);
      }
    });
  }

  async command<Op extends VolumeOperation>(op: Op, args: OperationArgs<Op>): Promise<unknown> {
    switch (op) {
      case 'status':
        return this.status();
      case 'activate':
        return this.activate((args as OperationArgs<'activate'>).access).then(() => ({}));
      case 'flush':
        await this.flush();
        return {};
      case 'seal':
        if (!this.#host.world.bugs.sealIgnored) this.#sealed = true;
        await this.flush();
        this.#host.world.checkers.sealed(this);
        this.#lock?.release();
        this.#lock = null;
        if (this.#sealed) this.#host.world.checkers.closed(this);
        return {};
      case 'heat':
        return { regions: [] };
      case 'warm':
      case 'prime-free-map':
        return {};
      case 'room':
        await this.#room.leave(leavingOf(args as OperationArgs<'room'>));
        return {};
      case 'hydration':
        if (!(args as OperationArgs<'hydration'>).paused) this.#hydrate();
        return {};
      case 'finish':
        this.#checkComplete();
        await this.flush();
        this.#guard?.unshare();
        this.content.unflushed.fill(0);
        this.content.present = null;
        this.content.isWhole = true;
        this.content.flush();
        return {};
      case 'fetched':
        this.#checkComplete();
        return this.#fetchedPage((args as OperationArgs<'fetched'>).cursor);
      case 'unfetched':
        return { ranges: [], next: null };
      case 'figures':
        this.#checkComplete();
        return this.#figures((args as OperationArgs<'figures'>).freeMapDigest);
      case 'digests':
        return {
          digests: (args as OperationArgs<'digests'>).ranges.map(({ first }) =>
            digestOf(this.content.blocks[first] ?? 0),
          ),
        };
      case 'owed':
        return { ranges: [], next: null };
      default:
        throw new GodwitError('VOLUME_UNKNOWN_OP', `the simulated volume server has no ${op}`, {
          nextAction: 'Teach it.',
        });
    }
  }

  #checkComplete(): void {
    if (!this.content.present?.includes(false)) return;
    throw new GodwitError('CLONE_NOT_COMPLETE', 'some blocks are still only at the source', {
      nextAction: 'Wait until hydration is complete; resume it if it is paused.',
    });
  }

  status() {
    const { kind, volumeId, generation, lengthBytes } = this.spec;
    const { present } = this.content;
    const missing = present?.filter((is) => !is).length ?? 0;
    const blocksTotal = lengthBytes / BLOCK_BYTES;
    const noRoom = this.#room.shortage();
    const { lost } = this;
    const hydration = kind === 'clone' && {
      state:
        missing === 0
          ? 'complete'
          : this.#sourceLostSinceMs !== null
            ? 'source-lost'
            : this.#hydrates
              ? 'running'
              : 'paused',
      blocksTotal,
      blocksPresent: blocksTotal - missing,
      exposedBytes: missing * BLOCK_BYTES,
      wireBytes: this.#wireBlocks * BLOCK_BYTES,
      blocksFetchedTwice: 0,
      missesKept: true,
      transport: 'tcp',
      bytesPerSecond: 0,
      etaMs: null,
      lastError: null,
      sourceLostForMs: null,
    };
    return {
      ...{
        role: kind === 'export' ? 'export' : 'attach',
        volumeId,
        generation,
        access: this.access,
        residentBytes: 0,
        guest: NO_GUEST,
      },
      ...(hydration && { hydration }),
      ...(noRoom && { noRoom }),
      ...(lost && { dataLoss: lost }),
    };
  }

  #fetchedPage(cursor: number) {
    const ranges = this.content.fetched.slice(cursor).map(({ block, value }, index) => ({
      ...{ position: cursor + index, first: block, blocks: 1, digest: digestOf(value) },
      stored: this.content.written[block] ? ('written' as const) : ('same' as const),
    }));
    return { ranges, next: this.content.fetched.length, ended: true };
  }

  #figures(freeMapDigest: string | null) {
    const root = new RootHash(
      this.spec.lengthBytes,
      freeMapDigest ? Buffer.from(freeMapDigest, 'hex') : null,
    );
    const { fetched } = this.content;
    for (const { block, value } of fetched)
      root.add({ first: block, blocks: 1, digest: Buffer.from(digestOf(value), 'hex') });
    const bytes = fetched.length * BLOCK_BYTES;
    const distinct = new Set(fetched.map(({ block }) => block)).size * BLOCK_BYTES;
    return {
      ...{ root: root.hex(), ranges: fetched.length, comparedBytes: bytes, fetchedBytes: distinct },
      ...(bytes > distinct && { refetchedBytes: bytes - distinct }),
    };
  }
}

function leavingOf({ leaving, stopped }: OperationArgs<'room'>): Leaving {
  if (!leaving) return 'no';
  return stopped === false ? 'running' : 'stopped';
}

const digests = new Map<number, string>();
function digestOf(value: number): string {
  const known = digests.get(value) ?? createHash('sha256').update(`${value}`).digest('hex');
  digests.set(value, known);
  return known;
}
