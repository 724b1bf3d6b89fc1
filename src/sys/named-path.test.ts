import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import {
  DATA_FOLDER_MARK,
  listenAt,
  namedFolder,
  namedPlace,
  openNamedFile,
  ownPath,
  removeDataFolder,
  writeNamedFile,
} from './named-path.ts';

const isRoot = process.geteuid?.() === 0;
const NOBODY = 65534;

function folder(t: TestContext): string {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'gw-named-')));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

const isRefused = (error: unknown) => isGodwitError(error, 'SYS_PATH_REFUSED');

/**
 * Listens until the end of the test; `server.close()` alone does not take the socket away, as after a kill.
 */
function listener(t: TestContext): { server: Server; listen: (path: string) => Promise<void> } {
  const server = createServer((socket) => socket.destroy());
  t.after(() => server.close());
  return { server, listen: (path) => new Promise((done) => void server.listen(path, done)) };
}

/** What is at a path, so that it shows when it changes. */
function lookOf(path: string): string {
  const { ino, mode, size, ctimeNs } = lstatSync(path, { bigint: true });
  return `${ino} ${mode} ${size} ${ctimeNs}`;
}

test('a socket takes the place of nothing but a socket of ours that nobody listens on', async (t) => {
  const dir = folder(t);
  const kinds: Record<string, (path: string) => void> = {
    file: (path) => writeFileSync(path, 'data of another volume'),
    link: (path) => symlinkSync(join(dir, 'file'), path),
    'link to nothing': (path) => symlinkSync(join(dir, 'nothing'), path),
    folder: (path) => mkdirSync(path),
    FIFO: (path) => execFileSync('mkfifo', [path]),
    ...(isRoot && { device: (path) => execFileSync('mknod', [path, 'c', '1', '3']) }),
  };
  for (const [kind, make] of Object.entries(kinds)) {
    const path = join(dir, kind);
    make(path);
    const before = lookOf(path);
    await assert.rejects(listenAt(path, {}, listener(t).listen), isRefused, kind);
    assert.equal(lookOf(path), before, kind);
  }
  assert.deepEqual(readdirSync(dir).sort(), Object.keys(kinds).sort(), 'and nothing is left over');

  const path = join(dir, 'socket');
  const dead = listener(t);
  await listenAt(path, {}, dead.listen);
  assert.equal(lstatSync(path).mode & 0o777, 0o600);
  await assert.rejects(listenAt(path, {}, listener(t).listen), { code: 'SYS_SOCKET_IN_USE' });
  await new Promise((closed) => dead.server.close(closed));
  const left = lookOf(path);
  const next = await listenAt(path, {}, listener(t).listen);
  assert.notEqual(lookOf(path), left, 'what a dead process left is replaced');
  // Another one has the name now: it is not ours to remove.
  rmSync(path);
  writeFileSync(path, 'x');
  next.remove();
  assert.equal(readFileSync(path, 'utf8'), 'x');
});

test('a socket of another user stays, unless it was made for that user', { skip: !isRoot }, async (t) => {
  const path = join(folder(t), 'socket');
  const owner = { uid: NOBODY, gid: NOBODY };
  const dead = listener(t);
  await listenAt(path, { owner }, dead.listen);
  assert.deepEqual([lstatSync(path).uid, lstatSync(path).mode & 0o777], [NOBODY, 0o600]);
  await new Promise((closed) => dead.server.close(closed));
  await assert.rejects(listenAt(path, {}, listener(t).listen), isRefused);
  await listenAt(path, { owner }, listener(t).listen);
});

test('the data folders of workers, of the kernel and of others are no place for anything', (t) => {
  const dir = folder(t);
  const data = join(dir, 'data');
  mkdirSync(join(data, 'volumes', 'v_1'), { recursive: true });
  writeFileSync(join(data, DATA_FOLDER_MARK), '');
  symlinkSync(join(data, 'volumes'), join(dir, 'link'));
  const open = join(dir, 'open');
  mkdirSync(open);
  chmodSync(open, 0o777);
  const closed = join(dir, 'keys');
  mkdirSync(join(closed, 'of'), { recursive: true });
  const refused = [
    join(data, 'x'),
    join(data, 'volumes', 'v_1', 'data.raw'),
    join(dir, 'link', 'v_1', 'x'),
    join(closed, 'x'),
    join(closed, 'of', 'x'),
    join(open, 'x'),
    '/proc/x',
    '/dev/x',
    'x',
    `${dir}/x\0y`,
    `${dir}/`,
    join(dir, 'nothing', 'x'),
  ];
  for (const path of refused) {
    assert.throws(() => namedPlace(path, { closed: [closed] }), isRefused, path);
  }
  assert.equal(namedPlace(join(dir, 'x')).path, join(dir, 'x'));
  assert.equal(namedPlace(join(data, 'x'), { own: true }).path, join(data, 'x'));
  if (!isRoot) return;
  const theirs = join(dir, 'theirs');
  mkdirSync(theirs);
  chownSync(theirs, NOBODY, NOBODY);
  assert.throws(() => namedPlace(join(theirs, 'x')), isRefused);
  assert.throws(() => namedFolder(join(theirs, 'x'), 0o700), isRefused);
});

test('a folder is made where it may be, and nowhere else', (t) => {
  const dir = folder(t);
  const made = namedFolder(join(dir, 'a', 'b'), 0o700);
  assert.equal(statSync(made).mode & 0o777, 0o700);
  assert.equal(namedFolder(made, 0o755), made);
  writeFileSync(join(made, DATA_FOLDER_MARK), '');
  assert.throws(() => namedFolder(join(made, 'c', 'd'), 0o700), isRefused);
  assert.throws(() => namedFolder(made, 0o700), isRefused);
  assert.throws(() => namedFolder(join(made, 'c'), 0o700, { isData: true }), isRefused);
  assert.equal(namedFolder(made, 0o700, { isData: true }), made);
  assert.deepEqual(readdirSync(made), [DATA_FOLDER_MARK]);
  writeFileSync(join(dir, 'file'), '');
  assert.throws(() => namedFolder(join(dir, 'file'), 0o700), isRefused);
});

test('the name of something of ours is one name, whatever a record or another worker says', (t) => {
  const dir = folder(t);
  assert.equal(ownPath(dir, 'm_01k'), join(dir, 'm_01k'));
  for (const name of ['', '.', '..', '../x', 'a/b', '/etc', 'a\0', '.new', 'x'.repeat(256)]) {
    assert.throws(() => ownPath(dir, name), isRefused, name);
  }
});

test('only the data folder of a worker is removed', (t) => {
  const dir = folder(t);
  const other = join(dir, 'other');
  mkdirSync(other);
  writeFileSync(join(other, 'thesis'), 'x');
  assert.throws(() => removeDataFolder(other), isRefused);
  symlinkSync(other, join(dir, 'link'));
  writeFileSync(join(other, DATA_FOLDER_MARK), '');
  assert.throws(() => removeDataFolder(join(dir, 'link')), isRefused);
  assert.equal(readFileSync(join(other, 'thesis'), 'utf8'), 'x');
  removeDataFolder(other);
  removeDataFolder(other);
  assert.deepEqual(readdirSync(dir), ['link']);
});

test('what is read is a file, and the one that was looked at', (t) => {
  const dir = folder(t);
  const data = join(dir, 'data');
  mkdirSync(data);
  writeFileSync(join(data, DATA_FOLDER_MARK), '');
  writeFileSync(join(data, 'data.raw'), 'plaintext');
  const link = join(dir, 'image');
  symlinkSync(join(data, 'data.raw'), link);
  assert.throws(() => openNamedFile(link), isRefused);
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  assert.throws(() => openNamedFile(join(dir, 'fifo')), isRefused);
  assert.throws(() => openNamedFile(dir), isRefused);
  assert.throws(() => openNamedFile('/dev/null'), isRefused);
  rmSync(link);
  writeFileSync(link, 'image');
  const { fd, lengthBytes, path } = openNamedFile(link);
  t.after(() => closeSync(fd));
  // Another file has the name meanwhile.
  rmSync(link);
  writeFileSync(link, 'other');
  const bytes = Buffer.alloc(lengthBytes);
  readSync(fd, bytes, 0, lengthBytes, 0);
  assert.deepEqual([bytes.toString(), path], ['image', link]);
});

test('a file is replaced by one that is written whole, and nothing else is', (t) => {
  const dir = folder(t);
  const path = join(dir, 'receipt.json');
  writeNamedFile(path, 'first', 0o644);
  writeNamedFile(path, 'second', 0o644);
  assert.equal(readFileSync(path, 'utf8'), 'second');
  const link = join(dir, 'link');
  symlinkSync(path, link);
  assert.throws(() => writeNamedFile(link, 'third', 0o644), isRefused);
  assert.equal(readFileSync(path, 'utf8'), 'second');
  mkdirSync(join(dir, 'folder'));
  assert.throws(() => writeNamedFile(join(dir, 'folder'), 'x', 0o644), isRefused);
  assert.deepEqual(readdirSync(dir).sort(), ['folder', 'link', 'receipt.json']);
});
