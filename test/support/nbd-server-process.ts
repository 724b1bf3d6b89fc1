import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import { WatchedBook } from './watched-book.ts';

/* A process that exports one file over NBD, writable: --file F --bytes N (--socket PATH | --port N) [--tls CERT --tls KEY --tls CA] [--book LIMITS]. Prints its address once it
 * listens. With a book it answers on its standard input what its memory is (AttackedProcess). */

const { values } = parseArgs({
  options: {
    file: { type: 'string' },
    bytes: { type: 'string' },
    socket: { type: 'string' },
    port: { type: 'string', default: '0' },
    /** PEM files: certificate, key, authority of the clients. */
    tls: { type: 'string', multiple: true },
    /** `ClientLimits` as JSON. */
    book: { type: 'string' },
  },
});
const device = await FileDevice.open({ file: values.file!, lengthBytes: Number(values.bytes) });
const book = values.book === undefined ? null : new WatchedBook(JSON.parse(values.book));
const server = await NbdServer.listen({
  address:
    values.socket === undefined ? { host: '127.0.0.1', port: Number(values.port) } : { path: values.socket },
  ...(values.tls && {
    tls: {
      certificate: readFileSync(values.tls[0]!),
      privateKey: readFileSync(values.tls[1]!),
      clientAuthority: readFileSync(values.tls[2]!),
    },
  }),
  clock: systemClock,
  logger: silentLogger,
  ...(book !== null && { clients: book }),
});
server.addExport({
  name: '',
  device,
  readOnly: false,
  writesNow: true,
});
book?.answer();
process.stdout.write(`${JSON.stringify(server.address)}\n`);
process.once('SIGTERM', async () => {
  await server.close();
  await device.close();
  process.stdin.destroy();
});
