import { GodwitError } from '../base/errors.ts';
import type { MachineManager } from '../machine/manager.ts';
import type { ShimClient } from '../shim/client.ts';
import type { ShimLook } from '../shim/looks.ts';
import type { VolumeRecord } from '../volume/index.ts';
import { type ShimOwner, shimIdOf } from './shim-owner.ts';

/** For what somebody wants a volume. */
export type Purpose = 'attach' | 'serve' | 'move' | 'accept-loss' | 'destroy';
type Claim = 'keeps' | 'lets-go';

/**
 * What becomes of who has a volume open when it is wanted. Left out: nothing. An export reads what is sealed,
 * and is in nobody's way.
 */
export const CLAIMS: Readonly<Record<Purpose, Partial<Record<ShimOwner['kind'], Claim>>>> = {
  attach: { serve: 'keeps', import: 'lets-go' },
  // A machine that runs keeps it all the same.
  serve: { serve: 'keeps', machine: 'lets-go' },
  move: { serve: 'keeps' },
  // One that runs has what was lost in its own memory, and keeps it all the same.
  'accept-loss': { serve: 'keeps', machine: 'lets-go' },
  // An import ends with its volume (imports.ts).
  destroy: { machine: 'keeps', serve: 'keeps' },
};

type Wanted = Pick<VolumeRecord, 'id' | 'name' | 'machineId'>;

export type OpeningsOptions = {
  machines: Pick<
    MachineManager,
    | 'client'
    | 'ensureShim'
    | 'shimLook'
    | 'shutdownShim'
    | 'removeRuntime'
    | 'runtimeDir'
    | 'records'
    | 'release'
  >;
  /** Ends the shim that hydrates a volume for no machine. */
  releaseImport: (volumeId: string) => Promise<void>;
};

/**
 * Who has which volume of this worker open, and who may take it away. Nothing is remembered: the shims know,
 * and each is found by whose it is.
 */
export class Openings {
  readonly #options: OpeningsOptions;

  constructor(options: OpeningsOptions) {
    this.#options = options;
  }

  /** Null: there is no such shim. */
  client(owner: ShimOwner): Promise<ShimClient | null> {
    return this.#options.machines.client(shimIdOf(owner));
  }

  /** Started where there is none. */
  ensure(owner: ShimOwner): Promise<ShimClient> {
    return this.#options.machines.ensureShim(shimIdOf(owner));
  }

  /** For lists: a shim that hangs is not waited for. */
  look(owner: ShimOwner): Promise<ShimLook> {
    return this.#options.machines.shimLook(shimIdOf(owner));
  }

  runtimeDir(owner: ShimOwner): string {
    return this.#options.machines.runtimeDir(shimIdOf(owner));
  }

  /** The shim, what it holds, and its folder. Idempotent. */
  async end(owner: ShimOwner): Promise<void> {
    const { machines } = this.#options;
    await machines.shutdownShim(shimIdOf(owner));
    await machines.removeRuntime(shimIdOf(owner));
  }

  /** Its shim has a volume open, as it says now. Rejects `RPC_TIMEOUT` for one that hangs. */
  async isOpen(owner: ShimOwner): Promise<boolean> {
    const client = await this.client(owner);
    return client !== null && (await client.call('status', {})).volume !== null;
  }

  /** Who has the volume open and would keep it; null: nobody. Rejects `RPC_TIMEOUT`. */
  async keeper(volume: Wanted, purpose: Purpose): Promise<ShimOwner | null> {
    for (const owner of ownersOf(volume))
      if (CLAIMS[purpose][owner.kind] === 'keeps' && (await this.isOpen(owner))) return owner;
    return null;
  }

  /** Rejects `WORKER_VOLUME_SERVED`, `WORKER_VOLUME_HELD`: who has it keeps it. */
  async refuseKept(volume: Wanted, purpose: Purpose): Promise<void> {
    const keeper = await this.keeper(volume, purpose);
    if (keeper?.kind === 'machine') throw this.#heldError(volume, keeper.machineId);
    if (keeper !== null) throw servedError(volume);
  }

  /**
   * Who has it, and may be asked to, lets it go. Rejects `WORKER_VOLUME_HELD`, and `MACHINE_MOVING` unless
   * `moving`: then its move opens it again.
   */
  async takeAway(volume: Wanted, purpose: Purpose, options: { moving?: boolean } = {}): Promise<void> {
    for (const owner of ownersOf(volume)) {
      if (CLAIMS[purpose][owner.kind] !== 'lets-go') continue;
      if (owner.kind === 'import') await this.#options.releaseImport(volume.id);
      if (owner.kind === 'machine') await this.#takeFromMachine(volume, owner.machineId, options);
    }
  }

  /** A stopped one gives it back. */
  async #takeFromMachine(volume: Wanted, machineId: string, options: { moving?: boolean }): Promise<void> {
    const { machines } = this.#options;
    const machine = machines.records().find(({ id }) => id === machineId);
    if (!machine) return;
    if (machine.desired === 'running') throw this.#heldError(volume, machineId);
    await machines.release(machineId, options);
  }

  #heldError({ id, name }: Wanted, machineId: string): GodwitError {
    const machine = this.#options.machines.records().find((record) => record.id === machineId);
    const called = machine?.name ?? machineId;
    return new GodwitError('WORKER_VOLUME_HELD', `volume ${name} is used by machine ${called}`, {
      values: { volumeId: id, machineId },
      nextAction: `Stop the machine first: godwit machine stop ${called}.`,
    });
  }
}

/** Who can have a volume open beside its exports. */
function ownersOf({ id: volumeId, machineId }: Wanted): ShimOwner[] {
  return [
    ...(machineId === null ? [] : [{ kind: 'machine', machineId } as const]),
    { kind: 'serve', volumeId },
    { kind: 'import', volumeId },
  ];
}

function servedError({ id, name }: Wanted): GodwitError {
  return new GodwitError('WORKER_VOLUME_SERVED', `volume ${name} is served to other systems`, {
    values: { volumeId: id },
    retry: 'never',
    nextAction: `End that first: godwit volume serve ${name} --stop.`,
  });
}
