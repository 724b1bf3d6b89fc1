import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError, systemErrorCode, toWireError, type WireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { performOperation } from '../opening/perform.ts';
import { isSameOpening, roleOf, type ShownSpec, shown } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import { replaceFileOfThisBoot } from '../sys/durable-file.ts';
import { KernelVolume, removeStack } from './attached.ts';
import { KernelExport, removeExport } from './exported.ts';
import { type PlaneHost, systemPlaneHost } from './host.ts';
import { PLANE_STATE_FILE } from './names.ts';

export type KernelHolderOptions = {
  runtimeDir: string;
  clock: Clock;
  logger: Logger;
  onChange: () => void;
  onEvent: (event: string, data: unknown) => void;
  host?: PlaneHost;
};

type Left = Pick<OpeningSpec, 'volumeId' | 'volumeDir'> & {
  source: { targetIqn: string; host: string; port: number; initiatorIqn: string } | null;
  targetIqn: string | null;
};

/**
 * The one volume of a shim in the kernel plane. The same calls as for one with a volume server; there is no
 * server, the shim itself drives the kernel.
 */
export function openKernelHolder(options: KernelHolderOptions): {
  open(spec: OpeningSpec): Promise<{ loopDevice: string | null; exportPort: number | null }>;
  command(op: string, args: unknown, timeoutMs?: number): Promise<unknown>;
  close(): Promise<void>;
  status(): {
    spec: ShownSpec;
    serverPid: null;
    serverRestarts: 0;
    loopDevice: string | null;
    status: VolumeServerStatus | null;
    lastError: WireError | null;
  } | null;
} {
  const { runtimeDir, clock, logger } = options;
  const host = options.host ?? systemPlaneHost(clock);
  let opened: { spec: OpeningSpec; volume: KernelVolume | KernelExport } | undefined;
  let lastError: WireError | null = null;

  async function command(op: string, args: unknown): Promise<unknown> {
    if (opened === undefined) {
      throw new GodwitError('MACHINE_NO_VOLUME', 'this shim has no volume open', {
        nextAction: 'Open the volume first.',
      });
    }
    const { volume } = opened;
    const result = await performOperation(volume.answers, op, args);
    options.onChange();
    return result;
  }

  return {
    async open(spec) {
      if (opened !== undefined && !isSameOpening(opened.spec, spec)) {
        const { kind, volumeId, generation } = opened.spec;
        const role = roleOf(kind);
        throw new GodwitError('MACHINE_VOLUME_OPEN', `this shim has volume ${volumeId} open (${role})`, {
          values: { volumeId, generation, role },
          nextAction: 'Close it first.',
        });
      }
      if (opened === undefined) {
        if (spec.kind === 'serve') throw notHere(spec);
        await noteLeft(runtimeDir, spec);
        try {
          const volume =
            spec.kind === 'export'
              ? await KernelExport.open(spec, { host, clock, logger })
              : await KernelVolume.open(spec, { host, clock, logger });
          opened = { spec, volume };
          lastError = null;
        } catch (error) {
          lastError = toWireError(error);
          throw error;
        }
      }
      const { volume } = opened;
      return volume instanceof KernelExport
        ? { loopDevice: null, exportPort: volume.port }
        : { loopDevice: volume.device, exportPort: null };
    },

    async command(op, args) {
      try {
        return await command(op, args);
      } catch (error) {
        lastError = toWireError(error);
        throw error;
      }
    },

    async close() {
      if (opened === undefined) return;
      await opened.volume.close();
      opened = undefined;
      await rm(join(runtimeDir, PLANE_STATE_FILE), { force: true });
    },

    status() {
      if (opened === undefined) return null;
      const { spec, volume } = opened;
      return {
        spec: { ...shown(spec), access: volume.access },
        serverPid: null,
        serverRestarts: 0,
        loopDevice: volume instanceof KernelVolume ? volume.device : null,
        status: volume.status(),
        lastError,
      };
    },
  };
}

/**
 * Takes down what a dead shim has left in the kernel. The filesystem is unmounted. Nothing to do where it had
 * nothing there.
 */
export async function cleanUpKernelPlane(runtimeDir: string, clock: Clock): Promise<void> {
  const left = await readLeft(runtimeDir);
  if (left !== null) {
    const { volumeId, volumeDir, source, targetIqn } = left;
    const host = systemPlaneHost(clock);
    if (targetIqn !== null) {
      await removeExport({ volumeId, volumeDir, targetIqn }, host, clock);
    } else {
      await removeStack({ volumeId, volumeDir, source }, { host, clock });
    }
  }
  await rm(join(runtimeDir, PLANE_STATE_FILE), { force: true });
}

/** Reads that wait for the source of a dead shim's clone end in errors. */
export async function giveUpKernelSource(runtimeDir: string, clock: Clock): Promise<void> {
  const source = (await readLeft(runtimeDir))?.source;
  if (source) await systemPlaneHost(clock).iscsi.logout(source);
}

async function readLeft(runtimeDir: string): Promise<Left | null> {
  let text: string;
  try {
    text = await readFile(join(runtimeDir, PLANE_STATE_FILE), 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw error;
  }
  // Not made durable: a power cut leaves it empty, and nothing of what it named.
  return text.replaceAll('\0', '') === '' ? null : (JSON.parse(text) as Left);
}

/** Kinds that only volume servers open. */
function notHere(spec: OpeningSpec): GodwitError {
  return new GodwitError('VOLUME_BAD_SPEC', `the kernel plane opens nothing of kind ${spec.kind}`, {
    values: { volumeId: spec.volumeId, kind: spec.kind },
    nextAction: 'This is a defect of the caller: volumes are served by volume servers.',
  });
}

async function noteLeft(runtimeDir: string, spec: OpeningSpec): Promise<void> {
  const { volumeId, volumeDir } = spec;
  const source = spec.kind === 'clone' ? spec.clone.source : null;
  const left: Left = {
    ...{ volumeId, volumeDir },
    source: source && {
      targetIqn: source.targetIqn,
      host: source.host,
      port: source.port,
      initiatorIqn: source.initiatorIqn,
    },
    targetIqn: spec.kind === 'export' ? spec.export.targetIqn : null,
  };
  await mkdir(runtimeDir, { recursive: true });
  const path = join(runtimeDir, PLANE_STATE_FILE);
  await replaceFileOfThisBoot(path, `${JSON.stringify(left)}\n`);
}
