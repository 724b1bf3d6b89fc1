import {
  Agent,
  type ClientRequest,
  createServer,
  request as httpRequest,
  type IncomingMessage,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import type { TestContext } from 'node:test';
import type { Clock } from '../../src/base/clock.ts';
import { GodwitError } from '../../src/base/errors.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import type {
  Ask,
  Dialect,
  Link,
  Piece,
  RemoteUnit,
  Session,
  SessionHost,
} from '../../src/remote/dialect.ts';
import { type ConnectWait, RemoteDisk, type RemoteOptions } from '../../src/remote/remote-disk.ts';
import { NO_BYTES, type RemoteCommand, type RemoteRequest } from '../../src/remote/request.ts';

/**
 * A disk over plain HTTP: GET and PUT of ranges, and HEAD for what it is. No product: it shows that a protocol
 * without sessions is a dialect like the others, and passes what they pass.
 */
type HttpUnit = RemoteUnit & { etag: string };
type HttpCommand = RemoteCommand & { readonly method: 'GET' | 'PUT' | 'HEAD' };
type Host = SessionHost<HttpUnit, HttpCommand>;

const READ: HttpCommand = { counts: 'read', method: 'GET' };
const WRITE: HttpCommand = { counts: 'write', method: 'PUT' };
const LOOK: HttpCommand = { counts: null, method: 'HEAD' };
/** The server is not sure that it is the disk that it was. */
export const CONFLICT = 409;
const BLOCK_BYTES = 512;
const TRANSFER_BYTES = 256 * 1024;

function httpError(code: string, message: string, retry?: 'never' | 'later'): GodwitError {
  return new GodwitError(code, message, { nextAction: '-', ...(retry === undefined ? {} : { retry }) });
}

class HttpDialect implements Dialect<HttpUnit, HttpCommand> {
  readonly name = 'HTTP';
  readonly codes = { lost: 'HTTP_LOST', changed: 'HTTP_CHANGED' };
  readonly placeCount = 1;
  readonly reads = READ;
  readonly writes = WRITE;
  readonly #port: number;
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #expectedBytes: number | null;

  constructor(port: number, clock: Clock, timeoutMs: number, expectedBytes: number | null) {
    this.#port = port;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
    this.#expectedBytes = expectedBytes;
  }

  place = () => ({ port: this.#port });
  sessionsMax = () => 1;
  /** The server has written what it acknowledges. */
  durableWrites = () => WRITE;
  flushes = () => null;
  zeroes = () => null;
  isUnsupported = () => false;
  takes = () => true;
  writable = () => true;
  transferBytesMax = () => TRANSFER_BYTES;
  unreachable = () => httpError('HTTP_LOST', 'not reached');
  timedOut = () => httpError('HTTP_SILENT', 'silent', 'later');
  poisoned = () => httpError('HTTP_FAILED', 'the server ends the connection whenever it gets this');
  typed = (error: unknown) => (error instanceof GodwitError ? error : httpError('HTTP_LOST', String(error)));

  async pieces(_ask: unknown, _unit: HttpUnit, _offsetBytes: number, lengthBytes: number): Promise<Piece[]> {
    return [{ lengthBytes, kind: 'data' }];
  }

  changed(seen: HttpUnit, known: HttpUnit | null): GodwitError | null {
    const isSame =
      known === null
        ? seen.lengthBytes === (this.#expectedBytes ?? seen.lengthBytes)
        : seen.etag === known.etag && seen.lengthBytes === known.lengthBytes;
    return isSame ? null : httpError('HTTP_CHANGED', 'another disk', 'never');
  }

  async look(ask: Ask<HttpCommand>): Promise<void> {
    await ask({ command: LOOK, offsetBytes: 0, lengthBytes: 0, buffer: NO_BYTES });
  }

  dial(_place: number, host: Host): Link {
    const session = new HttpSession(this.#port, this.#clock, this.#timeoutMs, host);
    session.look();
    return { destroy: () => session.destroy(), leave: async () => {} };
  }
}

/** From the first look at the disk to the first request that the network failed. */
class HttpSession implements Session<HttpCommand> {
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 16 });
  readonly #port: number;
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #host: Host;
  readonly #cancels = new Set<() => void>();
  #over = false;

  constructor(port: number, clock: Clock, timeoutMs: number, host: Host) {
    this.#port = port;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
    this.#host = host;
  }

  get hasRoom(): boolean {
    return !this.#over;
  }

  look(): void {
    this.#request('HEAD', {}, (response) => {
      const { 'content-length': length, etag = '' } = response.headers;
      response.resume();
      try {
        this.#host.ready(this, { lengthBytes: Number(length), blockBytes: BLOCK_BYTES, etag });
      } catch (error) {
        this.fail(error as GodwitError);
      }
    }).end();
  }

  send(request: RemoteRequest<HttpCommand>): void {
    const { command, offsetBytes, lengthBytes, buffer } = request;
    const range = `bytes=${offsetBytes}-${offsetBytes + lengthBytes - 1}`;
    const out = this.#request(command.method, { range }, (response) => {
      response.on('data', (chunk: Buffer) => {
        if (this.#over) return;
        buffer.set(chunk.subarray(0, buffer.length - request.movedBytes), request.movedBytes);
        request.movedBytes += chunk.length;
      });
      response.on('end', () => {
        if (this.#over) return;
        const isWhole = command === WRITE || request.movedBytes === buffer.length;
        const error = httpError('HTTP_FAILED', `status ${response.statusCode}`);
        const again = response.statusCode === CONFLICT ? 'afterLook' : 'no';
        this.#host.answered(request, response.statusCode === 200 && isWhole ? null : { error, again });
        this.#host.room();
      });
    });
    if (command !== WRITE) {
      out.end();
      return;
    }
    request.unsentParts += 1;
    out.setHeader('content-length', buffer.length);
    out.end(buffer, () => this.#host.sent(request));
  }

  fail(error: GodwitError): void {
    if (this.#over) return;
    this.#over = true;
    this.#host.over(error);
  }

  destroy(): void {
    this.#over = true;
    for (const cancel of this.#cancels) cancel();
    this.#agent.destroy();
  }

  #request(
    method: string,
    headers: Record<string, string>,
    onResponse: (response: IncomingMessage) => void,
  ): ClientRequest {
    const where = { host: '127.0.0.1', port: this.#port, agent: this.#agent };
    const made = httpRequest({ ...where, method, headers }, onResponse);
    const lost = (why: unknown): void => this.fail(httpError('HTTP_LOST', String(why)));
    const cancelTimer = this.#clock.timer(this.#timeoutMs, () =>
      this.fail(httpError('HTTP_SILENT', 'silent', 'later')),
    );
    const end = (): void => {
      cancelTimer();
      made.destroy();
    };
    this.#cancels.add(end);
    made.on('error', lost);
    made.on('response', (response) => response.on('error', lost));
    made.on('close', () => {
      cancelTimer();
      this.#cancels.delete(end);
    });
    return made;
  }
}

export class HttpDisk extends RemoteDisk<HttpUnit, HttpCommand> {
  private constructor(port: number, timeoutMs: number, options: RemoteOptions, lengthBytes: number | null) {
    const dialect = new HttpDialect(port, options.clock, timeoutMs, lengthBytes);
    const expected = lengthBytes === null ? null : { lengthBytes };
    super(dialect, { ...options, connectTimeoutMs: timeoutMs, expected });
  }

  static async connect(
    port: number,
    timeoutMs: number,
    options: RemoteOptions,
    wait: ConnectWait = {},
  ): Promise<HttpDisk> {
    return new HttpDisk(port, timeoutMs, options, null).connected(wait);
  }

  static open(port: number, timeoutMs: number, options: RemoteOptions, lengthBytes: number): HttpDisk {
    return new HttpDisk(port, timeoutMs, options, lengthBytes).start();
  }
}

/** Serves the device; gone after the test. `refuse`: a request is answered with that status and nothing else. */
export async function serveHttpDisk(
  t: TestContext,
  device: BlockDevice,
  refuse: (method: string | undefined) => number | undefined = () => undefined,
): Promise<{ host: string; port: number }> {
  const server = createServer(async (request, response) => {
    request.on('error', () => {});
    response.on('error', () => {});
    const [start = 0, end = 0] =
      /(\d+)-(\d+)/
        .exec(request.headers.range ?? '')
        ?.slice(1)
        .map(Number) ?? [];
    const refused = refuse(request.method);
    if (refused !== undefined) {
      request.resume();
      response.writeHead(refused).end();
      return;
    }
    if (request.method === 'HEAD') {
      response
        .setHeader('etag', `"${device.lengthBytes}"`)
        .setHeader('content-length', device.lengthBytes)
        .end();
      return;
    }
    try {
      if (request.method === 'GET') {
        const buffer = Buffer.alloc(end + 1 - start);
        await device.read(start, buffer);
        response.end(buffer);
        return;
      }
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      await device.write(start, Buffer.concat(chunks));
      response.end();
    } catch {
      response.destroy();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port };
}
