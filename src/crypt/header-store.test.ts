import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { type Random, seededRandom } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { encodeHeader } from './binary-header.ts';
import { format } from './format.ts';
import { luks2Geometry } from './geometry.ts';
import { type Luks2Header, readHeader, repairHeader, updateHeader } from './header-store.ts';
import { type JsonObject, parseJson, printJson } from './json.ts';
import { unlock } from './key-slots.ts';
import { openLuks2 } from './open.ts';
import { Secret } from './secret.ts';

const HEADER_BYTES = 16 * 1024;
const LIMITS = { memoryKib: 64, memoryPassesKib: 256, lanes: 2, iterations: 2000 };
const DATA_OFFSET_BYTES = 1024 * 1024;

const key = () => Secret.take(Buffer.from('correct horse'));

async function volume(): Promise<{ device: MemoryDevice; header: Luks2Header }> {
  const device = new MemoryDevice({ lengthBytes: DATA_OFFSET_BYTES + 65536 });
  const { header } = await format(device, key(), LIMITS, {
    dataOffsetBytes: DATA_OFFSET_BYTES,
    kdf: { type: 'pbkdf2', iterations: 1000 },
    keyBytes: 32,
  });
  return { device, header };
}

async function copyOf(device: BlockDevice, role: 'first' | 'second'): Promise<Buffer> {
  const bytes = Buffer.alloc(HEADER_BYTES);
  await device.read(role === 'first' ? 0 : HEADER_BYTES, bytes);
  return bytes;
}

test('either copy stands in for the other, and is mended from it', async () => {
  for (const [role, at] of [
    ['first', 0],
    ['first', 20],
    ['first', 5000],
    ['second', 0],
    ['second', 300],
    ['second', 16000],
  ] as const) {
    const { device, header } = await volume();
    const damaged = await copyOf(device, role);
    damaged[at]! ^= 1;
    await device.write(role === 'first' ? 0 : HEADER_BYTES, damaged);
    const found = await readHeader(device);
    assert.equal(found.damaged, role);
    assert.deepEqual(found.metadata, header.metadata);
    assert.equal(await repairHeader(device, found), true);
    const mended = await readHeader(device);
    assert.equal(mended.damaged, null);
    assert.deepEqual(mended.json, header.json);
    assert.equal(await repairHeader(device, mended), false);
  }
});

test('with a first header that is gone the second is found at any of its places', async () => {
  for (const headerBytes of [16, 64, 4096].map((kib) => kib * 1024)) {
    const device = new MemoryDevice({ lengthBytes: 16 * 1024 * 1024 });
    const options = { dataOffsetBytes: 0, slotsAreaBytes: 512 * 1024, headerBytes };
    const { header } = await format(device, key(), LIMITS, {
      ...options,
      kdf: { type: 'pbkdf2', iterations: 1000 },
    });
    await device.writeZeroes(0, 4096);
    const found = await readHeader(device);
    assert.deepEqual([found.damaged, found.binary], ['first', header.binary]);
  }
});

test('the newer copy counts; an update mends what is damaged before it writes', async () => {
  const { device, header } = await volume();
  const old = await copyOf(device, 'second');
  const updated = await updateHeader(device, header, { ...header.json, tokens: { '0': { type: 'mine' } } });
  assert.equal(updated.binary.sequenceId, header.binary.sequenceId + 1n);
  await device.write(HEADER_BYTES, old);
  const found = await readHeader(device);
  assert.equal(found.damaged, 'second');
  assert.deepEqual(found.json.tokens, { '0': { type: 'mine' } });
  await updateHeader(device, found, found.json);
  assert.equal((await readHeader(device)).damaged, null);
});

test('what is not understood is kept as it is: tokens, fields, numbers beyond 2^53', async () => {
  const { device, header } = await volume();
  const token = '{"type":"vault","id":18446744073709551615,"nested":{"ratio":1.10,"list":[null,true]}}';
  const json = parseJson(printJson(header.json).toString().replace('"tokens":{}', `"tokens":{"3":${token}}`));
  (json.config as JsonObject).flags = ['allow-discards'];
  const updated = await updateHeader(device, header, json);
  await updateHeader(device, updated, (await readHeader(device)).json);
  const text = (await copyOf(device, 'first')).toString();
  assert.ok(text.includes(token), text.slice(4096, 6000));
  assert.ok(text.includes('"flags":["allow-discards"]'));
});

test('refused by name: requirements, other ciphers, integrity, LUKS1', async () => {
  const edits: [what: string, edit: (json: Json) => void][] = [
    ['requirement', (json) => (json.config.requirements = { mandatory: ['online-reencrypt-v2'] })],
    ['requirement', (json) => (json.config.requirements = { mandatory: ['later-thing'] })],
    ['cipher', (json) => (json.segments[0].encryption = 'aes-cbc-essiv:sha256')],
    ['integrity', (json) => (json.segments[0].integrity = { type: 'hmac(sha256)' })],
    ['segment', (json) => (json.segments[0].type = 'linear')],
    ['number of segments', (json) => (json.segments[1] = json.segments[0])],
    ['KDF', (json) => (json.keyslots[0].kdf.type = 'scrypt')],
    ['hash', (json) => (json.keyslots[0].af.hash = 'whirlpool')],
  ];
  for (const [what, edit] of edits) {
    const { device, header } = await volume();
    const json = structuredClone(header.json);
    edit(json as Json);
    // Only the newer copy says so: the older one must not be taken instead.
    const binary = { ...header.binary, sequenceId: header.binary.sequenceId + 1n };
    await device.write(0, encodeHeader(binary, printJson(json), 'first'));
    await assert.rejects(
      readHeader(device),
      (error) => isGodwitError(error, 'CRYPT_UNSUPPORTED') && error.values.what === what,
      what,
    );
  }
  const { device } = await volume();
  const first = await copyOf(device, 'first');
  first.writeUInt16BE(1, 6);
  await device.write(0, first);
  await assert.rejects(readHeader(device), (error) => isGodwitError(error, 'CRYPT_UNSUPPORTED'));
});

test('contradictions are found: areas that overlap or leave their place, sizes, digests', async () => {
  const edits: ((json: Json) => void)[] = [
    (json) => (json.keyslots[0].area.offset = '16384'),
    (json) => (json.keyslots[0].area.offset = `${DATA_OFFSET_BYTES}`),
    (json) => (json.keyslots[0].area.size = '4096'),
    (json) => (json.keyslots[1] = json.keyslots[0]),
    (json) => (json.keyslots[7] = { type: 'later', area: json.keyslots[0].area }),
    (json) => (json.keyslots[32] = json.keyslots[0]),
    (json) => (json.keyslots[0].key_size = -1),
    (json) => (json.keyslots[0].af.stripes = 1e9),
    (json) => (json.config.json_size = '4096'),
    (json) => (json.config.keyslots_size = `${2 ** 40}`),
    (json) => (json.segments = {}),
    (json) => (json.segments[0].offset = '18446744073709551615'),
    (json) => (json.segments[0].offset = 4096),
    (json) => (json.segments[0].sector_size = 768),
    (json) => (json.digests = {}),
    (json) => (json.digests[1] = json.digests[0]),
    (json) => (json.digests[0].keyslots = ['0', '9']),
    (json) => (json.digests[0].keyslots = ['0', '0']),
    (json) => (json.digests[0].keyslots = ['__proto__']),
    (json) => (json.digests[0].salt = '!!'),
    (json) => (json.tokens = []),
  ];
  const { header } = await volume();
  for (const edit of edits) {
    const json = structuredClone(header.json);
    edit(json as Json);
    await assert.rejects(
      readHeader(deviceOf(header, printJson(json))),
      (error) => isGodwitError(error, 'CRYPT_HEADER_CORRUPT'),
      edit.toString(),
    );
  }
});

test('JSON that would exhaust the stack or does not end is refused', async () => {
  const { header } = await volume();
  for (const text of [
    '['.repeat(10_000),
    `{"a":${'{"a":'.repeat(1000)}1${'}'.repeat(1001)}`,
    '',
    'null',
    '[]',
    '{"a":',
    '"\\',
  ]) {
    await assert.rejects(readHeader(deviceOf(header, Buffer.from(text))), (error) =>
      isGodwitError(error, 'CRYPT_HEADER_CORRUPT'),
    );
  }
  const behind = Buffer.concat([printJson(header.json), Buffer.from('\0x')]);
  await assert.rejects(readHeader(deviceOf(header, behind)), /bytes behind its end/);
});

const FUZZ_RUNS = process.env.GODWIT_LONG === '1' ? 1_000_000 : 20_000;

test(`${FUZZ_RUNS} hostile headers end in a value or a typed error`, async (t) => {
  const seed = testSeed();
  const random = seededRandom(seed);
  const { header } = await volume();
  const text = printJson(header.json).toString();
  const outcomes = new Map<string, number>();
  for (let i = 0; i < FUZZ_RUNS; i++) {
    const device = hostileDevice(random, header, text);
    let outcome = 'value';
    try {
      const found = await readHeader(device);
      luks2Geometry(found);
      using volumeKey = Secret.take(seededRandom(i).bytes(32));
      const opened = openLuks2(new MemoryDevice({ lengthBytes: 2 ** 40 }), found, volumeKey);
      // The keys of the slots are gone, so it cannot open; it must say so.
      if (i % 100 === 0) await unlock(device, found, key(), LIMITS);
      await opened.close();
    } catch (error) {
      if (!(error instanceof GodwitError) || !/^(CRYPT|BLOCK_BAD_GEOMETRY)/.test(error.code)) {
        t.diagnostic(`run ${i}`);
        throw error;
      }
      outcome = error.code;
    }
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  }
  // The generator must reach past the checksums, in both directions.
  for (const code of ['value', 'CRYPT_HEADER_CORRUPT', 'CRYPT_UNSUPPORTED', 'CRYPT_NOT_LUKS2'])
    assert.ok((outcomes.get(code) ?? 0) > FUZZ_RUNS / 1000, `${code}: ${JSON.stringify([...outcomes])}`);
});

// biome-ignore lint/suspicious/noExplicitAny: JSON that tests damage at will.
type Json = any;

/** A device whose first header holds this text under a right checksum, and no second one. */
function deviceOf(header: Luks2Header, text: Buffer): MemoryDevice {
  return new MemoryDevice({
    lengthBytes: 2 * DATA_OFFSET_BYTES,
    content: encodeHeader(header.binary, text, 'first'),
  });
}

function hostileDevice(random: Random, header: Luks2Header, text: string): MemoryDevice {
  const kind = random.below(10);
  if (kind === 0) {
    // Bytes anywhere, checksum left as it was.
    const bytes = encodeHeader(header.binary, Buffer.from(text), 'first');
    for (let n = random.below(4); n >= 0; n--)
      bytes[random.below(random.below(2) ? 512 : bytes.length)] = random.below(256);
    return new MemoryDevice({ lengthBytes: 65536, content: bytes });
  }
  if (kind === 1) {
    const start = encodeHeader(header.binary, Buffer.from(text), 'first').subarray(0, 512 * random.below(33));
    return new MemoryDevice({ lengthBytes: 16384 + 512 * random.below(64), content: start });
  }
  if (kind <= 3) return deviceOf(header, Buffer.from(mutateText(random, text)));
  const json = JSON.parse(text) as JsonObject;
  for (let n = random.below(3); n >= 0; n--) mutateJson(random, json);
  return deviceOf(header, printJson(json));
}

function mutateText(random: Random, text: string): string {
  const at = random.below(text.length);
  const pieces = [
    '"',
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '\\',
    '0',
    '-1',
    '1e999',
    'null',
    '\u0000',
    text.slice(0, 50),
  ];
  return text.slice(0, at) + pieces[random.below(pieces.length)] + text.slice(at + random.below(3));
}

const VALUES: readonly unknown[] = [
  null,
  true,
  0,
  -1,
  1,
  64,
  4096,
  2 ** 31,
  2 ** 53,
  1e308,
  0.5,
  '',
  '0',
  '4096',
  '32768',
  '-1',
  '18446744073709551616',
  'dynamic',
  'aes-xts-plain64',
  'argon2id',
  'pbkdf2',
  'sha512',
  'AAAAAAAAAAA=',
  '__proto__',
  [],
  {},
  ['0'],
  { '0': {} },
];

/** Replaces, removes, adds or copies a member somewhere. */
function mutateJson(random: Random, json: JsonObject): void {
  let target: JsonObject = json;
  for (let depth = random.below(5); depth > 0; depth--) {
    const children = Object.values(target).filter((value) => typeof value === 'object' && value !== null);
    if (children.length === 0) break;
    target = children[random.below(children.length)] as JsonObject;
  }
  const keys = Object.keys(target);
  const name = keys[random.below(Math.max(1, keys.length))] ?? '0';
  const action = random.below(8);
  if (action === 0) delete target[name];
  else if (action === 1) target[`${random.below(40)}`] = structuredClone(target[name]);
  else target[name] = structuredClone(VALUES[random.below(VALUES.length)]);
}
