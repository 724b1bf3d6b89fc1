import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { liveMapsBytes } from '../clone/live-map.ts';
import type { MachineConfig } from '../contract/machine-config.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { diskNeedBytes, unpromisedDiskBytes } from '../migration/placement.ts';
import { validityFilesBytes, validityPath } from '../volume/index.ts';
import { hostLoad, placementOf } from './load.ts';

const GIB = 2 ** 30;
const OPTIONS = {
  name: 'worker-1',
  capacity: { memoryBytes: 8 * GIB, cpus: 4, diskBytes: null },
  tls: null,
  plane: 'userspace' as const,
  keys: null,
  validityDir: '/dev/shm',
};

const LACKS = { lacking: () => null, limitsMissing: () => [] };

/** A disk of 100 GiB, of which volumes have taken what `here` says. */
function volumesOf(here: Record<string, number>) {
  const usedBytes = Object.values(here).reduce((sum, bytes) => sum + bytes, 0);
  const freeBytes = 100 * GIB - usedBytes;
  return {
    capacity: async () => ({ totalBytes: 100 * GIB, freeBytes, usedBytes, logicalBytes: 0 }),
    holdsFileOf: () => true,
    usedBytes: async (id: string) => {
      if (here[id] === undefined) throw new Error('no such volume');
      return here[id];
    },
  };
}

function move(volumeId: string, volumeUsedBytes: number): PrepareRequest {
  const machineId = `m_of_${volumeId}`;
  const placement = {
    ...{ machineId, machineName: 'm', group: null, memoryBytes: GIB, cpus: 1 },
    ...{ volumeLengthBytes: 50 * GIB, volumeUsedBytes },
  };
  return { runId: 'run1', machineId, placement, volume: { volumeId } } as PrepareRequest;
}

async function freeBytes(
  here: Record<string, number>,
  moves: PrepareRequest[],
  imports: { volumeId: string; lengthBytes: number; usedBytes: number }[],
): Promise<number> {
  const load = await hostLoad(OPTIONS, { records: () => [] }, volumesOf(here), moves, imports, false, LACKS);
  return unpromisedDiskBytes(load);
}

test('disk is promised to volumes that arrive, by a move or an import, as far as they are not here', async () => {
  const need = diskNeedBytes({ volumeUsedBytes: 10 * GIB });
  assert.equal(await freeBytes({}, [], []), 100 * GIB);
  assert.equal(await freeBytes({}, [move('v_1', 10 * GIB)], []), 100 * GIB - need);
  assert.equal(
    await freeBytes({}, [], [{ volumeId: 'v_2', lengthBytes: 50 * GIB, usedBytes: 10 * GIB }]),
    100 * GIB - need,
  );
  const both = await freeBytes(
    {},
    [move('v_1', 10 * GIB)],
    [{ volumeId: 'v_2', lengthBytes: 50 * GIB, usedBytes: 10 * GIB }],
  );
  assert.equal(both, 100 * GIB - 2 * need);
});

test('what has arrived is counted once, and more than was promised gives nothing back', async () => {
  const need = diskNeedBytes({ volumeUsedBytes: 10 * GIB });
  const importing = [{ volumeId: 'v_2', lengthBytes: 50 * GIB, usedBytes: 10 * GIB }];
  assert.equal(await freeBytes({ v_2: 4 * GIB }, [], importing), 100 * GIB - need);
  assert.equal(await freeBytes({ v_2: 20 * GIB }, [], importing), 80 * GIB);
});

test('memory for live maps is promised to volumes that arrive, less what their maps have', async (t) => {
  const validityDir = scratchDir(t);
  const options = { ...OPTIONS, validityDir };
  const importing = [{ volumeId: 'v_2', lengthBytes: 50 * GIB, usedBytes: 10 * GIB }];
  const promised = async () => {
    const moves = [move('v_1', 10 * GIB)];
    const load = await hostLoad(
      options,
      { records: () => [] },
      volumesOf({}),
      moves,
      importing,
      false,
      LACKS,
    );
    assert.equal(load.maps?.dir, validityDir);
    assert.ok(load.maps.freeBytes > 0);
    return load.maps.reserved;
  };
  const need = liveMapsBytes({ lengthBytes: 50 * GIB, usedBytes: 10 * GIB });
  assert.deepEqual(await promised(), [
    { machineId: 'm_of_v_1', bytes: need },
    { machineId: null, bytes: need },
  ]);
  const path = validityPath(validityDir, 'v_2');
  writeFileSync(path, Buffer.alloc(64 * 1024, 1));
  writeFileSync(`${path}.written`, Buffer.alloc(4096, 1));
  assert.equal((await promised())[1]!.bytes, need - validityFilesBytes(path));
  assert.ok(validityFilesBytes(path) >= 68 * 1024);
});

test('what only the userspace plane can do for a volume goes into the question', () => {
  const config = { resources: {}, volume: { volumeId: 'v_1', mountPath: '/data' } } as MachineConfig;
  const reason = (more: object, volume: object = {}) =>
    placementOf(
      { id: 'm_1', name: 'm', config: { ...config, ...more } as MachineConfig },
      { lengthBytes: GIB, usedBytes: 0, ...volume },
    ).userspaceOnly;
  assert.equal(reason({}), undefined);
  assert.equal(reason({}, { hasHoles: false }), undefined);
  assert.equal(reason({}, { lengthBytes: 16 * 2 ** 40 }), undefined);
  assert.match(reason({}, { lengthBytes: 16 * 2 ** 40 + 4096 })!, /16 TiB/);
  assert.match(reason({}, { hasHoles: true })!, /--dm-crypt/);
  assert.match(reason({ volume: { volumeId: 'v_1', nbd: true } })!, /NBD/);
});

test('what an offer is asked for, and what is here already, have the group and the resources of their configuration', async () => {
  const machine = (id: string, group?: string) => ({
    ...{ id, name: `name of ${id}`, volumeId: null, desired: 'running' as const, claimedBy: null },
    config: { group, resources: { memoryBytes: GIB, cpus: 2 } } as MachineConfig,
  });
  const asked = { memoryBytes: GIB, cpus: 2, volumeLengthBytes: 0, volumeUsedBytes: 0 };
  const db = { machineId: 'm_1', machineName: 'name of m_1', group: 'db', ...asked };
  assert.deepEqual(placementOf(machine('m_1', 'db'), null), db);
  assert.deepEqual(placementOf(machine('m_2'), null).group, null);
  const records = () => [machine('m_1', 'db')] as never;
  const load = await hostLoad(OPTIONS, { records }, volumesOf({}), [], [], false, LACKS);
  assert.deepEqual(load.placed, [db]);
});
