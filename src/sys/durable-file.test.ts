import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { scratchDir as makeScratch } from '../../test/support/scratch.ts';
import {
  createFile,
  removeFile,
  replaceFile,
  replaceFileNow,
  replaceFileOfThisBoot,
} from './durable-file.ts';

const replacers = {
  replaceFile,
  replaceFileOfThisBoot,
  replaceFileNow: async (path: string, content: string) => replaceFileNow(path, content),
};

for (const [name, replacer] of Object.entries(replacers)) {
  test(`${name} replaces the content by a new inode that only its owner can read`, async (t) => {
    const folder = makeScratch(t);
    const path = join(folder, 'record');
    await replacer(path, 'one');
    const { ino } = await stat(path);
    await writeFile(`${path}.new`, 'left over of a writer that was killed');
    await replacer(path, 'two');
    const now = await stat(path);
    assert.equal(await readFile(path, 'utf8'), 'two');
    assert.notEqual(now.ino, ino);
    assert.equal(now.mode & 0o777, 0o600);
    assert.deepEqual(await readdir(folder), ['record']);
  });

  test(`${name} that fails leaves the former file and nothing else`, async (t) => {
    const folder = makeScratch(t);
    const path = join(folder, 'record');
    await mkdir(join(path, 'in the way'), { recursive: true });
    await assert.rejects(replacer(path, 'two'));
    assert.deepEqual(await readdir(folder), ['record']);
    assert.deepEqual(await readdir(path), ['in the way']);
  });
}

test('of two that make the same file one does, and both read its content', async (t) => {
  const folder = makeScratch(t);
  const path = join(folder, 'key');
  const made = await Promise.all(['a', 'b'].map((token) => createFile(path, token.repeat(40), { token })));
  assert.deepEqual(
    made.toSorted((left, right) => Number(left) - Number(right)),
    [false, true],
  );
  assert.match(await readFile(path, 'utf8'), /^(a{40}|b{40})$/);
  assert.deepEqual(await readdir(folder), ['key']);
  assert.equal(await createFile(path, 'c', { token: 'c' }), false);
});

test('a file that is removed twice is gone', async (t) => {
  const folder = makeScratch(t);
  await writeFile(join(folder, 'record'), 'one');
  await removeFile(join(folder, 'record'));
  await removeFile(join(folder, 'record'));
  assert.deepEqual(await readdir(folder), []);
});
