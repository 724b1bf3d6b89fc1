import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isGodwitError } from '../base/errors.ts';
import {
  formatBinary,
  formatTextKeys,
  parseBinary,
  parseNumber,
  parseTextKeys,
  parseUniqueTextKeys,
} from './text-keys.ts';

const protocol = (error: unknown): boolean => isGodwitError(error, 'ISCSI_PROTOCOL');

test('pairs come back in order, repeated keys too', () => {
  const pairs: [string, string][] = [
    ['TargetName', 'iqn.a'],
    ['TargetAddress', '127.0.0.1:3260,1'],
    ['TargetName', 'iqn.b'],
    ['X-empty', ''],
  ];
  assert.deepEqual(parseTextKeys(formatTextKeys(pairs)), pairs);
  assert.throws(() => parseUniqueTextKeys(formatTextKeys(pairs)), protocol);
});

test('a missing last NUL and several NULs are taken', () => {
  assert.deepEqual(parseTextKeys(Buffer.from('A=1\0\0\0B=2')), [
    ['A', '1'],
    ['B', '2'],
  ]);
});

test('broken text is a protocol error', () => {
  for (const text of ['novalue\0', '=x\0', 'A b=1\0', `${'K'.repeat(64)}=1\0`, `A=${'v'.repeat(8193)}\0`]) {
    assert.throws(() => parseTextKeys(Buffer.from(text)), protocol, text.slice(0, 20));
  }
  assert.throws(() => parseTextKeys(Buffer.from('A=1\0'.repeat(257))), protocol);
});

test('random bytes end in pairs or a protocol error', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      try {
        parseTextKeys(bytes);
      } catch (error) {
        assert.ok(protocol(error));
      }
    }),
  );
});

test('numbers: decimal or hexadecimal, in range, nothing else', () => {
  assert.equal(parseNumber('512', 512, 1024), 512);
  assert.equal(parseNumber('0x400', 512, 1024), 1024);
  for (const text of ['511', '1025', '', '-1', '1e3', '0512', ' 600', '600 ', '0x', '99999999999']) {
    assert.equal(parseNumber(text, 512, 1024), null, text);
  }
});

test('binary: hexadecimal and base64', () => {
  assert.deepEqual(parseBinary(formatBinary(Uint8Array.of(0, 255))), Buffer.from([0, 255]));
  assert.deepEqual(parseBinary('0bAP8='), Buffer.from([0, 255]));
  for (const text of ['', '0x', '0x1', '0xzz', '00ff', '0b']) assert.equal(parseBinary(text), null, text);
});
