import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testSeed } from '../../test/support/seed.ts';
import { isGodwitError } from '../base/errors.ts';
import { encodeMapperTable, parseCloneStatus } from './mapper-table.ts';

test('tables are what dmsetup takes', () => {
  assert.equal(
    encodeMapperTable({
      target: 'clone',
      sectors: 262144,
      metadataDevice: '/dev/loop1',
      targetDevice: '/dev/loop0',
      sourceDevice: '/dev/sda',
      regionSectors: 8,
      hydrating: false,
      hydrationThreshold: 256,
      hydrationBatchRegions: 64,
    }),
    '0 262144 clone /dev/loop1 /dev/loop0 /dev/sda 8 1 no_hydration 4 hydration_threshold 256 hydration_batch_size 64\n',
  );
  assert.equal(
    encodeMapperTable({ target: 'linear', sectors: 8, device: '/dev/loop0', startSector: 16 }),
    '0 8 linear /dev/loop0 16\n',
  );
  assert.equal(encodeMapperTable({ target: 'error', sectors: 8 }), '0 8 error\n');
  const crypt = {
    target: 'crypt',
    sectors: 262144,
    device: '/dev/mapper/below',
    startSector: 0,
    cipher: 'aes-xts-plain64',
    key: new Uint8Array(64).fill(3),
    allowDiscards: true,
  } as const;
  const key = '03'.repeat(64);
  assert.equal(
    encodeMapperTable({ ...crypt, sectorBytes: 4096 }),
    `0 262144 crypt aes-xts-plain64 ${key} 0 /dev/mapper/below 0 2 allow_discards sector_size:4096\n`,
  );
  assert.equal(
    encodeMapperTable({ ...crypt, sectorBytes: 512, allowDiscards: false }),
    `0 262144 crypt aes-xts-plain64 ${key} 0 /dev/mapper/below 0\n`,
  );
});

// Recorded in the lab: dm-clone 1.0.0 of Linux 6.1.
const PAUSED = '8 7/2048 8 0/32768 0 1 no_hydration 4 hydration_threshold 256 hydration_batch_size 64 rw';
const RUNNING = '8 7/2048 8 2816/32768 256 0 4 hydration_threshold 256 hydration_batch_size 64 rw';

test('the status of a clone that does not copy yet, and of one that does', () => {
  const paused = parseCloneStatus(PAUSED);
  assert.deepEqual(paused, {
    mode: 'writable',
    metadataBlocksUsed: 7,
    metadataBlocksTotal: 2048,
    regionSectors: 8,
    regionsHydrated: 0,
    regionsTotal: 32768,
    regionsHydrating: 0,
    hydrating: false,
    hydrationThreshold: 256,
    hydrationBatchRegions: 64,
  });
  const running = parseCloneStatus(RUNNING);
  assert.deepEqual([running.hydrating, running.regionsHydrated, running.regionsHydrating], [true, 2816, 256]);
});

test('a clone whose metadata is lost, or cannot be written', () => {
  assert.equal(parseCloneStatus('Fail').mode, 'failed');
  assert.equal(parseCloneStatus(RUNNING.replace(/rw$/, 'ro')).mode, 'readonly');
});

test('a status of another version is an error, not a guess', () => {
  const strange = [
    '',
    'Error',
    `${RUNNING} new_word`,
    RUNNING.replace(' rw', ''),
    RUNNING.replace('2816/32768', '32769/32768'),
    RUNNING.replace('2816/32768', '0/0'),
    RUNNING.replace('256 0 4', '256 99999999 4'),
    RUNNING.replace('hydration_threshold', 'hydration_limit'),
    RUNNING.replace('hydration_batch_size 64', 'hydration_batch_size many'),
    RUNNING.replace('8 7/2048', '8 7'),
  ];
  for (const text of strange) {
    assert.throws(
      () => parseCloneStatus(text),
      (error) => isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'),
      text,
    );
  }
});

test('no text of any kind takes long or throws anything else', () => {
  const seed = testSeed();
  let state = seed;
  const next = (below: number) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return state % below;
  };
  const words = RUNNING.split(' ');
  for (let round = 0; round < 2_000; round++) {
    const changed = [...words];
    for (let count = next(4); count >= 0; count--)
      changed.splice(next(changed.length), next(3), words[next(words.length)]!);
    try {
      parseCloneStatus(changed.join(' '));
    } catch (error) {
      assert.ok(isGodwitError(error, 'HOST_UNKNOWN_OUTPUT'), `seed ${seed}: ${changed.join(' ')}: ${error}`);
    }
  }
});
