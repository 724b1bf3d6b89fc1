import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { NotYet, until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { type LogReadOptions, LogWriter, readLog } from './log-file.ts';

async function read(path: string, options: LogReadOptions = {}): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of readLog(path, systemClock, options)) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

test('a log is rotated at its bound and keeps one old file', async (t) => {
  const path = join(scratchDir(t), 'log');
  const log = new LogWriter(path, 100);
  for (let line = 0; line < 25; line++) log.write(Buffer.from(`line ${String(line).padStart(3)}.\n`));
  await log.close();
  assert.equal(statSync(`${path}.1`).size, 100);
  assert.equal(statSync(path).size, 50);
  assert.equal(await read(path), readFileSync(`${path}.1`, 'utf8') + readFileSync(path, 'utf8'));
  const again = new LogWriter(path, 100);
  again.write(Buffer.from('more\n'));
  await again.close();
  assert.equal(statSync(path).size, 55, 'goes on where the last one ended');
});

test('the tail begins at a line, also when it reaches into the old file', async (t) => {
  const path = join(scratchDir(t), 'log');
  writeFileSync(`${path}.1`, 'one\ntwo\nthree\n');
  writeFileSync(path, 'four\nfive\n');
  assert.equal(await read(path, { tailLines: 1 }), 'five\n');
  assert.equal(await read(path, { tailLines: 3 }), 'three\nfour\nfive\n');
  assert.equal(await read(path, { tailLines: 99 }), 'one\ntwo\nthree\nfour\nfive\n');
  assert.equal(await read(path, { tailLines: 0 }), '');
  writeFileSync(path, 'four\nfive\nhalf');
  assert.equal(await read(path, { tailLines: 2 }), 'five\nhalf');
  writeFileSync(path, `${'x'.repeat(200_000)}\n${'y'.repeat(100_000)}\n`);
  assert.equal(await read(path, { tailLines: 1 }), `${'y'.repeat(100_000)}\n`);
});

test('a machine without output has an empty log', async (t) => {
  assert.equal(await read(join(scratchDir(t), 'nothing')), '');
});

test('following sees every byte across rotations and ends with the signal', async (t) => {
  const path = join(scratchDir(t), 'log');
  const log = new LogWriter(path, 1_000);
  const abort = new AbortController();
  let seen = '';
  const reader = (async () => {
    for await (const chunk of readLog(path, systemClock, { follow: true, signal: abort.signal })) {
      seen += Buffer.from(chunk).toString();
    }
  })();
  let expected = '';
  for (let round = 0; round < 3; round++) {
    const text = `${'abcdefghi\n'.repeat(70)}round ${round}\n`;
    expected += text;
    log.write(Buffer.from(text));
    await log.flush();
    // One rotation may happen between two looks; a second one would lose what nobody read.
    await until(
      `round ${round} to be read`,
      () => seen.length >= expected.length || new NotYet(seen.slice(-30)),
    );
  }
  abort.abort();
  await reader;
  await log.close();
  assert.equal(seen, expected);
});

test('a stream waits while the disk is behind, and loses nothing', async (t) => {
  const path = join(scratchDir(t), 'log');
  const log = new LogWriter(path, 64 * 1024 * 1024);
  const stream = new PassThrough();
  log.attach(stream);
  const block = Buffer.alloc(300 * 1024, 'x');
  for (let round = 0; round < 20; round++) stream.write(block);
  stream.end();
  await new Promise((resolve) => stream.once('end', resolve));
  await log.close();
  assert.equal(statSync(path).size, 20 * block.length);
  assert.equal(log.lostBytes, 0);
});

test('output that cannot be written is counted, not thrown', async (t) => {
  const log = new LogWriter(join(scratchDir(t), 'no', 'folder'), 100);
  log.write(Buffer.from('lost'));
  await log.close();
  assert.equal(log.lostBytes, 4);
});
