import assert from 'node:assert/strict';
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { patient, until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { type GodwitError, isGodwitError } from '../base/errors.ts';
import { ExecKeyProvider, FileKeyProvider, MAX_KEY_BYTES } from './key-provider.ts';
import { Secret } from './secret.ts';

const REQUEST = { volumeId: 'vol-1', generation: 3, keyGeneration: 1 };
const unavailable = (part: string) => (error: unknown) =>
  isGodwitError(error, 'CRYPT_KEY_UNAVAILABLE') && error.message.includes(part);

test('a secret shows itself nowhere, and is zeros afterwards', () => {
  const original = Buffer.from('hunter2');
  const secret = Secret.take(original);
  assert.deepEqual(original, Buffer.alloc(7));
  const texts = [
    `${secret}`,
    JSON.stringify({ secret }),
    inspect({ secret }, { depth: 9, showHidden: true }),
    inspect(secret),
  ];
  for (const text of texts) {
    assert.ok(text.includes('[secret]'), text);
    assert.ok(!/hunter2|68 75 6e/.test(text), text);
  }
  const { bytes } = secret;
  const copy = secret.clone();
  {
    using scoped = secret;
    assert.equal(scoped.bytes.toString(), 'hunter2');
  }
  assert.deepEqual(bytes, Buffer.alloc(7));
  assert.throws(() => secret.bytes);
  assert.equal(copy.bytes.toString(), 'hunter2');
});

test('a key file: as it is, for each volume its own', async (t) => {
  const dir = scratchDir(t);
  writeFileSync(join(dir, 'vol-1.key'), 'pass\n', { mode: 0o600 });
  const provider = new FileKeyProvider(join(dir, '{volume}.key'));
  assert.equal((await provider.keyOf(REQUEST)).bytes.toString(), 'pass\n');
  await assert.rejects(provider.keyOf({ ...REQUEST, volumeId: 'vol-2' }), unavailable('ENOENT'));
  for (const volumeId of ['../vol-1', '', '.', '..', 'a/b', 'a\0', 'x'.repeat(200)])
    await assert.rejects(provider.keyOf({ ...REQUEST, volumeId }), unavailable('not the id'));
});

test('a key file that is empty, too long, or open to others is refused', async (t) => {
  const dir = scratchDir(t);
  const path = join(dir, 'key');
  const provider = new FileKeyProvider(path);
  writeFileSync(path, '', { mode: 0o600 });
  await assert.rejects(provider.keyOf(REQUEST), unavailable('empty'));
  writeFileSync(path, 'k'.repeat(MAX_KEY_BYTES));
  assert.equal((await provider.keyOf(REQUEST)).lengthBytes, MAX_KEY_BYTES);
  writeFileSync(path, 'k'.repeat(MAX_KEY_BYTES + 1));
  await assert.rejects(provider.keyOf(REQUEST), unavailable('longer'));
  chmodSync(path, 0o640);
  await assert.rejects(provider.keyOf(REQUEST), (error) => isGodwitError(error, 'CRYPT_KEY_EXPOSED'));
});

test('a key program is told the volume and its output is the key', async () => {
  const provider = shell('printf "%s/%s" "$GODWIT_VOLUME_ID" "$GODWIT_VOLUME_GENERATION"');
  assert.equal((await provider.keyOf(REQUEST)).bytes.toString(), 'vol-1/3');
});

test('a key program that fails says why and never what it printed', async () => {
  const cases: [script: string, part: string][] = [
    ['echo SECRET; echo SECRET >&2; exit 3', 'exit code 3'],
    ['echo SECRET; kill -9 $$', 'SIGKILL'],
    ['true', 'empty'],
    ['yes SECRET', 'more than'],
  ];
  for (const [script, part] of cases) {
    const error = await shell(script)
      .keyOf(REQUEST)
      .then(
        () => assert.fail('it gave a key'),
        (reason: unknown) => reason as GodwitError,
      );
    assert.ok(unavailable(part)(error), error.message);
    assert.ok(!inspect(error, { depth: 9 }).includes('SECRET'), inspect(error));
  }
  const missing = new ExecKeyProvider({ argv: ['/no/such/program'] });
  await assert.rejects(missing.keyOf(REQUEST), unavailable('ENOENT'));
});

test('a key program that does not end is killed with what it started', async (t) => {
  const pidFile = join(scratchDir(t), 'pid');
  const deadlineMs = patient(300);
  const provider = shell(`sleep 600 & echo $! > ${pidFile}; wait`, deadlineMs);
  await assert.rejects(provider.keyOf(REQUEST), unavailable(`${deadlineMs} ms`));
  const pid = Number(readFileSync(pidFile, 'utf8'));
  assert.ok(pid > 1);
  // A zombie that waits for init counts as gone.
  const stat = () => (existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : 'gone');
  await until('what it started to end', stat, { is: (line) => line === 'gone' || /\) Z /.test(line) });
});

function shell(script: string, deadlineMs?: number): ExecKeyProvider {
  return new ExecKeyProvider({ argv: ['sh', '-c', script], ...(deadlineMs !== undefined && { deadlineMs }) });
}

test('a key file that is made: once, durably, for its owner alone, and beside the earlier keys', async (t) => {
  const dir = scratchDir(t);
  const own = new FileKeyProvider(join(dir, '{volume}.key'));
  const first = await own.newKeyOf(REQUEST);
  assert.match(first.bytes.toString(), /^[\w-]{43}$/);
  assert.equal(statSync(join(dir, 'vol-1.key')).mode & 0o777, 0o600);
  assert.deepEqual((await own.newKeyOf(REQUEST)).bytes, first.bytes);
  assert.deepEqual((await own.keyOf(REQUEST)).bytes, first.bytes);
  const later = { ...REQUEST, generation: 4, keyGeneration: 4 };
  await assert.rejects(own.keyOf(later), unavailable('ENOENT'));
  const second = await own.newKeyOf(later);
  assert.notDeepEqual(second.bytes, first.bytes);
  assert.deepEqual((await own.keyOf(later)).bytes, second.bytes);
  assert.deepEqual((await own.keyOf(REQUEST)).bytes, first.bytes);

  const shared = new FileKeyProvider(join(dir, 'shared'));
  await assert.rejects(shared.newKeyOf(REQUEST), unavailable('ENOENT'));
  writeFileSync(join(dir, 'shared'), 'of all', { mode: 0o600 });
  assert.equal((await shared.newKeyOf(REQUEST)).bytes.toString(), 'of all');
  assert.notEqual((await shared.newKeyOf(later)).bytes.toString(), 'of all');
  assert.deepEqual(readdirSync(dir).sort(), ['shared', 'shared.vol-1.g4', 'vol-1.key', 'vol-1.key.g4']);
  await assert.rejects(
    new FileKeyProvider(join(dir, 'none', 'k')).newKeyOf(later),
    unavailable('cannot be made'),
  );
});

test('a key program is told which key, and whether to make it', async () => {
  const provider = new ExecKeyProvider({
    argv: [
      'sh',
      '-c',
      'printf "%s %s %s" "$GODWIT_KEY_ACTION" "$GODWIT_VOLUME_GENERATION" "$GODWIT_KEY_GENERATION"',
    ],
  });
  const request = { ...REQUEST, generation: 9, keyGeneration: 4 };
  assert.equal((await provider.keyOf(request)).bytes.toString(), 'get 9 4');
  assert.equal((await provider.newKeyOf(request)).bytes.toString(), 'create 9 4');
});
