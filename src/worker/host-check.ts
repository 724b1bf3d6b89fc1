import { isGodwitError, messageOf, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { OfferNeeds } from '../contract/peer.ts';
import type { MountProof } from '../host/mount-proof.ts';
import type { MachineManager } from '../machine/manager.ts';

export type HostCheck = (machine: { id: string; name: string }, needs: OfferNeeds) => Promise<string | null>;

/**
 * Whether this host has all that a machine's configuration and its filesystem ask for: account, devices,
 * folders, limits, the program, a name that is free, a kernel that mounts it. Why not, as the end of a
 * sentence that begins with the worker's name; null: it has. What would fail at the boot is better known
 * before the machine is stopped elsewhere.
 */
export function hostCheck(options: {
  machines: Pick<MachineManager, 'checkHostCanRun' | 'missing' | 'records'>;
  proof: Pick<MountProof, 'refusal'>;
  /** Why there is no room for its shim; null: there is. */
  shimRoomLacks: () => Promise<string | null>;
  logger: Logger;
}): HostCheck {
  const { machines, proof, shimRoomLacks, logger } = options;
  return async ({ id, name }, { config, mount }) => {
    if (machines.records().some((record) => record.name === name && record.id !== id))
      return `has a machine called ${name} already`;
    try {
      machines.checkHostCanRun(id, config);
    } catch (error) {
      return `cannot run it: ${messageOf(error)}`;
    }
    const program = machines.missing(config);
    if (program !== null) return `has no program ${program}, which the machine runs`;
    const full = await shimRoomLacks();
    if (full !== null) return `has no room in its runtime folder: ${full}`;
    if (mount === undefined) return null;
    try {
      const refusal = await proof.refusal(mount);
      return refusal && `cannot mount its volume: ${refusal}`;
    } catch (error) {
      if (!isGodwitError(error, 'HOST_MOUNT_UNPROVED')) throw error;
      // The boot finds out, as it did before there was a proof.
      logger.warn(
        { machineId: id, error: toWireError(error) },
        'a machine comes without a proof that its volume mounts',
      );
      return null;
    }
  };
}
