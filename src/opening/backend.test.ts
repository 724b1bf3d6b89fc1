import assert from 'node:assert/strict';
import { test } from 'node:test';
import { planeOf } from './backend.ts';
import type { OwnSpec } from './spec.ts';

test('the plane of an opening is that of its spec, but for a guest that comes through NBD', () => {
  const own = { kind: 'own', volumeId: 'v_1' } as OwnSpec;
  const nbd = { client: 'guest' } as NonNullable<OwnSpec['nbd']>;
  assert.equal(planeOf(own), 'userspace');
  assert.equal(planeOf({ ...own, nbd }), 'userspace');
  assert.equal(planeOf({ ...own, plane: 'kernel' }), 'kernel');
  assert.equal(planeOf({ ...own, plane: 'kernel', nbd }), 'userspace');
});
