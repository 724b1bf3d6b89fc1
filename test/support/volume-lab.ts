import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { abortFuseConnection, type FuseMount, mountFuse, unmountFuse } from '../../src/attach/fuse-mount.ts';
import { VOLUME_SERVER_NODE_FLAGS, VolumeSupervisor } from '../../src/attach/volume-supervisor.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import { attachLoop, detachLoop } from '../../src/host/losetup.ts';
import type {
  Access,
  AttachSpec,
  ExportSpec,
  Grant,
  ImportedSourceSpec,
  KeySource,
  NbdSocketSpec,
  OpeningSpec,
  SourceSpec,
} from '../../src/opening/spec.ts';
import type { HydrationStatus, VolumeServerStatus } from '../../src/opening/status.ts';
import type { VolumeRecord } from '../../src/volume/record.ts';
import { cloneSpec, exportSpec, importSpec, newGrant, ownSpec, sourceSpec } from '../../src/volume/specs.ts';
import { VolumeStore } from '../../src/volume/store.ts';
import './compile-cache.ts';
import { type Ending, leaveFolder } from './failure.ts';
import { mustEndWell, NotYet, until } from './patience.ts';
import { programPath } from './programs.ts';
import { unmount } from './unmount.ts';

const serverPath = programPath('volume/server.ts');

/** What a volume test needs of the kernel. */
export const LAB_NEEDS = ['root', '/dev/fuse', '/dev/loop-control', 'mkfs.ext4', 'losetup'] as const;

/** What a program says; rejects with what it said when it failed, or outlived all patience. */
export function tool(program: string, ...args: string[]): Promise<string> {
  const env = { ...process.env, LC_ALL: 'C', PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` };
  return mustEndWell(program, args, { env });
}

/**
 * Two workers' volume stores on one host and what serves them, as the shims of a move would. All of it goes
 * when the test ends.
 */
export class VolumeLab {
  /** What becomes of writes when the disk is full. */
  whenFull: 'pause' | 'error' = 'pause';
  readonly dir: string;
  readonly validityDir: string;
  readonly #test: Ending | null;
  readonly #cleanups: (() => Promise<unknown>)[] = [];
  readonly #fuseMounts: FuseMount[] = [];

  /** Without a test, the caller closes it. */
  constructor(t?: Ending) {
    this.#test = t ?? null;
    this.dir = mkdtempSync(join(tmpdir(), 'gw-lab-'));
    this.validityDir = mkdtempSync('/dev/shm/gw-lab-');
    t?.after(() => this.close());
  }

  /**
   * Undoes everything in reverse order; goes on when one part fails, and then throws the first error. What
   * does not let go may wait for a volume server that cannot answer any more: everything in the FUSE
   * connections gets an error then, and the part is tried again.
   */
  async close(): Promise<void> {
    const errors: unknown[] = [];
    for (const cleanup of this.#cleanups.splice(0).reverse()) {
      await cleanup().catch(async (error) => {
        errors.push(error);
        for (const fuse of this.#fuseMounts) await abortFuseConnection(fuse.connectionId);
        await cleanup().catch((again) => errors.push(again));
      });
    }
    if (errors.length === 0) leaveFolder(this.#test, this.dir);
    rmSync(this.validityDir, { recursive: true, force: true });
    if (errors.length > 0) throw errors[0];
  }

  onClose(cleanup: () => Promise<unknown>): void {
    this.#cleanups.push(cleanup);
  }

  store(name: string, options: { headerFileBytes?: number } = {}): Promise<VolumeStore> {
    return VolumeStore.open(join(this.dir, name), {
      ...options,
      clock: systemClock,
      random: systemRandom,
      logger: silentLogger,
    });
  }

  scratch(): string {
    return mkdtempSync(join(this.dir, 'scratch-'));
  }

  /** A folder on a small filesystem of its own, to fill up. */
  async smallDisk(sizeBytes: number, name = 'small-disk'): Promise<string> {
    const dir = join(this.dir, name);
    const image = join(this.dir, `${name}.img`);
    mkdirSync(dir);
    writeFileSync(image, '');
    await tool('truncate', '-s', String(sizeBytes), image);
    await tool('mkfs.ext4', '-q', '-F', '-m', '0', image);
    await tool('mount', '-o', 'loop', image, dir);
    this.onClose(() => unmount(dir));
    return dir;
  }

  /** From now on there is no more memory than this for live maps. For a lab that has none yet. */
  async smallMaps(sizeBytes: number): Promise<void> {
    await tool('mount', '-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'tmpfs', this.validityDir);
    this.onClose(() => unmount(this.validityDir));
  }

  /**
   * An XFS of its own for the store of this name: it holds files of any length, where ext4 ends below 16 TiB.
   */
  async xfsDisk(name: string, sizeBytes: number): Promise<string> {
    const dir = join(this.dir, name);
    const image = join(this.dir, `${name}.img`);
    mkdirSync(dir);
    writeFileSync(image, '');
    await tool('truncate', '-s', String(sizeBytes), image);
    await tool('mkfs.xfs', '-q', image);
    await tool('mount', '-o', 'loop', image, dir);
    this.onClose(() => unmount(dir));
    return dir;
  }

  /** Mounts the data file itself, without a server, lets `work` use it, and unmounts. */
  async withDataMounted(store: VolumeStore, id: string, work: (dir: string) => Promise<void>): Promise<void> {
    const dir = mkdtempSync(join(this.dir, 'plain-'));
    await tool('mount', '-o', 'loop', join(store.folder(id), 'data.raw'), dir);
    try {
      await work(dir);
    } finally {
      await unmount(dir);
    }
  }

  /** Starts the export server of a volume, in standby or, for a sealed one, readable. */
  async export(store: VolumeStore, id: string, access: 'standby' | 'readonly'): Promise<Export> {
    const record = await store.get(id);
    const grant = newGrant(record, 'target', systemRandom);
    const spec = exportSpec(record, {
      volumeDir: store.folder(id),
      access,
      listenHost: '127.0.0.1',
      grants: [grant],
    });
    const server = await this.#serve(spec, null, 'export');
    const place = { host: '127.0.0.1', port: (server.spec as ExportSpec).export.listenPort };
    return { server, grant, source: sourceSpec(record, grant, place) };
  }

  /**
   * FUSE mount, volume server, loop device; an NBD socket beside them for an observer, or instead of them for
   * a guest.
   */
  async attach(
    store: VolumeStore,
    record: VolumeRecord,
    options: {
      access: Access;
      source?: SourceSpec | ImportedSourceSpec;
      paused?: boolean;
      volumeDir?: string;
      keys?: KeySource;
      nbd?: NbdSocketSpec['client'];
    },
  ): Promise<Attachment> {
    const volumeDir = options.volumeDir ?? store.folder(record.id);
    const socket = options.nbd && join(mkdtempSync(join(this.dir, 'nbd-')), 's');
    const nbd = options.nbd &&
      socket && { nbd: { path: socket, owner: { uid: 0, gid: 0 }, client: options.nbd } };
    const fuse = options.nbd === 'guest' ? null : await this.#mountFuse();
    const events: [event: string, data: unknown][] = [];
    const opening = {
      ...{ volumeDir, access: options.access, validityDir: this.validityDir },
      hydration: { paused: options.paused ?? false, rateBytesPerSecondMax: 0 },
      ...{ keys: options.keys ?? null, whenFull: this.whenFull },
    };
    const spec = { ...specOf(record, opening, options.source), ...nbd };
    const server = await this.#serve(spec, fuse, 'attach', events);
    const loop = fuse
      ? await attachLoop({ filePath: fuse.filePath, ...(record.encryption && { sectorBytes: 4096 }) })
      : '';
    if (fuse) this.onClose(() => detachLoop(loop, { clock: systemClock }));
    return new Attachment(this, server, { loop, socket: socket ?? '' }, events);
  }

  async #mountFuse(): Promise<FuseMount> {
    const dir = mkdtempSync(join(this.dir, 'fuse-'));
    const fuse = await mountFuse({ dir, name: 'godwit-test' });
    this.#fuseMounts.push(fuse);
    this.onClose(async () => {
      await unmountFuse(fuse, silentLogger);
      this.#fuseMounts.splice(this.#fuseMounts.indexOf(fuse), 1);
    });
    return fuse;
  }

  async #serve(
    spec: OpeningSpec,
    fuse: FuseMount | null,
    name: string,
    events: [string, unknown][] = [],
  ): Promise<VolumeSupervisor> {
    const logPath = join(this.dir, `${name}.log`);
    const server = new VolumeSupervisor({
      command: [process.execPath, ...VOLUME_SERVER_NODE_FLAGS, serverPath],
      spec,
      fuseFd: fuse?.fd ?? null,
      logPath,
      clock: systemClock,
      logger: silentLogger,
      onEvent: (event, data) => events.push([event, data]),
    });
    this.onClose(() => server.stop());
    try {
      await server.start();
    } catch (error) {
      await server.stop();
      throw error;
    }
    return server;
  }
}

function specOf(
  record: VolumeRecord,
  options: Parameters<typeof cloneSpec>[1] extends infer Options ? Omit<Options, 'source'> : never,
  source: SourceSpec | ImportedSourceSpec | undefined,
): AttachSpec {
  if (source === undefined) return ownSpec(record, options);
  return 'location' in source
    ? importSpec(record, { ...options, source })
    : cloneSpec(record, { ...options, source });
}

export type Export = { server: VolumeSupervisor; grant: Grant; source: SourceSpec };

/**
 * A move of a sealed volume as the migration does it: export in standby, target attached in standby, seal,
 * handoff, activation. `fill` writes the source's content into its mounted filesystem; `write` makes a volume
 * without one and writes its data file itself.
 */
export async function moveVolume(
  lab: VolumeLab,
  options: {
    lengthBytes: number;
    paused?: boolean;
    /** Data folder of the target; its own one otherwise. */
    targetDir?: string;
    /** How the target's guest, or somebody beside it, comes in through NBD. */
    nbd?: NbdSocketSpec['client'];
    /** Where the target finds the source instead: something that stands between them. */
    via?: (source: SourceSpec) => Promise<{ host: string; port: number }>;
  } & ({ fill: (dir: string) => Promise<void> } | { write: (dataPath: string) => Promise<void> }),
): Promise<Move> {
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store(options.targetDir ?? 'target');
  const made = await sourceStore.create({
    name: 'data',
    lengthBytes: options.lengthBytes,
    filesystem: 'fill' in options ? 'ext4' : 'none',
  });
  if ('fill' in options) await lab.withDataMounted(sourceStore, made.id, options.fill);
  else await options.write(join(sourceStore.folder(made.id), 'data.raw'));
  const source = await lab.export(sourceStore, made.id, 'standby');
  const place = await options.via?.(source.source);
  const incoming = await targetStore.createIncoming({ ...made, generation: made.generation + 1 });
  const target = await lab.attach(targetStore, incoming, {
    access: 'standby',
    source: { ...source.source, ...place },
    paused: options.paused ?? false,
    ...(options.nbd && { nbd: options.nbd }),
  });
  await sourceStore.apply(made.id, { kind: 'seal', generation: made.generation });
  await source.server.call('activate', { access: 'readonly' });
  await targetStore.apply(made.id, { kind: 'activate', generation: incoming.generation });
  await target.server.call('activate', { access: 'writable' });
  return { id: made.id, sourceStore, targetStore, source, target };
}

export type Move = {
  id: string;
  sourceStore: VolumeStore;
  targetStore: VolumeStore;
  source: Export;
  target: Attachment;
};

/** A volume behind a loop device, or a socket, or both. */
export class Attachment {
  readonly server: VolumeSupervisor;
  /** Empty for a guest that comes through NBD. */
  readonly loop: string;
  /** Path of the NBD socket; empty where there is none. */
  readonly socket: string;
  /** What the servers told, in order. */
  readonly events: readonly [event: string, data: unknown][];
  readonly #lab: VolumeLab;
  #mountDir: string | null = null;

  constructor(
    lab: VolumeLab,
    server: VolumeSupervisor,
    places: { loop: string; socket: string },
    events: [string, unknown][],
  ) {
    this.#lab = lab;
    this.server = server;
    this.loop = places.loop;
    this.socket = places.socket;
    this.events = events;
  }

  async mount(): Promise<string> {
    const dir = mkdtempSync(join(this.#lab.dir, 'mnt-'));
    await tool('mount', this.loop, dir);
    this.#mountDir = dir;
    this.#lab.onClose(() => this.unmount());
    return dir;
  }

  async unmount(): Promise<void> {
    if (this.#mountDir === null) return;
    await unmount(this.#mountDir);
    this.#mountDir = null;
  }

  async status(): Promise<VolumeServerStatus> {
    return (await this.server.call('status')) as VolumeServerStatus;
  }

  async hydration(): Promise<HydrationStatus> {
    const { hydration } = await this.status();
    if (!hydration) throw new Error('this volume is no clone');
    return hydration;
  }

  /** Unmounts and mounts again, so that nothing is read from the filesystem's own cache. */
  async remount(): Promise<string> {
    await this.unmount();
    return this.mount();
  }

  /** Waits until the condition holds for what the server says. */
  until(what: string, condition: (hydration: HydrationStatus) => boolean): Promise<HydrationStatus> {
    return until(what, () => this.hydration(), { is: condition });
  }

  /**
   * A signal that ends the volume server, SIGKILL; resolves when the supervisor has another one that answers.
   */
  killServer(signal?: NodeJS.Signals): Promise<void> {
    return killServer(this.server, signal);
  }
}

/** A signal that ends a volume server; resolves when its supervisor has another one that answers. */
export async function killServer(
  server: VolumeSupervisor,
  signal: NodeJS.Signals = 'SIGKILL',
): Promise<void> {
  const { serverPid, restarts } = server.state;
  if (serverPid !== null) process.kill(serverPid, signal);
  await until('the next volume server', () => {
    const { state } = server;
    return (state.restarts > restarts && state.ready) || new NotYet(state);
  });
}

/** Writes `count` files of random bytes, `fileBytes` each; their digests by name. */
export function writeFiles(
  dir: string,
  prefix: string,
  count: number,
  fileBytes: number,
): Map<string, string> {
  const digests = new Map<string, string>();
  for (let index = 0; index < count; index++) {
    const name = `${prefix}-${index}`;
    const bytes = randomBytes(fileBytes);
    writeFileSync(join(dir, name), bytes);
    digests.set(name, createHash('sha256').update(bytes).digest('hex'));
  }
  return digests;
}

/**
 * Digests of all files of the folder, by name. Read by another process: this one has the supervisor in it,
 * and must never wait for a volume server that it may have to start again.
 */
export async function digestFiles(dir: string): Promise<Map<string, string>> {
  const lines = await tool(
    'find',
    dir,
    '-name',
    'lost+found',
    '-prune',
    '-o',
    '-type',
    'f',
    '-exec',
    'sha256sum',
    '{}',
    '+',
  );
  const digests = new Map<string, string>();
  for (const line of lines.split('\n')) {
    if (line !== '') digests.set(line.slice(66 + dir.length + 1), line.slice(0, 64));
  }
  return digests;
}
