import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ExportSpec, OwnSpec } from '../opening/spec.ts';
import { PLANES } from './planes.ts';

const volume = { volumeId: 'v_1', generation: 1, lengthBytes: 4096, volumeDir: '/v' };
const own: OwnSpec = { kind: 'own', ...volume, access: 'writable' };
const grant = { initiatorIqn: 'i', chapUser: 'u', chapSecret: 'twelve bytes', generation: 1 };
const share = { listenHost: 'h', listenPort: 0, targetIqn: 't', grants: [grant] };
const exported: ExportSpec = { kind: 'export', ...volume, access: 'standby', export: share };
const tls = { certFile: 'c', keyFile: 'k', caFile: 'a' };

test('a worker of the kernel plane opens there what can be, and by volume servers what cannot', () => {
  const { choose } = PLANES.kernel;
  assert.deepEqual(choose(own), { ...own, plane: 'kernel' });
  assert.deepEqual(choose(exported), { ...exported, plane: 'kernel' });
  const secret: ExportSpec = { ...exported, export: { ...share, tls } };
  const long: OwnSpec = { ...own, lengthBytes: 2 ** 50 };
  for (const spec of [secret, long]) assert.equal(choose<OwnSpec | ExportSpec>(spec), spec);
  for (const spec of [own, exported]) assert.equal(PLANES.userspace.choose<OwnSpec | ExportSpec>(spec), spec);
});
