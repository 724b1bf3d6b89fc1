import { chmod, mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type FuseMount, mountFuse, unmountFuse } from '../attach/fuse-mount.ts';
import { VOLUME_SERVER_NODE_FLAGS, VolumeSupervisor } from '../attach/volume-supervisor.ts';
import type { Clock } from '../base/clock.ts';
import { entryPoint } from '../base/entry-point.ts';
import type { Logger } from '../base/logger.ts';
import { attachLoop, detachLoop } from '../host/losetup.ts';
import type { Backend, BackendEvents, Opening } from '../opening/backend.ts';
import { isAttach } from '../opening/role.ts';
import type { AttachSpec, OpeningSpec } from '../opening/spec.ts';
import { keepDataLoss } from './data-guard.ts';

export type UserspaceBackendOptions = BackendEvents & {
  /** Folder that FUSE is mounted at. */
  fuseDir: string;
  /** What the volume servers write to their standard error is appended here. */
  logPath: string;
  clock: Clock;
  logger: Logger;
  /** Program of the volume server; for tests. */
  command?: readonly [string, ...string[]];
  /**
   * Default true. false: also on a kernel before 6.9, where the death of the volume server is the machine's;
   * for measurements.
   */
  resendRequired?: boolean;
};

/**
 * Volumes by volume servers: FUSE connection, volume server under its supervisor, loop device, made in this
 * order and taken away in the order that lets the server write everything: loop device, FUSE mount, server. A
 * guest that comes through NBD, an export and what is served need the server only. It opens every kind.
 */
export function userspaceBackend(options: UserspaceBackendOptions): Backend {
  return {
    can: () => null,
    async open(spec) {
      if (!isAttach(spec)) return openServer(spec, null, options);
      if (spec.nbd) {
        // The machine comes in here without the folders above it, and may be any user; the socket says who
        // may connect.
        await mkdir(dirname(spec.nbd.path), { recursive: true });
        await chmod(dirname(spec.nbd.path), 0o755);
      }
      return openServer(spec, spec.nbd?.client === 'guest' ? null : await mount(spec, options), options);
    },
  };
}

async function mount(spec: AttachSpec, options: UserspaceBackendOptions): Promise<FuseMount> {
  const { fuseDir, resendRequired = true } = options;
  await mkdir(fuseDir, { recursive: true });
  return mountFuse({ dir: fuseDir, name: `godwit-${spec.volumeId}`, resendRequired });
}

async function openServer(
  spec: OpeningSpec,
  fuse: FuseMount | null,
  options: UserspaceBackendOptions,
): Promise<Opening> {
  const { clock, logger, onEvent, onChange, onLeft } = options;
  const supervisor = new VolumeSupervisor({
    command: options.command ?? [
      process.execPath,
      ...VOLUME_SERVER_NODE_FLAGS,
      fileURLToPath(entryPoint('volume/server.ts')),
    ],
    spec,
    fuseFd: fuse?.fd ?? null,
    logPath: options.logPath,
    clock,
    logger,
    onEvent: (event, data) => {
      onEvent(event, data);
      // The pid has changed; the events of progress change nothing that is written down.
      if (event === 'ready' || event === 'restarted') onChange();
    },
  });
  const opening = new ServedOpening(supervisor, fuse, { clock, logger });
  try {
    await supervisor.start();
    await opening.attach();
    return opening;
  } catch (error) {
    await opening.close().catch((failure: unknown) => {
      logger.error(
        { reason: String(failure) },
        'a volume that could not be opened could not be closed either',
      );
      onLeft(opening);
    });
    // The supervisor only knows that no server got ready; why is what the last one said.
    throw supervisor.state.lastError ?? error;
  }
}

class ServedOpening implements Opening {
  readonly #supervisor: VolumeSupervisor;
  #fuse: FuseMount | null;
  #loopDevice: string | null = null;
  readonly #options: { clock: Clock; logger: Logger };

  constructor(
    supervisor: VolumeSupervisor,
    fuse: FuseMount | null,
    options: { clock: Clock; logger: Logger },
  ) {
    this.#supervisor = supervisor;
    this.#fuse = fuse;
    this.#options = options;
  }

  get spec(): OpeningSpec {
    return this.#supervisor.spec;
  }

  get device(): string | null {
    return this.#loopDevice;
  }

  get port(): number | null {
    const { spec } = this;
    return spec.kind === 'export' ? spec.export.listenPort : null;
  }

  /** The loop device on the FUSE file, where there is one. */
  async attach(): Promise<void> {
    if (this.#fuse === null) return;
    // The sectors of the encryption, or those that a filesystem of any disk can be mounted on.
    const sectorBytes = isAttach(this.spec) && this.spec.encryption ? 4096 : 512;
    this.#loopDevice = await attachLoop({ filePath: this.#fuse.filePath, sectorBytes });
  }

  ask: Opening['ask'] = (op, args, timeoutMs) => this.#supervisor.call(op, args as never, timeoutMs);

  state(): ReturnType<Opening['state']> {
    const { serverPid, restarts, lastStatus, lastError } = this.#supervisor.state;
    return {
      ...{ access: this.spec.access, serverPid, serverRestarts: restarts, status: lastStatus },
      lastError: lastError?.toWire() ?? null,
    };
  }

  async close(): Promise<void> {
    const { clock, logger } = this.#options;
    if (this.#loopDevice !== null) await detachLoop(this.#loopDevice, { clock });
    this.#loopDevice = null;
    if (this.#fuse !== null) await unmountFuse(this.#fuse, logger);
    this.#fuse = null;
    const { spec } = this;
    // With the server ends who would go on trying, and with this process who else knows.
    if (spec.kind !== 'export' && spec.dataLoss) await keepDataLoss(spec, spec.dataLoss);
    await this.#supervisor.stop();
  }
}
