import { setTimeout as sleep } from 'node:timers/promises';
import { GodwitError, isGodwitError } from '../../base/errors.ts';
import type { MachineView, VolumeView } from '../../contract/schemas.ts';
import type { Context } from '../context.ts';
import { owned, type WorkerClient } from '../fleet-client.ts';
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
  const { machine, isOurs } = await carrierFor(context, worker, volume);
  const { to = null } = options;
  const isThere = (at: string) => (to === null ? at !== machine.config.metadata[LEAVES] : at === to);
  try {
    await carry(context, { worker, volume, machine, isOurs, to, isThere });
    const arrived = await fleet.machine(machine.id);
    await arrived.worker.client.destroyMachine(machine.id, { force: false });
    context.note(`${volume.name} is on ${arrived.worker.name}`);
  } catch (error) {
    // Who asked for the same in another terminal has carried it, and has taken the carrier away.
    const isGone = isGodwitError(error, 'CLI_MACHINE_NOT_FOUND') || isGodwitError(error, 'MACHINE_NOT_FOUND');
    if (!isGone) throw error;
    const now = await fleet.volume(volume.id);
    // For another target, maybe: then it goes on from there.
    if (!isThere(now.worker.name)) return moveVolume(context, volume.id, options);
    context.note(`${volume.name} is on ${now.worker.name}`);
  }
}

type Carriage = {
  worker: WorkerClient;
  volume: VolumeView;
  machine: MachineView;
  /** This command has made it. */
  isOurs: boolean;
  to: string | null;
  isThere: (worker: string) => boolean;
};

/** Resolves when the carrier is there, moved by this command or by whom it waited for. */
async function carry(context: Context, carriage: Carriage): Promise<void> {
  const { worker, volume, machine, isOurs, to, isThere } = carriage;
  let said = '';
  const say = (reason: string) => {
    if (reason !== said) context.note(`${volume.name} waits: ${reason}`);
    said = reason;
  };
  for (;;) {
    const found = (await context.fleet().machine(machine.id)).machine;
    // A command before this one may have brought it there, and was interrupted; and a drain takes it along by
    // itself.
    if (found.move === null && isThere(found.worker)) return;
    if (found.move === null) {
      try {
        if (await hasMoved(context, machine.id, to, say)) continue;
      } catch (error) {
        // It is where it was, and waits for nobody: what was made for its way goes again. Who is interrupted
        // asks again.
        if (isOurs && !(error instanceof Interrupted))
          await worker.client.destroyMachine(machine.id).catch(() => {});
        throw error;
      }
    }
    await sleep(POLL_MS);
  }
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

/** Who carries the volume already, or a machine that is made for it. */
async function carrierFor(
  context: Context,
  worker: WorkerClient,
  volume: VolumeView,
): Promise<{ machine: MachineView; isOurs: boolean }> {
  const known = await carrierOf(context, volume);
  if (known !== null) return { machine: known, isOurs: false };
  await refuseOwned(context, worker, volume);
  try {
    return { machine: await makeCarrier(worker, volume), isOurs: true };
  } catch (error) {
    // In another terminal somebody was quicker.
    const other = await carrierOf(context, volume);
    if (other === null) throw error;
    return { machine: other, isOurs: false };
  }
}

async function carrierOf(context: Context, { id }: VolumeView): Promise<MachineView | null> {
  const machines = owned('machine', (await context.fleet().machines()).items);
  return machines.find(({ config }) => config.metadata[CARRIES] === id) ?? null;
}

async function refuseOwned(context: Context, worker: WorkerClient, volume: VolumeView): Promise<void> {
  if (volume.machineId === null) return;
  let owner: MachineView;
  try {
    owner = (await context.fleet().machine(volume.machineId)).machine;
  } catch (error) {
    if (!isGodwitError(error, 'CLI_MACHINE_NOT_FOUND')) throw error;
    return;
  }
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
