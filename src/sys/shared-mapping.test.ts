import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { patient } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { errnoOf } from './libc.ts';
import { mapShared, unmap, viewAt } from './shared-mapping.ts';

const LENGTH_BYTES = 64 * 1024;
const url = new URL('./shared-mapping.ts', import.meta.url).href;

test('a mapping is the file, in this thread, in another, and in another process', async (t) => {
  const path = join(scratchDir(t), 'file');
  const fd = openSync(path, 'w+');
  t.after(() => closeSync(fd));
  ftruncateSync(fd, LENGTH_BYTES);
  const { address, view } = mapShared(fd, LENGTH_BYTES);
  view[0] = 1;
  view[LENGTH_BYTES - 1] = 2;
  assert.deepEqual([viewAt(address, LENGTH_BYTES)[0], readFileSync(path)[LENGTH_BYTES - 1]], [1, 2]);

  const code = `import('${url}').then(({ viewAt }) => {
    const { workerData, parentPort } = require('node:worker_threads');
    const words = new Uint32Array(viewAt(workerData.address, workerData.lengthBytes).buffer);
    for (let i = 0; i < 10000; i++) Atomics.add(words, 16, 1);
    parentPort.postMessage('done');
  })`;
  const worker = new Worker(code, { eval: true, workerData: { address, lengthBytes: LENGTH_BYTES } });
  const done = new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  const words = new Uint32Array(view.buffer);
  for (let i = 0; i < 10000; i++) Atomics.add(words, 16, 1);
  await done;
  assert.equal(words[16], 20000);
  await worker.terminate();

  const script = `
    const { mapShared } = await import('${url}');
    const fd = (await import('node:fs')).openSync(process.argv[1], 'r+');
    mapShared(fd, ${LENGTH_BYTES}).view[100] = 42;
    process.kill(process.pid, 'SIGKILL');`;
  assert.throws(() =>
    execFileSync(process.execPath, ['--input-type=module', '-e', script, path], { timeout: patient(60_000) }),
  );
  assert.equal(view[100], 42, 'what a killed process stored is there');

  unmap(address, LENGTH_BYTES);
});

test('what cannot be mapped is a typed error', () => {
  assert.throws(
    () => mapShared(-1, LENGTH_BYTES),
    (error) => errnoOf(error) === 'EBADF',
  );
});
