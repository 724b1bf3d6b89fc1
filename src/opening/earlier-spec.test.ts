import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { forAnyShim, withKind } from './earlier-spec.ts';
import { parseSpec } from './read-spec.ts';
import type { OpeningSpec } from './spec.ts';

type Earlier = Record<string, unknown> & { role: string };

/** What commit b44e567, the last one without kinds, told volume servers. */
const RECORDED = JSON.parse(
  readFileSync(new URL('./recorded-specs.json', import.meta.url), 'utf8'),
) as Earlier[];
const KINDS = ['own', 'own', 'clone', 'import', 'export', 'export', 'serve'];

const line = (value: unknown) => JSON.stringify(value);

test('what an earlier version told a volume server is read, all of it, with its kind', () => {
  const read = RECORDED.map((spec) => parseSpec(line(spec)));
  assert.deepEqual(
    read.map(({ kind }) => kind),
    KINDS,
  );
  for (const [index, spec] of read.entries()) {
    const { role: _role, ...rest } = RECORDED[index]!;
    assert.deepEqual(spec, { ...rest, kind: KINDS[index] });
  }
});

test('a shim of an earlier version finds its role, and passes the rest on as it came', () => {
  for (const [index, recorded] of RECORDED.entries()) {
    const spec = parseSpec(line(recorded));
    const told = forAnyShim(spec) as unknown as Earlier;
    // Every field that it looks at is where it was.
    assert.deepEqual(told, { ...recorded, kind: KINDS[index] });
    assert.deepEqual(parseSpec(line(told)), spec);
  }
});

test('a copy that has become whole in the hands of an earlier shim is a plain volume', () => {
  for (const kind of ['clone', 'import']) {
    const copy = parseSpec(line(RECORDED[KINDS.indexOf(kind)]));
    // What it does at `finish`.
    const { clone: _dropped, ...rest } = forAnyShim(copy) as unknown as Earlier & { clone: unknown };
    const {
      kind: _kind,
      clone: _clone,
      encryption,
      ...plain
    } = copy as OpeningSpec & Record<string, unknown>;
    const { source: _source, ...key } = (encryption ?? {}) as Record<string, unknown>;
    assert.deepEqual(parseSpec(line(rest)), {
      ...plain,
      kind: 'own',
      ...(encryption ? { encryption: key } : {}),
    });
    // Of a shim that knows kinds that would be a defect.
    const { role: _role, ...tagged } = rest;
    assert.throws(() => parseSpec(line(tagged)), { code: 'VOLUME_BAD_SPEC' });
  }
});

test('a shim passes on what only later versions know', () => {
  const later = { kind: 'log', volumeId: 'v_1', bucket: 'b' };
  assert.deepEqual(withKind(later), later);
  assert.deepEqual(withKind({ ...later, role: 'attach' }), later);
  const [own] = RECORDED;
  assert.equal(withKind({ ...own, colour: 'red' }).colour, 'red');
});
