import type { Clock } from '../base/clock.ts';
import { toWireError, type WireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Backend, BackendEvents, Opening } from '../opening/backend.ts';
import { performOperation } from '../opening/perform.ts';
import { isAttach } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { KernelVolume } from './attached.ts';
import { kernelCan, refusedByKernel } from './can.ts';
import { KernelExport } from './exported.ts';
import { systemKernelHost } from './host.ts';
import { forgetLeft, noteLeft } from './left.ts';

export type KernelBackendOptions = Pick<BackendEvents, 'onChange'> & {
  runtimeDir: string;
  clock: Clock;
  logger: Logger;
};

/** Volumes in the kernel's devices. There is no server: the shim itself drives the kernel. */
export function kernelBackend(options: KernelBackendOptions): Backend {
  const { runtimeDir, clock, logger, onChange } = options;
  const host = systemKernelHost(clock);

  async function openVolume(spec: OpeningSpec): Promise<KernelVolume | KernelExport> {
    const refusal = kernelCan(spec);
    if (refusal) throw refusedByKernel(spec.volumeId, refusal);
    await noteLeft(runtimeDir, spec);
    if (isAttach(spec)) return KernelVolume.open(spec, { host, clock, logger });
    if (spec.kind === 'export') return KernelExport.open(spec, { host, clock, logger });
    throw new Error(`${spec.kind} was refused`);
  }

  async function open(spec: OpeningSpec): Promise<Opening> {
    const volume = await openVolume(spec);
    let lastError: WireError | null = null;
    return {
      spec,
      get device() {
        return volume instanceof KernelVolume ? volume.device : null;
      },
      port: volume instanceof KernelExport ? volume.port : null,
      async ask(op, args) {
        try {
          const result = await performOperation(volume.answers, op, args);
          onChange();
          return result;
        } catch (error) {
          lastError = toWireError(error);
          throw error;
        }
      },
      state: () => ({
        ...{ access: volume.access, serverPid: null, serverRestarts: 0 },
        ...{ status: volume.status(), lastError },
      }),
      async close() {
        await volume.close();
        await forgetLeft(runtimeDir);
      },
    };
  }

  return { can: kernelCan, open };
}
