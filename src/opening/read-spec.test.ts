import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Value } from 'typebox/value';
import { isGodwitError } from '../base/errors.ts';
import { parseSpec } from './read-spec.ts';
import { type CloneSpec, type EncryptionSpec, OpeningSpec } from './spec.ts';

const volume = { volumeId: 'v_1', generation: 2, lengthBytes: 4096, volumeDir: 'dir' };
const attach = {
  ...volume,
  ...({ access: 'standby', whenFull: 'error', leaving: 'running' } as const),
  follows: true,
  instance: 'ext4:7',
  dataLoss: { atMs: 1767225600000, reason: 'flush failed' },
  nbd: { path: '/run/s', owner: { uid: 1, gid: 2 }, client: 'guest' },
} as const;
const encryption: EncryptionSpec = {
  uuid: 'u',
  keyGeneration: 3,
  holes: 'none',
  keyVolumeId: 'v_0',
  keys: { kind: 'exec', argv: ['key', 'of'] },
};
const copy = {
  metadataPath: 'meta',
  validityPath: 'bits',
  hydration: { paused: false, rateBytesPerSecondMax: 0 },
};
const tls = { certFile: 'cert', keyFile: 'key', caFile: 'ca' };

/** One of each kind, with every field that it has. */
const GOOD: OpeningSpec[] = [
  { kind: 'own', ...attach, plane: 'kernel', encryption },
  {
    kind: 'clone',
    ...attach,
    encryption: { ...encryption, source: { uuid: 'old', keyGeneration: 1 } },
    clone: {
      ...copy,
      source: {
        host: 'host',
        port: 3260,
        targetIqn: 'iqn.2026-11.example:t',
        lun: 0,
        initiatorIqn: 'iqn.2026-11.example:i',
        chapUser: 'user',
        chapSecret: 'twelve bytes',
        tls: true,
      },
      tls,
    },
  },
  {
    kind: 'import',
    ...attach,
    encryption,
    clone: {
      ...copy,
      source: {
        location: 'nbd://host/disk',
        sourceLengthBytes: 4096,
        unit: { serial: 's', designators: 'd' },
        nbdExport: { name: 'n', description: 'd', minimumBlockBytes: 512 },
      },
    },
  },
  {
    kind: 'export',
    ...volume,
    access: 'standby',
    export: {
      listenHost: 'host',
      listenPort: 0,
      targetIqn: 'iqn.2026-11.example:t',
      grants: [
        {
          initiatorIqn: 'iqn.2026-11.example:i',
          chapUser: 'user',
          chapSecret: 'twelve bytes',
          generation: 1,
        },
      ],
      tls,
    },
  },
  {
    kind: 'serve',
    ...volume,
    ...({ access: 'writable', whenFull: 'pause' } as const),
    encryption: { ...encryption, keys: { kind: 'file', path: 'keys' } },
    serve: {
      exportName: 'disk',
      listen: {
        kind: 'iscsi',
        host: 'host',
        port: 0,
        targetIqn: 'iqn.2026-11.example:t',
        chapUser: 'user',
        chapSecret: 'twelve bytes',
        tls,
      },
    },
  },
];

/** Paths to every field of the spec. */
function pathsOf(value: unknown, path: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([key, inner]) => pathsOf(inner, [...path, key]))];
}

function withField(good: OpeningSpec, path: readonly string[], value: unknown): unknown {
  const [first, ...rest] = path;
  if (first === undefined) return value;
  const copy = structuredClone(good) as unknown as Record<string, unknown>;
  let at = copy;
  for (const key of path.slice(0, -1)) at = at[key] as Record<string, unknown>;
  at[rest.at(-1) ?? first] = value;
  return copy;
}

test('a spec that fits comes through unchanged', () => {
  for (const good of GOOD) assert.deepEqual(parseSpec(JSON.stringify(good)), good);
});

test('the checks by hand refuse what the schema refuses, and never show a value', () => {
  const strange = fc.oneof(
    fc.jsonValue(),
    fc.constantFrom(
      0,
      1,
      -1,
      255,
      256,
      4095,
      4096,
      65535,
      65536,
      1.5,
      '',
      'own',
      'clone',
      'export',
      'readonly',
      'secret',
      true,
      null,
    ),
  );
  const places = GOOD.flatMap((good) => pathsOf(good).map((path) => [good, path] as const));
  fc.assert(
    fc.property(fc.constantFrom(...places), strange, ([good, path], value) => {
      // Beyond 2^53 the schema still says integer; we do not count that far.
      fc.pre(!Number.isInteger(value) || Number.isSafeInteger(value));
      const spec = withField(good, path, value);
      let accepted = true;
      try {
        parseSpec(JSON.stringify(spec));
      } catch (error) {
        accepted = false;
        assert.ok(isGodwitError(error, 'VOLUME_BAD_SPEC'));
        assert.ok(!error.message.includes('secret') || error.message.includes('Secret'));
      }
      assert.equal(
        accepted,
        Value.Check(OpeningSpec, JSON.parse(JSON.stringify(spec))),
        `${good.kind}: ${path.join('.')}`,
      );
    }),
    { numRuns: 6000 },
  );
  for (const line of ['', '{', 'null', '7']) {
    assert.throws(
      () => parseSpec(line),
      (error) => isGodwitError(error, 'VOLUME_BAD_SPEC'),
      line,
    );
  }
});

test('what names a volume leads into no other folder', () => {
  for (const name of ['../x', 'a/b', '.', '..', 'a\0b', 'x'.repeat(300), 'a b', '']) {
    const isRefused = (error: unknown) => isGodwitError(error, 'VOLUME_BAD_SPEC');
    const clone = GOOD[1] as CloneSpec;
    const source = { ...clone.encryption!.source!, keyVolumeId: name };
    for (const spec of [
      ...GOOD.map((good) => ({ ...good, volumeId: name })),
      { ...clone, encryption: { ...encryption, keyVolumeId: name } },
      { ...clone, encryption: { ...encryption, source } },
    ])
      assert.throws(() => parseSpec(JSON.stringify(spec)), isRefused, name);
  }
});
