import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ownerOf, type ShimOwner, shimIdOf } from './shim-owner.ts';

const ULID = '01k5abcdefghjkmnpqrstvwxyz';

test('the folders of shims are named as in every version, and say whose they are', () => {
  const named: [owner: ShimOwner, shimId: string][] = [
    [{ kind: 'machine', machineId: `m_${ULID}` }, `m_${ULID}`],
    [{ kind: 'export', runId: `r_${ULID.toUpperCase()}` }, `x_r_${ULID}`],
    [{ kind: 'serve', volumeId: `v_${ULID}` }, `s_${ULID}`],
    [{ kind: 'import', volumeId: `v_${ULID}` }, `i_${ULID}`],
  ];
  for (const [owner, shimId] of named) {
    assert.equal(shimIdOf(owner), shimId);
    assert.deepEqual(ownerOf(shimId), owner);
  }
});

test('what is no folder of a shim is nobody’s', () => {
  for (const name of ['', 'm', 'm_', 'compile-cache', `x_${ULID}`, 'x_r_short', `x_r_${ULID}1`, `y_${ULID}`])
    assert.equal(ownerOf(name), null, name);
});
