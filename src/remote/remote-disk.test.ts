import { testConformance } from '../../test/support/block-conformance.ts';
import { HttpDisk, serveHttpDisk } from '../../test/support/http-disk.ts';
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
