import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Value } from 'typebox/value';
import { VolumeRecord } from './record.ts';
import { wrongField } from './record-file.ts';

const good: VolumeRecord = {
  formatVersion: 1,
  id: 'v_1',
  name: 'data',
  lengthBytes: 4096,
  filesystem: 'ext4',
  generation: 1,
  state: 'ready',
  createdAtMs: 1,
  machineId: null,
  destroyAfterMs: null,
  encryption: { uuid: 'u', keyGeneration: 4, source: { uuid: 'old', keyGeneration: 1 } },
};

test('the shape says what the schema says', () => {
  assert.equal(wrongField(good), null);
  const strange = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom<unknown>(
      ...[{ uuid: 'x' }, { uuid: 1 }, [], { uuid: 'x', keyGeneration: 0 }, { uuid: 'x', keyGeneration: 2 }],
      ...[
        { uuid: 'x', keyVolumeId: 'v_2' },
        { uuid: 'x', keyVolumeId: 2 },
        { uuid: 'x', source: { uuid: 'y', keyGeneration: 1, keyVolumeId: null } },
        { uuid: 'x', holes: 'none' },
        { uuid: 'x', holes: 'all' },
        { uuid: 'x', source: {} },
        { uuid: 'x', source: [] },
        { uuid: 'x', source: null },
      ],
      ...[
        { uuid: 'x', source: { uuid: 'y' } },
        { uuid: 'x', source: { uuid: 'y', keyGeneration: 1 } },
      ],
    ),
    fc.constantFrom(0, 1, 4095, 4096, 1.5, -1, 'ext4', 'xfs', 'ready', 'sealed', 'clone', null, undefined),
  );
  const changed = fc
    .tuple(fc.constantFrom(...Object.keys(good)), strange)
    .map(([field, value]) => ({ ...good, [field]: value }));
  fc.assert(
    fc.property(fc.oneof(changed, fc.jsonValue()), (value) => {
      // Beyond 2^53 the schema still says integer; we do not count that far.
      fc.pre(!Object.values(value ?? {}).some((one) => Number.isInteger(one) && !Number.isSafeInteger(one)));
      assert.equal(wrongField(value) === null, Value.Check(VolumeRecord, value), JSON.stringify(value));
    }),
    { numRuns: 2000 },
  );
});
