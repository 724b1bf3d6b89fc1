import assert from 'node:assert/strict';
import { test } from 'node:test';
import { testConformance } from '../../test/support/block-conformance.ts';
import { CONFLICT, HttpDisk, serveHttpDisk } from '../../test/support/http-disk.ts';
import { patient } from '../../test/support/patience.ts';
import { SILENCE, testRemoteConformance } from '../../test/support/remote-conformance.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import { MemoryDevice } from '../block/memory-device.ts';

const TIMEOUT_MS = SILENCE.requestTimeoutMs;

testConformance('A dialect without sessions', {
  open: async (t, { lengthBytes, writable, content }) => {
    const device = new MemoryDevice({ lengthBytes, writable, ...(content === null ? {} : { content }) });
    const { port } = await serveHttpDisk(t, device);
    const basics = { clock: systemClock, random: systemRandom, logger: silentLogger };
    const disk = await HttpDisk.connect(port, 20 * TIMEOUT_MS, { ...basics, readOnly: !writable });
    t.after(() => disk.close());
    return disk;
  },
  runs: 10,
});

testRemoteConformance({
  name: 'A dialect without sessions',
  codes: { changed: 'HTTP_CHANGED', silent: 'HTTP_SILENT', failed: 'HTTP_FAILED' },
  serve: serveHttpDisk,
  connect: (port, options, wait) => HttpDisk.connect(port, TIMEOUT_MS, options, wait),
  open: (port, lengthBytes, options) => HttpDisk.open(port, TIMEOUT_MS, options, lengthBytes),
});

test('a disk that fails the look at it is looked at on the next session, and what waited for the look goes on', async (t) => {
  const content = Buffer.alloc(4096, 7);
  const statuses = [undefined, CONFLICT, 500];
  const asked: (string | undefined)[] = [];
  const { port } = await serveHttpDisk(t, new MemoryDevice({ lengthBytes: 4096, content }), (method) => {
    asked.push(method);
    return statuses.shift();
  });
  const basics = { clock: systemClock, random: systemRandom, logger: silentLogger, backoffMs: 5 };
  const disk = await HttpDisk.connect(port, 20 * TIMEOUT_MS, { ...basics, readOnly: true });
  t.after(() => disk.close());
  const into = Buffer.alloc(4096);
  await disk.read(0, into, { signal: AbortSignal.timeout(patient(20_000)) });
  assert.deepEqual(into, content);
  assert.deepEqual(asked.slice(0, 3), ['HEAD', 'GET', 'HEAD']);
  assert.equal(disk.statistics.reconnects, 1);
});
