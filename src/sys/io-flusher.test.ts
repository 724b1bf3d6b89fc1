import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { mayLack } from '../../test/support/skips.ts';
import { ioFlusher, setIoFlusher } from './io-flusher.ts';

test('the mark can be set, is inherited by a child on all its threads, and can be taken back', (t) => {
  const lack = mayLack('PR_SET_IO_FLUSHER', setIoFlusher(true));
  if (lack) return t.skip(lack);
  t.after(() => setIoFlusher(false));
  assert.equal(ioFlusher(), true);
  const url = new URL('./io-flusher.ts', import.meta.url).href;
  const script = `
    const { ioFlusher } = await import('${url}');
    const { Worker } = await import('node:worker_threads');
    const code = "import('${url}').then(({ ioFlusher }) => require('node:worker_threads').parentPort.postMessage(ioFlusher()))";
    new Worker(code, { eval: true }).on('message', (inWorker) => console.log(ioFlusher(), inWorker));`;
  const child = (): string =>
    execFileSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
      timeout: patient(60_000),
    });
  assert.equal(child(), 'true true\n');
  assert.equal(setIoFlusher(false), true);
  assert.equal(ioFlusher(), false);
  assert.equal(child(), 'false false\n');
});
