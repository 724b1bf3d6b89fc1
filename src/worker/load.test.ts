import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { MachineConfig } from '../machine/config.ts';
import type { PrepareRequest } from '../migration/peer.ts';
import { diskNeedBytes, unpromisedDiskBytes } from '../migration/placement.ts';
import { hostLoad, placementOf } from './load.ts';

const GIB = 2 ** 30;
const OPTIONS = {
  name: 'worker-1',
  capacity: { memoryBytes: 8 * GIB, cpus: 4, diskBytes: null },
  tls: null,
  plane: 'userspace' as const,
  keys: null,
};

const LACKS = () => null;

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
  imports: { volumeId: string; usedBytes: number }[],
): Promise<number> {
  const load = await hostLoad(OPTIONS, { records: () => [] }, volumesOf(here), moves, imports, false, LACKS);
  return unpromisedDiskBytes(load);
}

test('disk is promised to volumes that arrive, by a move or an import, as far as they are not here', async () => {
  const need = diskNeedBytes({ volumeUsedBytes: 10 * GIB });
  assert.equal(await freeBytes({}, [], []), 100 * GIB);
  assert.equal(await freeBytes({}, [move('v_1', 10 * GIB)], []), 100 * GIB - need);
  assert.equal(await freeBytes({}, [], [{ volumeId: 'v_2', usedBytes: 10 * GIB }]), 100 * GIB - need);
  const both = await freeBytes({}, [move('v_1', 10 * GIB)], [{ volumeId: 'v_2', usedBytes: 10 * GIB }]);
  assert.equal(both, 100 * GIB - 2 * need);
});

test('what has arrived is counted once, and more than was promised gives nothing back', async () => {
  const need = diskNeedBytes({ volumeUsedBytes: 10 * GIB });
  const importing = [{ volumeId: 'v_2', usedBytes: 10 * GIB }];
  assert.equal(await freeBytes({ v_2: 4 * GIB }, [], importing), 100 * GIB - need);
  assert.equal(await freeBytes({ v_2: 20 * GIB }, [], importing), 80 * GIB);
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
