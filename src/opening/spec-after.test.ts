import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { parseSpec } from './read-spec.ts';
import { isSameOpening, shown } from './role.ts';
import type { ExportSpec, OpeningSpec } from './spec.ts';
import { specAfter, specAtPort, specFollowing, specWithLoss } from './spec-after.ts';

const SPECS = (
  JSON.parse(readFileSync(new URL('./recorded-specs.json', import.meta.url), 'utf8')) as unknown[]
).map((spec) => parseSpec(JSON.stringify(spec)));

function ofKind<Kind extends OpeningSpec['kind']>(kind: Kind): Extract<OpeningSpec, { kind: Kind }> {
  return SPECS.find((spec) => spec.kind === kind) as Extract<OpeningSpec, { kind: Kind }>;
}

test('the next server is told what was commanded since, and each kind only what it has', () => {
  const hydration = { paused: false, rateBytesPerSecondMax: 7 };
  const asked = { op: 'hydration', args: hydration } as const;
  for (const copy of [ofKind('clone'), ofKind('import')]) {
    const after = specAfter(copy, asked);
    assert.deepEqual(after, { ...copy, clone: { ...copy.clone, hydration } });
  }
  for (const spec of [ofKind('own'), ofKind('export'), ofKind('serve')])
    assert.equal(specAfter(spec, asked), spec);

  const own = ofKind('own');
  assert.equal(
    specAfter({ ...own, access: 'standby' }, { op: 'activate', args: { access: 'writable' } }).access,
    'writable',
  );
  assert.equal(specAfter(own, { op: 'seal', args: {} }).access, 'readonly');
  assert.deepEqual(specAfter(own, { op: 'flush', args: {} }), own);
  const serve = ofKind('serve');
  assert.equal(specAfter(serve, { op: 'seal', args: {} }).access, 'writable');

  const room = (args: { leaving: boolean; stopped?: boolean }) => specAfter(own, { op: 'room', args });
  assert.deepEqual(room({ leaving: true, stopped: false }), { ...own, leaving: 'running' });
  assert.deepEqual(room({ leaving: true, stopped: true }), { ...own, leaving: 'stopped' });
  assert.deepEqual(room({ leaving: true }), { ...own, leaving: 'stopped' });
  assert.deepEqual(specAfter(room({ leaving: true }), { op: 'room', args: { leaving: false } }), own);
});

test('a copy that is finished is opened as an own volume, with its key and without that of its source', () => {
  const clone = ofKind('clone');
  const { clone: _clone, encryption, ...rest } = clone;
  const after = specAfter(clone, { op: 'finish', args: {} });
  assert.equal(after.kind, 'own');
  assert.ok(!('clone' in after));
  assert.deepEqual(parseSpec(JSON.stringify(after)), after);
  const { source: _source, ...key } = encryption!;
  assert.deepEqual(after, { ...rest, kind: 'own', encryption: key });
  const own = ofKind('own');
  assert.equal(specAfter(own, { op: 'finish', args: {} }), own);
});

test('a grant replaces the one of its initiator, and is revoked by its name', () => {
  const spec = ofKind('export');
  const [grant] = spec.export.grants;
  const grantsAfter = (after: OpeningSpec) => (after as ExportSpec).export.grants;
  const renewed = { ...grant!, chapSecret: 'another secret' };
  const other = { ...grant!, initiatorIqn: 'iqn.2026-11.dev.godwit:other' };
  const two = specAfter(specAfter(spec, { op: 'grant', args: renewed }), { op: 'grant', args: other });
  assert.deepEqual(grantsAfter(two), [renewed, other]);
  const { initiatorIqn } = renewed;
  assert.deepEqual(grantsAfter(specAfter(two, { op: 'revoke', args: { initiatorIqn } })), [other]);
});

test('the next server listens where the first one was, and knows whom it follows', () => {
  assert.equal((specAtPort(ofKind('export'), 7) as ExportSpec).export.listenPort, 7);
  const serve = ofKind('serve');
  assert.equal(specAtPort(serve, 7), serve, 'a unix socket has no port');
  const listen = { kind: 'nbd', host: '::1', port: 0 } as const;
  const nbd = { ...serve, serve: { ...serve.serve, listen } };
  assert.deepEqual(specAtPort(nbd, 7), { ...nbd, serve: { ...nbd.serve, listen: { ...listen, port: 7 } } });

  const own = ofKind('own');
  assert.deepEqual(specFollowing(own, '8:1'), { ...own, follows: true, instance: '8:1' });
  assert.deepEqual(specFollowing(specFollowing(own, '8:1'), null), { ...own, follows: true });
  assert.equal(specFollowing(serve, '8:1'), serve);
  const loss = { atMs: 1, reason: 'flush failed' };
  assert.deepEqual(specWithLoss(own, loss), { ...own, dataLoss: loss });
  assert.deepEqual(specWithLoss(serve, loss), { ...serve, dataLoss: loss });
  const share = ofKind('export');
  assert.equal(specWithLoss(share, loss), share, 'nobody writes there');
});

test('a status shows what is open, and no secret of it', () => {
  const secrets = ['c2VjcmV0', '/usr/bin/key-of', 'nbd://10.0.0.9', 'key.pem'];
  for (const spec of SPECS) {
    const text = JSON.stringify(shown(spec));
    for (const secret of secrets) assert.ok(!text.includes(secret), `${spec.kind}: ${secret}`);
    assert.ok(text.includes(spec.volumeId) && text.includes(spec.access));
  }
  assert.deepEqual(
    SPECS.map((spec) => shown(spec).role),
    ['attach', 'attach', 'attach', 'attach', 'export', 'export', 'serve'],
  );
  assert.deepEqual(shown(SPECS[1]!).nbd, (SPECS[1] as { nbd?: unknown }).nbd);
});

test('the same opening is the same volume, generation and role, whether it is a copy or whole', () => {
  const own = ofKind('own');
  assert.ok(isSameOpening(own, ofKind('clone')));
  assert.ok(!isSameOpening(own, ofKind('export')));
  assert.ok(!isSameOpening(own, { ...own, generation: own.generation + 1 }));
  assert.ok(!isSameOpening(own, { ...own, volumeId: 'v_2' }));
});
