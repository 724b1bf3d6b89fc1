import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { mayLack } from '../../test/support/skips.ts';
import { seededRandom } from '../base/random.ts';
import { EvpXts, evpIsThere } from '../sys/evp-xts.ts';
import { createXts, NativeXts, NodeXts, type XtsCipher } from './xts.ts';

/**
 * IEEE 1619-2018, annex B. Vector 1 has two equal halves of the key, which OpenSSL refuses. `tweak` is the
 * data unit sequence number; the unit is one sector of the length of the text.
 */
const SHORT_VECTORS = [
  {
    name: 'vector 2',
    key: '11'.repeat(16) + '22'.repeat(16),
    tweak: 0x3333333333,
    plain: '44'.repeat(32),
    cipher: 'c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0',
  },
  {
    name: 'vector 3',
    key: `fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0${'22'.repeat(16)}`,
    tweak: 0x3333333333,
    plain: '44'.repeat(32),
    cipher: 'af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89',
  },
];

const countingPlain = Buffer.from(Array.from({ length: 512 }, (_, i) => i & 0xff));

test('vectors of IEEE 1619', { skip: mayLack('symbols of OpenSSL', evpIsThere) }, () => {
  for (const { name, key, tweak, plain, cipher } of SHORT_VECTORS) {
    const bytes = Buffer.from(plain, 'hex');
    const xts = new EvpXts(Buffer.from(key, 'hex'));
    const into = Buffer.alloc(bytes.length);
    xts.encrypt(bytes, into, bytes.length, tweak, 1);
    assert.equal(into.toString('hex'), cipher, name);
    xts.decrypt(into, into, bytes.length, tweak, 1);
    assert.deepEqual(into, bytes, name);
    xts.dispose();
  }
});

test('vectors 4 and 10 of IEEE 1619: whole sectors of 512 bytes', () => {
  for (const { key, tweak, start } of [
    {
      key: '2718281828459045235360287471352631415926535897932384626433832795',
      tweak: 0,
      start: '27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c',
    },
    {
      key: '27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592',
      tweak: 0xff,
      start: '1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b',
    },
  ]) {
    for (const xts of both(Buffer.from(key, 'hex'), 512)) {
      const into = Buffer.alloc(512);
      xts.encrypt(countingPlain, into, tweak);
      assert.equal(into.subarray(0, 32).toString('hex'), start);
      xts.decrypt(into, into, tweak);
      assert.deepEqual(into, countingPlain);
      xts.dispose();
    }
  }
});

test('native and node agree on random sectors, keys and tweaks, in place too', () => {
  const seed = testSeed();
  const random = seededRandom(seed);
  for (let i = 0; i < 60; i++) {
    const sectorBytes = [512, 1024, 2048, 4096][random.below(4)]!;
    const key = random.bytes(random.below(2) === 0 ? 32 : 64);
    const plain = random.bytes(sectorBytes * (1 + random.below(5)));
    // Around the border of 32 bits and far beyond.
    const tweak = [random.below(1000), 2 ** 32 - 8, 2 ** 44 + random.below(99)][random.below(3)]!;
    const [native, node] = both(key, sectorBytes);
    const first = new Uint8Array(plain.length);
    const second = plain.slice();
    native!.encrypt(plain, first, tweak);
    node!.encrypt(second, second, tweak);
    assert.deepEqual(first, second, `seed ${seed}`);
    native!.decrypt(second, second, tweak);
    node!.decrypt(first, first, tweak);
    assert.deepEqual(first, plain);
    assert.deepEqual(second, plain);
    native!.dispose();
    node!.dispose();
  }
});

test('a disposed cipher throws; lengths that are off never reach native code', () => {
  for (const xts of both(seededRandom(1).bytes(64), 512)) {
    xts.dispose();
    xts.dispose();
    assert.throws(() => xts.encrypt(new Uint8Array(512), new Uint8Array(512), 0));
  }
  const xts = createXts(seededRandom(1).bytes(64), 512);
  assert.throws(() => xts.encrypt(new Uint8Array(1024), new Uint8Array(512), 0));
  assert.throws(() => xts.encrypt(new Uint8Array(100), new Uint8Array(100), 0));
  xts.encrypt(new Uint8Array(0), new Uint8Array(0), 0);
  xts.dispose();
});

test('a key of two equal halves is refused', () => {
  assert.throws(() => createXts(new Uint8Array(64).fill(5), 512), /OpenSSL/);
});

function both(key: Uint8Array, sectorBytes: number): XtsCipher[] {
  return [
    evpIsThere ? new NativeXts(key, sectorBytes) : new NodeXts(key, sectorBytes),
    new NodeXts(key, sectorBytes),
  ];
}

test('sectors beyond 2^31 and 2^32 have tweaks of their own, the same in every implementation', {
  skip: mayLack('symbols of OpenSSL', evpIsThere),
}, () => {
  const key = Buffer.from(Array.from({ length: 64 }, (_, index) => index * 3 + 1));
  const plain = Buffer.alloc(4096, 7);
  const seen = new Set<string>();
  // Sectors of 512 bytes: of 1 TiB, 2 TiB, 16 TiB and the last one of 64 TiB; and what 32 bits make of them.
  const tweaks = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 35, 2 ** 37 - 1];
  for (const tweak of tweaks) {
    const results = [new NodeXts(key, 512), new NativeXts(key, 512)].map((cipher) => {
      const into = Buffer.alloc(plain.length);
      cipher.encrypt(plain, into, tweak);
      const back = Buffer.alloc(plain.length);
      cipher.decrypt(into, back, tweak);
      assert.deepEqual(back, plain);
      cipher.dispose();
      return into;
    });
    assert.deepEqual(results[0], results[1], `sector ${tweak}`);
    seen.add(results[0]!.subarray(0, 512).toString('hex'));
  }
  assert.equal(seen.size, tweaks.length, 'no two of these sectors have one tweak');
});
