import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatDuration, formatSize, parseDuration, parseSize } from './units.ts';

test('sizes are read', () => {
  const cases: [string, number][] = [
    ['0', 0],
    ['4096', 4096],
    ['10GiB', 10 * 2 ** 30],
    ['10 gib', 10 * 2 ** 30],
    ['1.5g', 1.5 * 2 ** 30],
    ['500MB', 500e6],
    ['16M', 16 * 2 ** 20],
    ['2T', 2 ** 41],
  ];
  for (const [text, bytes] of cases) assert.equal(parseSize(text), bytes, text);
  for (const bad of ['', 'x', '-1', '1e9', '10 apples', '1..2', 'GiB', '9999999TiB', '10G B']) {
    assert.throws(() => parseSize(bad), { code: 'CLI_INVALID_SIZE' }, bad);
  }
});

test('sizes are written with three digits', () => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '0.98 KiB'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [10 * 1024, '10 KiB'],
    [5 * 2 ** 20, '5 MiB'],
    [100 * 2 ** 30, '100 GiB'],
    [1023 * 2 ** 20, '1 GiB'],
    [2 ** 60, '1024 PiB'],
  ];
  for (const [bytes, text] of cases) assert.equal(formatSize(bytes), text, String(bytes));
});

test('durations are read and written', () => {
  assert.equal(parseDuration('500ms'), 500);
  assert.equal(parseDuration('10'), 10_000);
  assert.equal(parseDuration('1.5m'), 90_000);
  for (const bad of ['', 's', '-1s', '5 minutes']) {
    assert.throws(() => parseDuration(bad), { code: 'CLI_INVALID_DURATION' }, bad);
  }
  const cases: [number, string][] = [
    [0, '0 ms'],
    [412.4, '412 ms'],
    [999.6, '1 s'],
    [8_312, '8.3 s'],
    [59_949, '60 s'],
    [60_000, '1 m 00 s'],
    [245_000, '4 m 05 s'],
    [3_599_999, '1 h 00 m'],
    [12_000_000, '3 h 20 m'],
    [2 * 86_400_000 + 3 * 3_600_000, '2 d 3 h'],
  ];
  for (const [durationMs, text] of cases) assert.equal(formatDuration(durationMs), text, String(durationMs));
});
