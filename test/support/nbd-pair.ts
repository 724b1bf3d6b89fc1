import type { TestContext } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import type { NbdAddress } from '../../src/nbd/client-uri.ts';
import type { NbdExportOptions } from '../../src/nbd/export.ts';
import { NbdClient, type NbdClientOptions } from '../../src/nbd/index.ts';
import { NbdServer, type NbdServerOptions } from '../../src/nbd/server.ts';

/** A server on a port of its own with one export, called `disk`; gone after the test. */
export async function startNbdServer(
  t: TestContext,
  device: BlockDevice,
  options: { share?: Partial<NbdExportOptions>; server?: Partial<NbdServerOptions> } = {},
): Promise<{ server: NbdServer; address: { host: string; port: number } }> {
  const server = await NbdServer.listen({
    address: { host: '127.0.0.1', port: 0 },
    clock: systemClock,
    logger: silentLogger,
    ...options.server,
  });
  t.after(() => server.close());
  server.addExport({ name: 'disk', device, readOnly: !device.writable, ...options.share });
  return { server, address: server.address as { host: string; port: number } };
}

export function nbdClientOptions(
  address: NbdAddress,
  options: Partial<NbdClientOptions> = {},
): NbdClientOptions {
  return {
    address,
    exportName: 'disk',
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
    readOnly: false,
    backoffMs: 5,
    backoffMsMax: 50,
    ...options,
  };
}

/** A client that is connected; closed after the test. */
export async function startNbdClient(
  t: TestContext,
  address: NbdAddress,
  options: Partial<NbdClientOptions> = {},
): Promise<NbdClient> {
  const client = await NbdClient.connect(nbdClientOptions(address, options));
  t.after(() => client.close());
  return client;
}
