import { chmod, mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type FuseMount, mountFuse, unmountFuse } from '../attach/fuse-mount.ts';
import { VOLUME_SERVER_NODE_FLAGS, VolumeSupervisor } from '../attach/volume-supervisor.ts';
import type { Clock } from '../base/clock.ts';
import { entryPoint } from '../base/entry-point.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { attachLoop, detachLoop } from '../host/losetup.ts';
import { isAttach, isSameOpening, roleOf, shown } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { SHIM_FILES } from './protocol.ts';
import type { VolumeHolder } from './service.ts';

export type VolumeHolderOptions = {
  runtimeDir: string;
  clock: Clock;
  logger: Logger;
  onChange: () => void;
  onEvent: (event: string, data: unknown) => void;
  /** Program of the volume server; for tests. */
  command?: readonly [string, ...string[]];
  /**
   * Default true. false: also on a kernel before 6.9, where the death of the volume server is the machine's;
   * for measurements.
   */
  resendRequired?: boolean;
};

type Opened = { supervisor: VolumeSupervisor; fuse: FuseMount | null; loopDevice: string | null };

/**
 * The one volume of a shim: FUSE connection, volume server under its supervisor, loop device, made in this
 * order and taken away in the order that lets the server write everything: loop device, FUSE mount, server. A
 * guest that comes through NBD needs the server only.
 */
export function openVolumeHolder(options: VolumeHolderOptions): VolumeHolder {
  const { runtimeDir, clock, logger } = options;
  const command = options.command ?? [
    process.execPath,
    ...VOLUME_SERVER_NODE_FLAGS,
    fileURLToPath(entryPoint('volume/server.ts')),
  ];
  let opened: Opened | undefined;

  async function close(what: Opened): Promise<void> {
    if (what.loopDevice !== null) await detachLoop(what.loopDevice, { clock });
    what.loopDevice = null;
    if (what.fuse !== null) await unmountFuse(what.fuse, logger);
    what.fuse = null;
    await what.supervisor.stop();
  }

  async function open(spec: OpeningSpec): Promise<Opened> {
    const fuseDir = join(runtimeDir, SHIM_FILES.fuse);
    let fuse: FuseMount | null = null;
    const nbd = isAttach(spec) ? spec.nbd : undefined;
    if (nbd) {
      // The machine comes in here without the folders above it, and may be any user; the socket says who may
      // connect.
      await mkdir(dirname(nbd.path), { recursive: true });
      await chmod(dirname(nbd.path), 0o755);
    }
    if (isAttach(spec) && nbd?.client !== 'guest') {
      await mkdir(fuseDir, { recursive: true });
      fuse = await mountFuse({
        dir: fuseDir,
        name: `godwit-${spec.volumeId}`,
        resendRequired: options.resendRequired ?? true,
      });
    }
    const supervisor = new VolumeSupervisor({
      command,
      spec,
      fuseFd: fuse?.fd ?? null,
      logPath: join(runtimeDir, 'volume-server.log'),
      clock,
      logger,
      onEvent: (event, data) => {
        options.onEvent(event, data);
        // The pid has changed; the events of progress change nothing that is written down.
        if (event === 'ready' || event === 'restarted') options.onChange();
      },
    });
    const made: Opened = { supervisor, fuse, loopDevice: null };
    try {
      await supervisor.start();
      if (fuse !== null) {
        // The sectors of the encryption, or those that a filesystem of any disk can be mounted on.
        const sectorBytes = isAttach(spec) && spec.encryption ? 4096 : 512;
        made.loopDevice = await attachLoop({ filePath: fuse.filePath, sectorBytes });
      }
      return made;
    } catch (error) {
      await close(made).catch((failure: unknown) => {
        logger.error(
          { reason: String(failure) },
          'a volume that could not be opened could not be closed either',
        );
        opened = made;
      });
      // The supervisor only knows that no server got ready; why is what the last one said.
      throw supervisor.state.lastError ?? error;
    }
  }

  return {
    async open(spec) {
      if (opened !== undefined && !isSameOpening(opened.supervisor.spec, spec)) {
        const { kind, volumeId, generation } = opened.supervisor.spec;
        const role = roleOf(kind);
        throw new GodwitError('MACHINE_VOLUME_OPEN', `this shim has volume ${volumeId} open (${role})`, {
          values: { volumeId, generation, role },
          nextAction: 'Close it first.',
        });
      }
      opened ??= await open(spec);
      const now = opened.supervisor.spec;
      return {
        loopDevice: opened.loopDevice,
        exportPort: now.kind === 'export' ? now.export.listenPort : null,
      };
    },

    async command(op, args, timeoutMs) {
      if (opened !== undefined) return opened.supervisor.call(op, args as never, timeoutMs);
      throw new GodwitError('MACHINE_NO_VOLUME', 'this shim has no volume open', {
        nextAction: 'Open the volume first.',
      });
    },

    async close() {
      if (opened === undefined) return;
      await close(opened);
      opened = undefined;
    },

    status() {
      if (opened === undefined) return null;
      const { spec, state } = opened.supervisor;
      return {
        spec: shown(spec),
        serverPid: state.serverPid,
        serverRestarts: state.restarts,
        loopDevice: opened.loopDevice,
        status: state.lastStatus,
        lastError: state.lastError?.toWire() ?? null,
      };
    },
  };
}
