import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../../test/support/scratch.ts';
import { requireDescriptors, type WorkerFlags, workerOptions } from './worker.ts';

const TOKEN = 'a-token-of-the-fleet';
const minimal: WorkerFlags = { name: 'worker-1', data: 'w1', token: TOKEN };

test('the defaults', () => {
  assert.deepEqual(workerOptions(minimal, {}, '/srv'), {
    name: 'worker-1',
    dataDir: '/srv/w1',
    listenHost: '127.0.0.1',
    listenPort: 4680,
    advertiseUrl: null,
    peers: [],
    token: TOKEN,
    iscsiHost: '127.0.0.1',
    tls: null,
    plane: 'userspace',
    tlsOptional: false,
    capacity: { memoryBytes: null, cpus: null, diskBytes: null },
    whenFull: 'pause',
    hydrationRateBytesPerSecondMax: 0,
    retainMs: 7 * 86_400_000,
    keys: null,
    headerFileBytes: 536 * 1024,
    logLevel: 'info',
  });
});

test('flags come before the environment, the environment before the file', (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'other-token'), 'another-token-of-the-fleet');
  writeFileSync(
    join(dir, 'worker.json'),
    JSON.stringify({
      name: 'from-file',
      data: 'd',
      listen: '10.0.0.1:1',
      cpus: 3,
      tokenFile: 'other-token',
      peer: ['b=http://b:1/'],
    }),
  );
  const env = {
    GODWIT_WORKER_NAME: 'from-env',
    GODWIT_WORKER_LISTEN: '10.0.0.2:2',
    GODWIT_WORKER_PEERS: 'c=http://c:1,d=http://d:1',
    GODWIT_TOKEN: TOKEN,
  };
  const file = { config: 'worker.json' };
  assert.equal(workerOptions(file, {}, dir).name, 'from-file');
  assert.equal(workerOptions(file, {}, dir).token, 'another-token-of-the-fleet');
  assert.deepEqual(workerOptions(file, {}, dir).peers, [{ name: 'b', url: 'http://b:1' }]);
  const both = workerOptions(file, env, dir);
  assert.deepEqual(
    [both.name, both.listenHost, both.capacity.cpus, both.token],
    ['from-env', '10.0.0.2', 3, TOKEN],
  );
  assert.deepEqual(
    both.peers.map(({ name }) => name),
    ['c', 'd'],
  );
  const all = workerOptions({ ...file, name: 'from-flag', peer: ['e=http://e:1'] }, env, dir);
  assert.deepEqual([all.name, all.listenPort, all.peers.length], ['from-flag', 2, 1]);
});

test('IPv6 addresses stand in brackets', () => {
  const { listenHost, listenPort } = workerOptions({ ...minimal, listen: '[::1]:80' }, {}, '/');
  assert.deepEqual([listenHost, listenPort], ['::1', 80]);
});

test('what is wrong is named', (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'unknown.json'), '{"listem": "x"}');
  writeFileSync(join(dir, 'list.json'), '[]');
  const cases: [WorkerFlags, RegExp][] = [
    [{}, /--name is missing/],
    [{ name: 'worker-1', token: TOKEN }, /--data is missing/],
    [{ name: 'worker-1', data: 'd' }, /--token-file is missing/],
    [{ ...minimal, name: 'A b' }, /lower case/],
    [{ ...minimal, token: 'short' }, /at least 16/],
    [{ ...minimal, listen: '4680' }, /--listen is HOST:PORT/],
    [{ ...minimal, listen: 'h:70000' }, /--listen is HOST:PORT/],
    [{ ...minimal, listen: '0.0.0.0:1' }, /--iscsi-host is missing/],
    [{ ...minimal, keyFile: '/etc/key' }, /in a folder of its own/],
    [{ ...minimal, tlsCert: 'c', tlsKey: '/etc/key', tlsCa: 'ca' }, /--tls-key is in a folder of its own/],
    [{ ...minimal, keyFile: '/etc/keys/k', keyExec: 'k' }, /exclude each other/],
    [{ ...minimal, peer: ['b'] }, /--peer is NAME=URL/],
    [{ ...minimal, peer: ['b=ftp://b'] }, /http:/],
    [{ ...minimal, peer: ['worker-1=http://b:1'] }, /same name/],
    [{ ...minimal, cpus: 'two' }, /--cpus is a number/],
    [{ ...minimal, logLevel: 'loud' }, /--log-level/],
    [{ ...minimal, config: 'unknown.json' }, /unknown key listem/],
    [{ ...minimal, config: 'list.json' }, /not an object/],
    [{ ...minimal, config: 'missing.json' }, /cannot be read/],
  ];
  for (const [flags, message] of cases) {
    assert.throws(() => workerOptions(flags, {}, dir), { code: 'CLI_INVALID_OPTIONS', message });
  }
});

test('certificates: all three files or none', () => {
  const files = { tlsCert: 'w.pem', tlsKey: '/etc/godwit/w.key', tlsCa: 'ca.pem' };
  assert.deepEqual(workerOptions({ ...minimal, ...files }, {}, '/srv').tls, {
    certFile: '/srv/w.pem',
    keyFile: '/etc/godwit/w.key',
    caFile: '/srv/ca.pem',
  });
  for (const [missing, option] of [
    ['tlsCert', '--tls-cert'],
    ['tlsKey', '--tls-key'],
    ['tlsCa', '--tls-ca'],
  ] as const) {
    const { [missing]: _, ...two } = files;
    assert.throws(
      () => workerOptions({ ...minimal, ...two }, {}, '/srv'),
      new RegExp(`${option} is missing`),
    );
  }
});

test('peers are asked over TLS by a worker with certificates, and by no other', () => {
  const tls = { tlsCert: 'w.pem', tlsKey: 'tls/w.key', tlsCa: 'ca.pem' };
  const [plain, secure] = [['b=http://b:1'], ['b=https://b:1']];
  const peersOf = (flags: WorkerFlags) => workerOptions({ ...minimal, ...flags }, {}, '/srv').peers;
  assert.deepEqual(peersOf({ ...tls, peer: secure }), [{ name: 'b', url: 'https://b:1' }]);
  assert.deepEqual(peersOf({ peer: plain }), [{ name: 'b', url: 'http://b:1' }]);
  for (const peer of [plain, secure])
    for (const tlsOptional of [true, 'true', '1']) peersOf({ ...tls, peer, tlsOptional });
  for (const [flags, message] of [
    [{ ...tls, peer: plain }, /b would be asked in the clear/],
    [{ ...tls, peer: plain, tlsOptional: 'false' }, /b would be asked in the clear/],
    [{ peer: secure }, /no certificate to show/],
  ] as const) {
    assert.throws(() => peersOf(flags as WorkerFlags), { code: 'CLI_INVALID_PEER', message });
  }
  assert.throws(() => peersOf({ tlsOptional: true }), { code: 'CLI_INVALID_OPTIONS', message: /--tls-cert/ });
  assert.throws(() => peersOf({ ...tls, tlsOptional: 'maybe' }), { message: /true or false/ });
});

test('with too few descriptors no worker begins that would fail in words of something else', () => {
  requireDescriptors(64);
  assert.throws(() => requireDescriptors(63), { code: 'HOST_NO_DESCRIPTORS', message: /63 files.*64/ });
});

test('keys of encrypted volumes', () => {
  const keys = (flags: WorkerFlags) => workerOptions({ ...minimal, ...flags }, {}, '/srv').keys;
  assert.deepEqual(keys({ keyFile: 'keys/{volume}.key' }), { kind: 'file', path: '/srv/keys/{volume}.key' });
  assert.deepEqual(keys({ keyExec: 'vault-key  --role x' }), {
    kind: 'exec',
    argv: ['vault-key', '--role', 'x'],
  });
});

test('the size of new headers', () => {
  const size = (headerSize: string) => workerOptions({ ...minimal, headerSize }, {}, '/srv').headerFileBytes;
  assert.equal(size('4MiB'), 4 * 2 ** 20);
  assert.equal(size('16MiB'), 16 * 2 ** 20);
  for (const wrong of ['512KiB', '17MiB', '4194305'])
    assert.throws(() => size(wrong), /--header-size is 548864 to/);
});
