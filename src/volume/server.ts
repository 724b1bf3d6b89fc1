// First: see there.
import '../sys/thread-pool.ts';
import { flushCompileCache } from 'node:module';
import { systemClock } from '../base/clock.ts';
import { toWireError } from '../base/errors.ts';
import { lineLogger } from '../base/line-logger.ts';
import { LINE_BYTES_MAX, LineRpc } from '../base/line-rpc.ts';
import type { Logger } from '../base/logger.ts';
import { PeerBook } from '../base/peer-account.ts';
import { systemRandom } from '../base/random.ts';
import { performOperation, type VolumeAnswers } from '../opening/perform.ts';
import { badSpec } from '../opening/read-fields.ts';
import { parseSpec } from '../opening/read-spec.ts';
import { isAttach } from '../opening/role.ts';
import type { AttachSpec, ExportSpec, OpeningSpec, ServeSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import { StatusReporter } from './status-reporter.ts';

/**
 * The volume server: one process that serves one volume. opening/ says what it is told and asked.
 * Descriptors: 0 and 1 the conversation with the supervisor, 2 the log (JSON lines), 3 the FUSE connection in
 * role `attach`.
 *
 * Exit codes: 0 ended in good order (SIGTERM, unmounted, or an export whose supervisor is gone), 1 broke
 * while serving, 2 could not start; the `failed` event says why.
 */

const LOG_FD = 2;
const FUSE_FD = 3;
const EXIT_BROKEN = 1;
const EXIT_NOT_STARTED = 2;
/**
 * Of this process: a volume server serves one volume, by FUSE and a socket, by a target, or by one for
 * others.
 */
const PEERS = new PeerBook(systemClock);

/** Everything up to the first newline; what follows it stays in the stream. */
async function readFirstLine(input: NodeJS.ReadStream): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  return new Promise((resolve, reject) => {
    const onEnd = () => reject(badSpec('the input ended before a spec came'));
    const onReadable = () => {
      for (let chunk: Buffer | null = input.read(); chunk !== null; chunk = input.read()) {
        const newline = chunk.indexOf(10);
        chunks.push(newline === -1 ? chunk : chunk.subarray(0, newline));
        bytes += chunk.length;
        if (newline === -1 && bytes <= LINE_BYTES_MAX) continue;
        input.off('readable', onReadable);
        input.off('end', onEnd);
        if (newline === -1) return reject(badSpec(`the first line is longer than ${LINE_BYTES_MAX} bytes`));
        if (newline + 1 < chunk.length) input.unshift(chunk.subarray(newline + 1));
        return resolve(Buffer.concat(chunks).toString('utf8'));
      }
    };
    input.on('readable', onReadable);
    input.on('end', onEnd);
  });
}

type Served = {
  status: () => VolumeServerStatus;
  operations: VolumeAnswers;
  /** Called when events can be told. */
  start: () => void;
  ready: { port?: number; instance?: string };
  /** Resolves when there is nothing left to serve. */
  closed: Promise<void>;
  close: () => Promise<void>;
};

async function serveAttached(
  spec: AttachSpec,
  logger: Logger,
  emit: (event: string, data: unknown) => void,
  lookNow: () => void,
): Promise<Served> {
  // Each role loads its own code only: it is most of the memory of an idle server.
  const { AttachedVolume } = await import('./attached-volume.ts');
  const volume = await AttachedVolume.open(spec, {
    fuseFd: FUSE_FD,
    clock: systemClock,
    random: systemRandom,
    logger,
    peers: PEERS,
    onHydrated: () => emit('hydrated', {}),
    onDataLost: lookNow,
  });
  return {
    status: () => volume.status(),
    operations: {
      activate: (access) => volume.activate(access),
      flush: () => volume.flush(),
      seal: () => volume.seal(),
      'prime-free-map': (filesystem) => volume.primeFreeMap(filesystem),
      superblock: () => volume.superblock(),
      'free-map': (filesystem) => volume.sealFreeMap(filesystem),
      hydration: (settings) => volume.configureHydration(settings),
      finish: () => volume.finish(),
      'give-up-source': () => volume.giveUpSource(),
      room: (leaving) => volume.leave(leaving),
      heat: () => ({ regions: volume.heat() }),
      warm: (regions) => volume.warm(regions),
      fetched: (cursor) => volume.prove((proof) => proof.fetched(cursor)),
      unfetched: (cursor) => volume.prove((proof) => proof.unfetched(cursor)),
      mend: (request) => volume.prove((proof) => proof.mend(request)),
      figures: (freeMapDigest) => volume.prove((proof) => proof.figures(freeMapDigest)),
    },
    start: () => volume.start(),
    ready: volume.instance === null ? {} : { instance: volume.instance },
    closed: volume.closed,
    close: () => volume.close(),
  };
}

async function serveExported(spec: ExportSpec, logger: Logger): Promise<Served> {
  const { ExportedVolume } = await import('./exported-volume.ts');
  const volume = await ExportedVolume.open(spec, {
    clock: systemClock,
    random: systemRandom,
    logger,
    peers: PEERS,
  });
  return {
    status: () => volume.status(),
    operations: {
      activate: (access) => volume.activate(access),
      flush: () => undefined,
      seal: () => undefined,
      grant: (grant) => volume.grant(grant),
      revoke: (initiatorIqn) => volume.revoke(initiatorIqn),
      digests: (ranges) => volume.digests(ranges),
      owed: ({ range, cursor }) => volume.owed(range, cursor),
      stated: (cursor) => volume.stated(cursor),
    },
    start: () => {},
    ready: { port: volume.port },
    closed: new Promise(() => {}),
    close: () => volume.close(),
  };
}

async function serveToOthers(spec: ServeSpec, logger: Logger): Promise<Served> {
  const { ServedVolume } = await import('./served-volume.ts');
  const volume = await ServedVolume.open(spec, {
    clock: systemClock,
    random: systemRandom,
    logger,
    peers: PEERS,
  });
  return {
    status: () => volume.status(),
    operations: { flush: () => volume.flush() },
    start: () => {},
    ready: volume.port === null ? {} : { port: volume.port },
    closed: new Promise(() => {}),
    close: () => volume.close(),
  };
}

async function serve(
  spec: OpeningSpec,
  logger: Logger,
  emit: (event: string, data: unknown) => void,
  lookNow: () => void,
): Promise<Served> {
  switch (spec.kind) {
    case 'own':
    case 'clone':
    case 'import':
      return serveAttached(spec, logger, emit, lookNow);
    case 'export':
      return serveExported(spec, logger);
    case 'serve':
      return serveToOthers(spec, logger);
  }
}

async function main(): Promise<void> {
  const logger: Logger = lineLogger(LOG_FD, systemClock);
  const opened = Promise.withResolvers<Served>();
  opened.promise.catch(() => {}); // told by `failed`; requests that wait for it are told too
  let rpc: LineRpc | undefined;
  let reporter: StatusReporter | undefined;
  const emit = (event: string, data: unknown) => rpc?.emit(event, data);
  const fail = (error: unknown, message: string, exitCode: number) => {
    logger.error({ error: toWireError(error) }, message);
    emit('failed', toWireError(error));
    // Once the pipe has taken the event: writes to it may be asynchronous.
    process.stdout.write('', () => process.exit(exitCode));
  };

  let spec: OpeningSpec;
  let served: Served;
  try {
    const line = await readFirstLine(process.stdin);
    rpc = new LineRpc(process.stdin, process.stdout, {
      handler: async (op, args) => {
        const { status, operations } = await opened.promise;
        return performOperation({ status, ...operations }, op, args);
      },
    });
    spec = parseSpec(line);
    // Before there is a key in this process.
    if ('encryption' in spec) (await import('../sys/secret-memory.ts')).keepOutOfDumps();
    served = await serve(spec, logger, emit, () => reporter?.look());
  } catch (error) {
    opened.reject(error);
    fail(error, 'the volume server could not start', EXIT_NOT_STARTED);
    return;
  }
  opened.resolve(served);
  emit('ready', served.ready);
  served.start();
  // Now, because a server that is killed would not: the next one starts in half the time, and without the
  // compiler's memory.
  flushCompileCache();
  reporter = new StatusReporter({ status: served.status, emit, clock: systemClock });
  reporter.start();

  let isEnding = false;
  const end = async (reason: string) => {
    // The unmount and the signal that follows it come together, and the second must not find the volume half
    // closed.
    if (isEnding) return;
    isEnding = true;
    reporter?.stop();
    try {
      await served.close();
      logger.info({ reason }, 'the volume server ended');
      process.exit(0);
    } catch (error) {
      fail(error, 'the volume server did not end in good order', EXIT_BROKEN);
    }
  };
  process.once('SIGTERM', () => void end('SIGTERM'));
  process.once('SIGINT', () => void end('SIGINT'));
  served.closed.then(
    () => end('the file was unmounted'),
    (error) => fail(error, 'serving the file broke', EXIT_BROKEN),
  );
  // The supervisor is gone. A guest goes on: its supervisor comes back, or whoever cleans up unmounts the
  // file. A server of a port would only stand in the way of the next one on the same port.
  if (!isAttach(spec)) void rpc.closed.then(() => end('the supervisor is gone'));
}

void main();
