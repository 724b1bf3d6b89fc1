import { setTimeout as sleep } from 'node:timers/promises';
import { GodwitError, isGodwitError } from '../../base/errors.ts';
import type { MachineView, VolumeView } from '../../contract/schemas.ts';
import type { Context } from '../context.ts';
import type { WorkerClient } from '../fleet-client.ts';
import { Interrupted } from '../interruption.ts';
import { move } from './machine.ts';

/** Of a machine that is only there to carry its volume: the volume's id, and the worker that it leaves. */
const CARRIES = 'godwit.carries';
const LEAVES = 'godwit.leaves';
const POLL_MS = 500;

/**
 * A volume moves in the hands of a machine: with its fences, its seal, its receipt. One that no machine has
 * gets a carrier for the way, which never runs: made here, moved stopped, destroyed at the target. Who is
 * interrupted asks again: the carrier is found by what it says that it carries, wherever it is.
 */
export async function moveVolume(context: Context, ref: string, options: { to?: string }): Promise<void> {
  const fleet = context.fleet();
  const { worker, volume } = await fleet.volume(ref);
  const known = await carrierOf(context, worker, volume);
  const machine = known ?? (await makeCarrier(worker, volume));
  const { to = null } = options;
  // A command before this one may have brought it there, and was interrupted; and a drain takes it along by
  // itself.
  const isThere = (found: MachineView) =>
    to === null ? found.worker !== found.config.metadata[LEAVES] : found.worker === to;
  let said = '';
  const say = (reason: string) => {
    if (reason !== said) context.note(`${volume.name} waits: ${reason}`);
    said = reason;
  };
  for (;;) {
    const found = await fleet.machine(machine.id);
    if (found.machine.move === null && isThere(found.machine)) break;
    const began = found.machine.move === null && !isThere(found.machine);
    if (began) {
      try {
        if (await hasMoved(context, machine.id, to, say)) continue;
      } catch (error) {
        // It is where it was, and waits for nobody: what was made for its way goes again. Who is interrupted
        // asks again.
        const isOver = known === null && !(error instanceof Interrupted);
        if (isOver) await worker.client.destroyMachine(machine.id).catch(() => {});
        throw error;
      }
    }
    await sleep(POLL_MS);
  }
  const arrived = await fleet.machine(machine.id);
  await arrived.worker.client.destroyMachine(machine.id, { force: false });
  context.note(`${volume.name} is on ${arrived.worker.name}`);
}

/**
 * False: not now, because another move has it, or it is still arriving: `say` is told. Ends the command where
 * a move ends without it, and where it cannot move for another reason.
 */
async function hasMoved(
  context: Context,
  machineId: string,
  to: string | null,
  say: (reason: string) => void,
): Promise<boolean> {
  try {
    await move(context, machineId, to === null ? {} : { to });
    return true;
  } catch (error) {
    const arrives = isGodwitError(error, 'MIGRATION_NOT_MOVABLE') && error.values.state === 'clone';
    if (!arrives && !isGodwitError(error, 'JOURNAL_RESOURCE_BUSY')) throw error;
    say(error.message);
    return false;
  }
}

async function carrierOf(
  context: Context,
  worker: WorkerClient,
  volume: VolumeView,
): Promise<MachineView | null> {
  if (volume.machineId === null) return null;
  let owner: MachineView;
  try {
    owner = (await context.fleet().machine(volume.machineId)).machine;
  } catch (error) {
    if (!isGodwitError(error, 'CLI_MACHINE_NOT_FOUND')) throw error;
    return null;
  }
  if (owner.config.metadata[CARRIES] === volume.id) return owner;
  throw new GodwitError('CLI_VOLUME_HAS_MACHINE', `${volume.name} belongs to the machine ${owner.name}`, {
    values: { volume: volume.name, machine: owner.name, worker: worker.name },
    nextAction: `godwit move ${owner.name}: it goes with it.`,
  });
}

function makeCarrier({ client, name }: WorkerClient, volume: VolumeView): Promise<MachineView> {
  return client.createMachine({
    // Machines and volumes have names of their own, and this one says in every list what it is.
    name: `carrier-of-${volume.name}`.slice(0, 63).replace(/-+$/, ''),
    start: false,
    config: {
      command: ['true'],
      env: {},
      volume:
        volume.filesystem === 'none'
          ? { volumeId: volume.id, nbd: true }
          : { volumeId: volume.id, mountPath: '/data' },
      restart: { policy: 'no', retriesMax: 0 },
      stop: { signal: 'SIGTERM', timeoutMs: 1_000 },
      resources: {},
      network: 'none',
      metadata: { [CARRIES]: volume.id, [LEAVES]: name },
    },
  });
}
