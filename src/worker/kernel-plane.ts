import { GodwitError } from '../base/errors.ts';
import { assessHost, KERNEL_PLANE_MODULES, missingFor } from '../host/capabilities.ts';
import { loadModules, readHostFacts } from '../host/host-facts.ts';
import { systemTools } from '../host/tools.ts';

/**
 * Loads the modules of the kernel plane, and rejects `WORKER_NO_KERNEL_PLANE` with every reason where this
 * host cannot do it: now, and not in a move.
 */
export async function requireKernelPlane(): Promise<void> {
  const modules = KERNEL_PLANE_MODULES.map(({ module }) => module);
  await loadModules(systemTools(), readHostFacts(), modules);
  const missing = missingFor('kernel', assessHost(readHostFacts()));
  if (missing.length === 0) return;
  throw new GodwitError(
    'WORKER_NO_KERNEL_PLANE',
    `this host cannot do the kernel plane: ${missing.map(({ what, detail }) => `${what}: ${detail}`).join('; ')}`,
    {
      values: { missing: missing.map(({ what }) => what).join(',') },
      nextAction: '`godwit doctor` says what would make it; or start the worker with --plane userspace.',
    },
  );
}
