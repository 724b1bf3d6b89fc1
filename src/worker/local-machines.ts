import type { MachineManager } from '../machine/manager.ts';
import type { LocalMachine } from '../migration/drain.ts';
import type { VolumeStore } from '../volume/index.ts';

/** What a drain finds here: the machines with what is on their volumes. */
export async function localMachines(machines: MachineManager, volumes: VolumeStore): Promise<LocalMachine[]> {
  return Promise.all(
    machines.records().map(async (record): Promise<LocalMachine> => {
      const volumeId = record.config.volume?.volumeId;
      const volume = volumeId === undefined ? null : await volumes.get(volumeId).catch(() => null);
      return {
        machineId: record.id,
        name: record.name,
        volumeBytes: volume?.lengthBytes ?? 0,
        usedBytes: volume ? await volumes.usedBytes(volume.id).catch(() => 0) : 0,
      };
    }),
  );
}

/** Those that count: not the copies that moves left behind, and not what is on its way. */
export async function volumesWithoutMachine(
  machines: MachineManager,
  volumes: VolumeStore,
): Promise<{ volumeId: string; name: string; usedBytes: number }[]> {
  const owners = new Set(machines.records().map(({ id }) => id));
  const { volumes: all } = await volumes.list();
  const left = all.filter(
    ({ state, machineId }) =>
      (state === 'ready' || state === 'clone') && (machineId === null || !owners.has(machineId)),
  );
  return Promise.all(
    left.map(async ({ id, name }) => ({
      volumeId: id,
      name,
      usedBytes: await volumes.usedBytes(id).catch(() => 0),
    })),
  );
}
