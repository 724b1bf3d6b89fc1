import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { GodwitError } from '../../src/base/errors.ts';
import { NO_GUEST } from '../../src/opening/guest.ts';
import type { OperationArgs, VolumeOperation } from '../../src/opening/operations.ts';
import type { Access, OpeningSpec } from '../../src/opening/spec.ts';
import { RootHash } from '../../src/receipt/root.ts';
import type { DataLock } from '../../src/volume/data-lock.ts';
import { passFence } from '../../src/volume/fence.ts';
import type { Host, Shim } from './host.ts';
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

/** One opening of a volume: what a volume server does, without the bytes. */
export class Opening {
  readonly spec: OpeningSpec;
  readonly port: number | null;
  access: Access;
  readonly content: Content;
  readonly #host: Host;
  readonly #shim: Shim;
  #lock: DataLock | null = null;
  #sealed = false;
  #hydrates = false;
  #wireBlocks = 0;
  #sourceLostSinceMs: number | null = null;

  constructor(host: Host, shim: Shim, spec: OpeningSpec) {
    this.#host = host;
    this.#shim = shim;
    this.spec = spec;
    this.access = 'standby';
    this.content = host.content(join(spec.volumeDir, 'data.raw'));
    if (spec.kind === 'clone' && this.content.present === null && !this.content.isWhole)
      this.content.present = new Array<boolean>(BLOCKS).fill(false);
    this.port = spec.kind === 'export' ? host.world.exportPort(spec.export.listenPort) : null;
    if (spec.kind === 'clone' && !spec.clone.hydration.paused) this.#hydrate();
  }

  get process(): Process {
    return this.#shim.process;
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
    this.#lock?.release();
    this.#lock = null;
    this.#host.world.checkers.closed(this);
    if (this.port !== null && this.#host.world.exports.get(this.port) === this)
      this.#host.world.exports.delete(this.port);
    this.access = 'standby';
  }

  get writes(): boolean {
    return this.access === 'writable' && !this.#sealed;
  }

  write(block: number, value: number): void {
    this.content.blocks[block] = value;
    this.content.written[block] = true;
    if (this.content.present) this.content.present[block] = true;
    this.#host.world.checkers.wrote(this, block, value);
  }

  flush(): void {
    this.content.flush();
    this.#host.world.checkers.flushed(this);
  }

  /** As the guest gets it. Waits for the source. */
  async read(block: number): Promise<number> {
    await this.#fetch(block);
    return this.content.blocks[block]!;
  }

  async #fetch(block: number): Promise<void> {
    const { world, name } = this.#host;
    if (this.spec.kind !== 'clone') return;
    const { source } = this.spec.clone;
    while (this.content.present?.[block] === false) {
      await world.network.travel(name, source.host);
      const served = world.exports.get(source.port);
      if (served?.access !== 'readonly' || !served.process.alive) {
        this.#sourceLostSinceMs ??= world.simulation.nowMs;
        await world.simulation.pause(500);
        continue;
      }
      const value = served.serve(source, block);
      await world.network.travel(source.host, name);
      // A write of the guest was quicker, or another fetch.
      if (this.content.present?.[block] !== false) return;
      this.#sourceLostSinceMs = null;
      this.#wireBlocks += 1;
      this.content.blocks[block] = value;
      this.content.present[block] = true;
      this.content.fetched.push({ block, value });
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
        await this.#fetch(block);
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
        this.flush();
        return {};
      case 'seal':
        if (!this.#host.world.bugs.sealIgnored) this.#sealed = true;
        this.flush();
        this.#host.world.checkers.sealed(this);
        this.#lock?.release();
        this.#lock = null;
        if (this.#sealed) this.#host.world.checkers.closed(this);
        return {};
      case 'heat':
        return { regions: [] };
      case 'warm':
      case 'room':
      case 'prime-free-map':
        return {};
      case 'hydration':
        if (!(args as OperationArgs<'hydration'>).paused) this.#hydrate();
        return {};
      case 'finish':
        this.#checkComplete();
        this.flush();
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

const digests = new Map<number, string>();
function digestOf(value: number): string {
  const known = digests.get(value) ?? createHash('sha256').update(`${value}`).digest('hex');
  digests.set(value, known);
  return known;
}
