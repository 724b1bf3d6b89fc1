import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isGodwitError } from '../base/errors.ts';
import { parseNbdUri } from './client-uri.ts';

const PLAIN = { mode: 'allow', hostname: null, verifyPeer: true, certificatesDir: null };

test('the examples of the URI document', () => {
  const names: [string, string][] = [
    ['nbd://example.com/disk', 'disk'],
    ['nbd+unix:///disk?socket=sock', 'disk'],
    ['nbd://example.com/', ''],
    ['nbd://example.com', ''],
    ['nbd://example.com//disk', '/disk'],
    ['nbd://example.com/hello%20world', 'hello world'],
  ];
  for (const [uri, name] of names) assert.equal(parseNbdUri(uri).exportName, name, uri);
  assert.deepEqual(parseNbdUri('nbd://example.com:10810/export').address, {
    host: 'example.com',
    port: 10810,
  });
  assert.deepEqual(parseNbdUri('nbd+unix:///export?socket=nbd.sock').address, { path: 'nbd.sock' });
  assert.deepEqual(parseNbdUri('nbd+unix:///?socket=%00/abstract').address, { path: '\0/abstract' });
});

test('schemes, hosts and TLS parameters', () => {
  assert.deepEqual(parseNbdUri('nbd://[fe80::1]'), {
    address: { host: 'fe80::1', port: 10809 },
    exportName: '',
    tls: PLAIN,
  });
  assert.deepEqual(parseNbdUri('nbd://').address, { host: 'localhost', port: 10809 });
  assert.deepEqual(
    parseNbdUri('NBDS://h:1/x?tls-hostname=a.b&tls-verify-peer=0&tls-certificates=%2Fpki&tls-type=x509'),
    {
      address: { host: 'h', port: 1 },
      exportName: 'x',
      tls: { mode: 'require', hostname: 'a.b', verifyPeer: false, certificatesDir: '/pki' },
    },
  );
  assert.equal(parseNbdUri('nbds+unix:///?socket=/s&x-anything=1').tls.mode, 'require');
});

test('what is no URI of an export is refused with a reason', () => {
  const wrong = [
    '',
    'disk.img',
    'http://host/',
    'constructor://host/',
    'nbd://host:0/',
    'nbd://host:65536/',
    'nbd://host:port/',
    'nbd://user@host/',
    'nbd://ho[st/',
    'nbd://host/%zz',
    'nbd://host/%00',
    'nbd://host/#part',
    `nbd://host/${'a'.repeat(4097)}`,
    'nbd+unix:///disk',
    'nbd+unix:///?socket=',
    'nbd+unix://host/?socket=s',
    `nbd+unix:///?socket=${'a'.repeat(108)}`,
    'nbd://host/?socket=s',
    'nbd://host/?unknown=1',
    'nbd://host/?constructor=1',
    'nbds://host/?tls-type=psk',
    'nbds://host/?tls-verify-peer=yes',
    'nbds://host/?tls-hostname=a&tls-hostname=b',
  ];
  for (const uri of wrong) {
    assert.throws(
      () => parseNbdUri(uri),
      (error) => isGodwitError(error, 'NBD_BAD_URI'),
      uri,
    );
  }
});

test('any text ends in an address or the typed error; a name survives its encoding', () => {
  fc.assert(
    fc.property(
      fc.string({ unit: 'binary' }),
      fc.constantFrom('nbd://', 'nbd+unix:///?', 'nbds://h/', ''),
      (text, prefix) => {
        try {
          parseNbdUri(prefix + text);
        } catch (error) {
          assert.ok(isGodwitError(error, 'NBD_BAD_URI'), String(error));
        }
      },
    ),
    { numRuns: 2_000 },
  );
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', maxLength: 50 }), (name) => {
      fc.pre(!name.includes('\0'));
      assert.equal(parseNbdUri(`nbd://host/${encodeURIComponent(name)}`).exportName, name);
    }),
  );
});
