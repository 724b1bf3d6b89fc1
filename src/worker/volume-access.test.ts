import assert from 'node:assert/strict';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import type { PrepareRequest } from '../contract/peer.ts';
import { VolumeStore } from '../volume/index.ts';
import { VolumeAccess } from './volume-access.ts';

const SOURCE = {
  ...{ host: '127.0.0.1', port: 3260, targetIqn: 'iqn.2026-11.example:v', lun: 0 },
  ...{ initiatorIqn: 'iqn.2026-11.example:w', chapUser: 'move', chapSecret: 'a secret of twelve' },
};

test('the clone of a move that is opened again after its machine was healthy fetches on by itself', async (t) => {
  const dir = scratchDir(t);
  const options = { clock: systemClock, random: systemRandom, logger: silentLogger };
  const volumes = await VolumeStore.open(dir, options);
  const volume = { id: 'v_1', name: 'db', lengthBytes: 2 ** 20, filesystem: 'none' as const, generation: 2 };
  await volumes.createIncoming(volume);
  const record = await volumes.apply('v_1', { kind: 'activate', generation: 2 });
  const hydrationOf = async (isBooting: boolean) => {
    const request = { volume: { source: SOURCE } } as PrepareRequest;
    const access = new VolumeAccess({
      ...{ volumes, validityDir: dir, tls: null, plane: 'userspace', keys: null, whenFull: 'pause' },
      incoming: () => ({ request, isBooting }),
      hydrationRateBytesPerSecondMax: 1000,
      beforeAttach: async () => {},
    });
    const spec = await access.spec(record, 'writable');
    return spec.kind === 'clone' && spec.clone.hydration;
  };
  assert.deepEqual(await hydrationOf(true), { paused: true, rateBytesPerSecondMax: 0 });
  assert.deepEqual(await hydrationOf(false), { paused: false, rateBytesPerSecondMax: 1000 });
});
