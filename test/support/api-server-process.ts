import { readdirSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createApiServer } from '../../src/api/server.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { createServer } from '../../src/sys/http.ts';
import { FakeWorkerService } from './fake-service.ts';

/**
 * An API server in a process of its own, with the limits that the process was started with. Prints a line of
 * JSON for each thing that it has to say: `{port, controlPort}` at the start, `{exhausted}` for each report.
 * A GET of the control port answers with the descriptors that are open, after opening one more, as the
 * worker's own work does.
 */
const app = await createApiServer({
  service: new FakeWorkerService('worker-1'),
  token: process.argv[2]!,
  logger: silentLogger,
  version: '1',
  onExhausted: (exhausted) => console.log(JSON.stringify({ exhausted })),
});
await app.listen({ host: '127.0.0.1', port: 0 });
const control = createServer((_request, response) => {
  // Reading the folder takes a descriptor itself.
  response.end(JSON.stringify({ descriptors: readdirSync('/proc/self/fd').length }));
});
control.listen(0, '127.0.0.1', () => {
  const port = (app.server.address() as AddressInfo).port;
  console.log(JSON.stringify({ port, controlPort: (control.address() as AddressInfo).port }));
});
