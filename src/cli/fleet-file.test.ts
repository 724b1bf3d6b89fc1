import assert from 'node:assert/strict';
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { findFleet, readFleetFile, readToken, writeFleetFile } from './fleet-file.ts';

const TOKEN = 'a-token-of-the-fleet';
const workers = [{ name: 'worker-1', url: 'http://127.0.0.1:1' }];

function writeFleet(dir: string): string {
  mkdirSync(dir, { recursive: true });
  writeFileSync(join(dir, 'token'), `${TOKEN}\n`);
  writeFleetFile(join(dir, 'fleet.json'), { tokenFile: 'token', workers });
  return join(dir, 'fleet.json');
}

test('the fleet is looked for in the option, the environment, here, and at home', (t) => {
  const dir = scratchDir(t);
  const home = writeFleet(join(dir, 'config', 'godwit'));
  const env = { XDG_CONFIG_HOME: join(dir, 'config') };
  assert.equal(findFleet({}, env, dir).path, home);
  const here = writeFleet(join(dir, '.godwit'));
  assert.equal(findFleet({}, env, dir).path, here);
  const named = writeFleet(join(dir, 'named'));
  assert.equal(findFleet({}, { ...env, GODWIT_FLEET: named }, dir).path, named);
  const option = writeFleet(join(dir, 'option'));
  const found = findFleet({ fleet: option }, { ...env, GODWIT_FLEET: named, GODWIT_URL: 'http://x:1' }, dir);
  assert.deepEqual(found, { path: option, workers, token: TOKEN, caFile: null });
});

test('one worker by its URL needs a token', (t) => {
  const dir = scratchDir(t);
  assert.throws(() => findFleet({ url: 'http://x:1' }, {}, dir), { code: 'CLI_INVALID_OPTIONS' });
  writeFileSync(join(dir, 't'), TOKEN);
  for (const [options, env] of [
    [{ token: TOKEN }, {}],
    [{ tokenFile: 't' }, {}],
    [{}, { GODWIT_TOKEN: TOKEN }],
    [{}, { GODWIT_TOKEN_FILE: 't' }],
  ]) {
    const found = findFleet({ url: 'http://x:1', ...options }, env as NodeJS.ProcessEnv, dir);
    assert.deepEqual(found, {
      path: null,
      workers: [{ name: 'http://x:1', url: 'http://x:1' }],
      token: TOKEN,
      caFile: null,
    });
  }
});

test('the CA is that of the option, the environment, or the fleet file, whose folder it is in', (t) => {
  const dir = scratchDir(t);
  const path = join(dir, 'fleet.json');
  writeFileSync(join(dir, 'token'), TOKEN);
  writeFleetFile(path, { tokenFile: 'token', caFile: 'ca.pem', workers });
  const caOf = (options: { ca?: string }, env: NodeJS.ProcessEnv) =>
    findFleet({ fleet: path, ...options }, env, '/elsewhere').caFile;
  assert.equal(caOf({}, {}), join(dir, 'ca.pem'));
  assert.equal(caOf({}, { GODWIT_CA_FILE: 'env.pem' }), '/elsewhere/env.pem');
  assert.equal(caOf({ ca: 'option.pem' }, { GODWIT_CA_FILE: 'env.pem' }), '/elsewhere/option.pem');
  const one = { url: 'https://x:1', token: TOKEN, ca: '/ca.pem' };
  assert.equal(findFleet(one, {}, dir).caFile, '/ca.pem');
});

test('a fleet file that cannot be used says why', (t) => {
  const dir = scratchDir(t);
  const path = join(dir, 'fleet.json');
  assert.throws(() => findFleet({ fleet: path }, {}, dir), { code: 'CLI_FLEET_NOT_FOUND' });
  const bad: [string, RegExp][] = [
    ['{', /JSON/],
    ['[]', /list of workers/],
    ['{"workers": []}', /list of workers/],
    ['{"workers": [null]}', /name and a url/],
    ['{"workers": [{"name": "a"}]}', /name and a url/],
    ['{"workers": [{"name": "a", "url": "u"}, {"name": "a", "url": "v"}]}', /two workers are called a/],
  ];
  for (const [content, why] of bad) {
    writeFileSync(path, content);
    assert.throws(() => readFleetFile(path), { code: 'CLI_INVALID_FLEET', message: why }, content);
  }
  writeFileSync(path, JSON.stringify({ workers }));
  assert.throws(() => findFleet({ fleet: path }, {}, dir), /names no tokenFile/);
});

test('tokens are long, printable and on the first line', (t) => {
  const path = join(scratchDir(t), 'token');
  assert.throws(() => readToken(path), { code: 'CLI_INVALID_TOKEN_FILE' });
  for (const bad of ['', 'short', 'with spaces in between', `${TOKEN}ü`]) {
    writeFileSync(path, bad);
    assert.throws(() => readToken(path), { code: 'CLI_INVALID_TOKEN_FILE' }, bad);
  }
  writeFileSync(path, `${TOKEN}\nnot this`);
  assert.equal(readToken(path), TOKEN);
});

test('a written fleet file is for its owner only', (t) => {
  const path = writeFleet(scratchDir(t));
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(readFleetFile(path), { tokenFile: 'token', workers });
});
