import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import { operationOf, performLine } from '../base/line-conversation.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE, PAUSE } from '../base/patience.ts';
import { mountAt } from '../host/mount-table.ts';
import { identifyProcess } from '../host/process-identity.ts';
import { withKind } from '../opening/earlier-spec.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import type { Entrance } from './exec-session.ts';
import { Filesystem } from './filesystem.ts';
import { SHIM, SHIM_FILES, type ShimAnswers, type ShimOps, type ShimStatus } from './protocol.ts';
import { type ShimState, writeShimState } from './state.ts';
import { type MakeBackend, VolumeHolder } from './volume-holder.ts';

/** What a shim runs beside its volume; how each of these ends and rejects stands in machine/workload.ts. */
export interface HeldWorkload {
  readonly status: ShimStatus['workload'];
  /** Control groups that all its processes are in. */
  readonly cgroup: { readonly folders: readonly string[] };
  /** As the host counts; null: it does not run. */
  readonly initPid: number | null;
  prepare(subject: ShimOps['workload.prepare']['args']): Promise<void>;
  start(subject: ShimOps['workload.start']['args']): Promise<ShimOps['workload.start']['result']>;
  stop(how?: ShimOps['workload.stop']['args']): Promise<ShimOps['workload.stop']['result']>;
  exec(command: readonly string[], timeoutMs: number): Promise<ShimOps['workload.exec']['result']>;
  enter(command: readonly string[], terminal: { term: string } | null): Entrance;
  awaitHealthy(timeoutMs: number): Promise<ShimOps['workload.awaitHealthy']['result']>;
  /** After the stop: nothing of it is left, on this host and in this process. */
  close(): Promise<void>;
}

export type ShimServiceOptions = {
  runtimeDir: string;
  workload: HeldWorkload;
  makeBackend: MakeBackend;
  clock: Clock;
  logger: Logger;
  /** To every connection. */
  emit: (event: string, data: unknown) => void;
  /** The last word: everything is released, the process may go. */
  onShutdown: () => void;
};

/** For an unmount that writes what is dirty; one that waits for a source takes longer. */
const GIVE_UP_AFTER_MS = PATIENCE.giveUpSource.ms;

/** The operations of a shim, without its process and its socket. */
export class ShimService {
  readonly #options: ShimServiceOptions;
  readonly #filesystem: Filesystem;
  readonly #startedAtMs: number;
  readonly #volume: VolumeHolder;
  /** Operations that change the volume or its filesystem, one after the other. */
  #lastVolumeOp: Promise<unknown> = Promise.resolve();
  #shutdown: Promise<void> | undefined;
  readonly #sourceGivenUp = Promise.withResolvers<void>();
  #stateText = '';
  #lastWrite: Promise<void> = Promise.resolve();
  #cancelRewrite = () => {};

  constructor(options: ShimServiceOptions) {
    this.#options = options;
    this.#filesystem = new Filesystem(join(options.runtimeDir, SHIM_FILES.filesystem), options.clock);
    this.#startedAtMs = options.clock.wallMs();
    this.#volume = new VolumeHolder(options.makeBackend, {
      onChange: () => this.changed(),
      onEvent: (event, data) => options.emit('volume', { event, data }),
    });
  }

  readonly #answers: ShimAnswers = {
    status: async () => this.status(),
    'volume.open': (args) =>
      this.#volumeOp(async () => {
        // Of a worker of any version; the volume server checks it.
        const spec = withKind(args.spec) as OpeningSpec;
        return this.#volume.open(spec);
      }),
    // Not in the queue: a status or a pause must get through while a mount waits for the source.
    'volume.command': async ({ op, args, timeoutMs }) => {
      return (await this.#volume.ask(op, args, timeoutMs)) ?? {};
    },
    'volume.close': () =>
      this.#volumeOp(async () => {
        if (this.#filesystem.mounted) {
          throw new GodwitError('MACHINE_FS_MOUNTED', 'the filesystem of the volume is still mounted', {
            nextAction: 'Stop the machine and unmount the filesystem before its volume is closed.',
          });
        }
        await this.#volume.close();
        return {};
      }),
    'fs.mount': ({ filesystem }) =>
      this.#volumeOp(async () => {
        const device = this.#volume.status()?.loopDevice;
        if (!device) throw noVolume();
        await this.#filesystem.mount(device, filesystem);
        return {};
      }),
    'fs.sync': async () => {
      await this.#filesystem.sync();
      return {};
    },
    'fs.unmount': () =>
      this.#volumeOp(async () => {
        await this.#filesystem.unmount();
        return {};
      }),
    'workload.prepare': async (args) => {
      if (args.config.volume?.mountPath !== undefined)
        await this.#volumeOp(() => this.#filesystem.makePlace());
      await this.#options.workload.prepare(args);
      return {};
    },
    'workload.start': async (args) => {
      const { volume } = args.config;
      if (volume?.mountPath !== undefined && !this.#filesystem.mounted) {
        throw new GodwitError('MACHINE_FS_NOT_MOUNTED', 'the machine has a volume that is not mounted', {
          values: { machineId: args.machineId },
          nextAction: 'Open the volume and mount its filesystem first.',
        });
      }
      if (volume !== undefined && volume.mountPath === undefined && !this.#volume.status()) throw noVolume();
      if (volume?.mountPath !== undefined && this.#options.workload.initPid === null)
        await this.#volumeOp(() => this.#filesystem.renew());
      return this.#options.workload.start(args);
    },
    'workload.stop': (args) => this.#options.workload.stop(args),
    'workload.exec': ({ command, timeoutMs }) => this.#options.workload.exec(command, timeoutMs),
    'workload.enter': async ({ command, terminal }) => this.#options.workload.enter(command, terminal),
    'workload.awaitHealthy': ({ timeoutMs }) => this.#options.workload.awaitHealthy(timeoutMs),
    shutdown: async (options) => {
      await this.shutdown(options);
      return {};
    },
  };

  /** Answers one operation. Rejects as `performLine` does, and `MACHINE_SHIM_ENDING`. */
  async handle(op: string, args: unknown): Promise<unknown> {
    if (operationOf(SHIM, op).whileEnding !== true && this.#shutdown !== undefined) {
      throw new GodwitError('MACHINE_SHIM_ENDING', 'this shim is shutting down', {
        values: { op },
        nextAction: 'Start another one.',
      });
    }
    return performLine(SHIM, this.#answers, op, args);
  }

  status(): ShimStatus {
    const volume = this.#volume.status() ?? null;
    return {
      shimPid: process.pid,
      startedAtMs: this.#startedAtMs,
      volume: volume === null ? null : { ...volume, mounted: this.#filesystem.mounted },
      workload: this.#options.workload.status,
    };
  }

  /** Something that `status` or `shim.json` shows has changed. */
  changed(): void {
    this.#options.emit('workload', this.#options.workload.status);
    void this.writeState().catch((error: unknown) => {
      this.#options.logger.error({ reason: messageOf(error) }, 'shim.json was not written');
    });
  }

  /** Brings `shim.json` up to date; writes only what differs. */
  async writeState(): Promise<void> {
    const state = this.#state();
    const text = JSON.stringify(state);
    if (text === this.#stateText) return this.#lastWrite;
    this.#stateText = text;
    const write = () => writeShimState(this.#options.runtimeDir, state);
    const written = this.#lastWrite.then(write, write);
    this.#lastWrite = written;
    written.catch(() => this.#writeStateLater(text));
    return written;
  }

  /** As `writeState`, where the file is not what was written any more. */
  rewriteState(): Promise<void> {
    this.#stateText = '';
    return this.writeState();
  }

  /** A folder that was full, or read-only: who comes after this shim needs what holds then. */
  #writeStateLater(text: string): void {
    if (this.#stateText !== text) return;
    this.#stateText = '';
    // One try to come, however many changes were refused.
    this.#cancelRewrite();
    this.#cancelRewrite = this.#options.clock.timer(PAUSE.shimStateAgain.ms, () => {
      this.writeState().catch(() => {});
    });
  }

  /**
   * Stop, unmount, close, in this order. Rejects with the first thing that did not go; may be asked again
   * then.
   */
  shutdown({ giveUpSource = false }: ShimOps['shutdown']['args'] = {}): Promise<void> {
    if (giveUpSource) this.#sourceGivenUp.resolve();
    this.#shutdown ??= this.#release().catch((error: unknown) => {
      this.#shutdown = undefined;
      throw error;
    });
    return this.#shutdown;
  }

  async #release(): Promise<void> {
    await this.#options.workload.stop();
    await this.#options.workload.close();
    const released = this.#volumeOp(async () => {
      await this.#filesystem.unmount();
      await this.#filesystem.removePlace();
      await this.#volume.close();
    });
    this.#pressOn(released);
    await released;
    // A write of shim.json that is under way would bring the file back after it was removed.
    await this.#lastVolumeOp;
    await this.#lastWrite.catch(() => {});
    this.#cancelRewrite();
    this.#options.onShutdown();
  }

  /**
   * The machine is dead, so that errors harm nobody: reads that its page cache still waits for must not keep
   * its volume for ever.
   */
  #pressOn(released: Promise<void>): void {
    const { clock, logger } = this.#options;
    let cancel = () => {};
    let over = false;
    const end = () => {
      over = true;
      cancel();
    };
    released.then(end, end);
    void this.#sourceGivenUp.promise.then(() => {
      if (over) return;
      cancel = clock.timer(GIVE_UP_AFTER_MS, () => {
        logger.warn({}, 'the volume waits for a source that was given up: what it waits for ends in errors');
        this.#volume.ask('give-up-source', {}).catch((error: unknown) => {
          logger.error({ reason: messageOf(error) }, 'the source could not be given up');
        });
      });
    });
  }

  #state(): ShimState {
    const { workload, runtimeDir } = this.#options;
    const volume = this.#volume.status() ?? null;
    const fuse = join(runtimeDir, SHIM_FILES.fuse);
    const identify = (pid: number | null | undefined) => (pid ? identifyProcess(pid) : null);
    return {
      formatVersion: 1,
      shim: identifyProcess(process.pid)!,
      volumeServer: identify(volume?.serverPid),
      loopDevice: volume?.loopDevice ?? null,
      filesystem: this.#filesystem.mounted ? this.#filesystem.directory : null,
      fuse: mountAt(fuse) === undefined ? null : fuse,
      cgroupFolders: [...workload.cgroup.folders],
      machineInit: identify(workload.initPid),
    };
  }

  #volumeOp<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#lastVolumeOp.then(work, work);
    this.#lastVolumeOp = result.then(
      () => this.changed(),
      () => this.changed(),
    );
    return result;
  }
}

function noVolume(): GodwitError {
  return new GodwitError('MACHINE_NO_VOLUME', 'this shim has no volume open', {
    nextAction: 'Open the volume first; a machine without a volume has no such operation.',
  });
}
