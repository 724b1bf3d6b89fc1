import { flushCompileCache } from 'node:module';
import { FuseServer } from '../../src/attach/fuse-server.ts';
import { systemClock } from '../../src/base/clock.ts';
import { LineRpc } from '../../src/base/line-rpc.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { Luks2Device } from '../../src/crypt/luks2-device.ts';
import { createXts } from '../../src/crypt/xts.ts';
import type { Access, OpeningSpec } from '../../src/opening/spec.ts';

/**
 * The smallest volume server: a plain file behind FUSE descriptor 3, the spec as first line on standard
 * input. For the tests and benches of the attach room, without the checks and layers of the real one.
 * `volumeDir` is the path of the file itself. With PLAIN_VOLUME_KEY (hex, 64 bytes, for tests only) the file
 * is ciphertext in sectors of 4096 bytes.
 */
function firstLine(): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const onReadable = () => {
      for (let chunk = process.stdin.read(); chunk !== null; chunk = process.stdin.read()) {
        chunks.push(chunk);
        const all = Buffer.concat(chunks);
        const newline = all.indexOf(10);
        if (newline === -1) continue;
        process.stdin.removeListener('readable', onReadable);
        if (newline + 1 < all.length) process.stdin.unshift(all.subarray(newline + 1));
        resolve(all.subarray(0, newline).toString('utf8'));
        return;
      }
    };
    process.stdin.on('readable', onReadable);
    process.stdin.once('end', () => reject(new Error('no spec')));
  });
}

const spec = JSON.parse(await firstLine()) as OpeningSpec;
const file = await FileDevice.open({ file: spec.volumeDir, lengthBytes: spec.lengthBytes });
const key = Buffer.from(process.env.PLAIN_VOLUME_KEY ?? '', 'hex');
const encryption = key.length === 64 ? { key: new Uint8Array(key), sectorBytes: 4096 } : null;
const device = encryption
  ? new Luks2Device(file, { cipher: createXts(key, encryption.sectorBytes), holes: 'all' })
  : file;
const server = new FuseServer({
  fuseFd: 3,
  device,
  hot: { dataFd: file.fileDescriptor, validity: null, ...(encryption && { encryption }) },
  access: spec.access,
  clock: systemClock,
  logger: {
    ...silentLogger,
    error: (fields, message) => process.stderr.write(`${message} ${JSON.stringify(fields)}\n`),
  },
});
const rpc = new LineRpc(process.stdin, process.stdout, {
  handler: async (op, args) => {
    switch (op) {
      case 'status':
        return {
          role: 'attach',
          volumeId: spec.volumeId,
          generation: spec.generation,
          access: server.access,
          residentBytes: process.memoryUsage.rss(),
          guest: server.statistics(),
          hotRequests: server.hotRequests,
        };
      case 'activate':
        await server.setAccess((args as { access: Access }).access);
        return {};
      case 'flush':
        await device.flush();
        return {};
      case 'seal':
        await server.setAccess('readonly');
        await device.flush();
        return {};
      default:
        throw new Error(`no operation ${op}`);
    }
  },
});
rpc.emit('ready', {});
// Restarts then read compiled code instead of stripping types again: faster, and some 20 MiB less resident.
flushCompileCache();
const how = await Promise.race([
  rpc.closed.then(() => 0),
  server.closed.then(
    () => 0,
    (error: unknown) => {
      process.stderr.write(`${String(error)}\n`);
      return 1;
    },
  ),
]);
await server.stop();
process.exit(how);
