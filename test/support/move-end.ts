import assert from 'node:assert/strict';
import type { Fleet, FleetWorker } from './fleet.ts';

/**
 * What must hold in a fleet of two when both runs of a move are over: `owner` alone has the machine, and its
 * volume for writing; the other one keeps the sealed volume when the machine has `moved` away from it, else
 * nothing; no export and no shim is left.
 */
export async function assertOneOwner(
  fleet: Fleet,
  machine: { id: string; volumeId: string | null },
  owner: FleetWorker,
  moved: boolean,
): Promise<void> {
  const other = fleet.workers.find((worker) => worker !== owner)!;
  await fleet.until('one owner', async () => {
    const owners = await fleet.owners(machine.id);
    return owners.length === 1 && owners[0] === owner;
  });
  assert.equal(owner.volumeRecord(machine.volumeId!)?.state, 'ready');
  assert.equal(other.volumeRecord(machine.volumeId!)?.state, moved ? 'retained' : undefined);
  assert.deepEqual(
    fleet.workers.flatMap((worker) => worker.exports()).map(({ id }) => id),
    [],
    'an export is left',
  );
  assert.deepEqual(
    other.shims().map(({ id }) => id),
    [],
    `a shim is left at ${other.name}`,
  );
}
