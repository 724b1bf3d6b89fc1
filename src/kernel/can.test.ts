import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Wanted } from '../opening/backend.ts';
import { kernelCan, refusedByKernel } from './can.ts';

const TIB = 2 ** 40;
const own: Wanted = { kind: 'own', lengthBytes: TIB };
const source = { host: '10.0.0.1' };

test('the kernel plane opens plain volumes, clones of workers and exports to one of them', () => {
  const fits: Wanted[] = [
    own,
    { ...own, lengthBytes: 16 * TIB },
    { ...own, encryption: { holes: 'none' } },
    { ...own, kind: 'clone', clone: { source } },
    { ...own, kind: 'clone', clone: { source: { ...source, tls: false } }, encryption: { holes: 'none' } },
    { ...own, kind: 'export', export: { grants: [{}] } },
  ];
  for (const wanted of fits) assert.equal(kernelCan(wanted), null, JSON.stringify(wanted));
});

test('what the kernel plane cannot do is refused with why, and each for its own reason', () => {
  const refused: [wanted: Wanted, reason: RegExp, code: string][] = [
    [{ ...own, lengthBytes: 16 * TIB + 4096 }, /longer than 16 TiB/, 'VOLUME_BAD_SPEC'],
    [{ ...own, nbd: {} }, /NBD socket/, 'VOLUME_BAD_SPEC'],
    [{ ...own, encryption: {} }, /not made for dm-crypt/, 'PLANE_NOT_FOR_DM_CRYPT'],
    [
      { ...own, kind: 'clone', clone: { source }, encryption: { holes: 'none', source: {} } },
      /another key/,
      'PLANE_SOURCE_UNSUPPORTED',
    ],
    [
      { ...own, kind: 'import', clone: { source: { location: 'nbd://host' } } },
      /another system/,
      'PLANE_SOURCE_UNSUPPORTED',
    ],
    [
      { ...own, kind: 'clone', clone: { source: { ...source, tls: true } } },
      /TLS/,
      'PLANE_SOURCE_UNSUPPORTED',
    ],
    [{ ...own, kind: 'export', export: { grants: [{}], tls: {} } }, /TLS/, 'VOLUME_BAD_SPEC'],
    [{ ...own, kind: 'export', export: { grants: [] } }, /one initiator/, 'VOLUME_BAD_SPEC'],
    [{ ...own, kind: 'export', export: { grants: [{}, {}] } }, /one initiator/, 'VOLUME_BAD_SPEC'],
    [{ ...own, kind: 'serve' }, /clients of other systems/, 'VOLUME_BAD_SPEC'],
  ];
  for (const [wanted, reason, code] of refused) {
    const refusal = kernelCan(wanted);
    assert.match(refusal?.reason ?? '', reason, JSON.stringify(wanted));
    const error = refusedByKernel('v_1', refusal!);
    assert.equal(error.code, code);
    assert.match(error.message, reason);
  }
});
