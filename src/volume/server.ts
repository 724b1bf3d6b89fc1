// First: see there.
import '../sys/thread-pool.ts';
import { flushCompileCache } from 'node:module';
import { ClientBook } from '../base/client-account.ts';
import { systemClock } from '../base/clock.ts';
import { collectAfterStart } from '../base/collect-after-start.ts';
import { toWireError } from '../base/errors.ts';
import { lineLogger } from '../base/line-logger.ts';
import { LINE_BYTES_MAX, LineRpc } from '../base/line-rpc.ts';
import type { Logger } from '../base/logger.ts';
import { systemRandom } from '../base/random.ts';
import { performOperation, type VolumeAnswers } from '../opening/perform.ts';
import { badSpec } from '../opening/read-fields.ts';
import { parseSpec } from '../opening/read-spec.ts';
import { isAttach } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
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
const CLIENTS = new ClientBook(systemClock);

/** A supervisor that is stopped reads nothing, and is told no more of it than this. */
const UNREAD_EVENTS_BYTES_MAX = 64 * 1024;

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
  volume: { answers: VolumeAnswers; status(): VolumeServerStatus; close(): Promise<void> };
  /** Called when events can be told. */
  start?: () => void;
  ready: { port?: number; instance?: string };
  /** Resolves when there is nothing left to serve; left out: never. */
  closed?: Promise<void>;
};

type Told = {
  logger: Logger;
  emit: (event: string, data: unknown) => void;
  /** The status has something that cannot wait. */
  lookNow: () => void;
};

/** Each role loads its own code only: it is most of the memory of an idle server. */
async function serve(spec: OpeningSpec, { logger, emit, lookNow }: Told): Promise<Served> {
  const options = { clock: systemClock, random: systemRandom, logger, clients: CLIENTS };
  switch (spec.kind) {
    case 'own':
    case 'clone':
    case 'import': {
      const { AttachedVolume } = await import('./attached-volume.ts');
      const onHydrated = () => emit('hydrated', {});
      const more = { fuseFd: FUSE_FD, onHydrated, onDataLost: lookNow };
      const volume = await AttachedVolume.open(spec, { ...options, ...more });
      const { instance, closed } = volume;
      return { volume, start: () => volume.start(), ready: instance === null ? {} : { instance }, closed };
    }
    case 'export': {
      const { ExportedVolume } = await import('./exported-volume.ts');
      const volume = await ExportedVolume.open(spec, options);
      return { volume, ready: { port: volume.port } };
    }
    case 'serve': {
      const { ServedVolume } = await import('./served-volume.ts');
      const volume = await ServedVolume.open(spec, { ...options, onDataLost: lookNow });
      return { volume, ready: volume.port === null ? {} : { port: volume.port } };
    }
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
        const { volume } = await opened.promise;
        return performOperation(volume.answers, op, args);
      },
    });
    spec = parseSpec(line);
    // Before there is a key in this process.
    if ('encryption' in spec) (await import('../sys/secret-memory.ts')).keepOutOfDumps();
    served = await serve(spec, { logger, emit, lookNow: () => reporter?.look() });
  } catch (error) {
    opened.reject(error);
    fail(error, 'the volume server could not start', EXIT_NOT_STARTED);
    return;
  }
  opened.resolve(served);
  emit('ready', served.ready);
  collectAfterStart(systemClock);
  served.start?.();
  // Now, because a server that is killed would not: the next one starts in half the time, and without the
  // compiler's memory.
  flushCompileCache();
  const isHeard = () => (rpc?.unreadBytes ?? 0) < UNREAD_EVENTS_BYTES_MAX;
  reporter = new StatusReporter({ status: () => served.volume.status(), emit, isHeard, clock: systemClock });
  reporter.start();

  let isEnding = false;
  const end = async (reason: string) => {
    // The unmount and the signal that follows it come together, and the second must not find the volume half
    // closed.
    if (isEnding) return;
    isEnding = true;
    reporter?.stop();
    try {
      await served.volume.close();
      logger.info({ reason }, 'the volume server ended');
      process.exit(0);
    } catch (error) {
      fail(error, 'the volume server did not end in good order', EXIT_BROKEN);
    }
  };
  process.once('SIGTERM', () => void end('SIGTERM'));
  process.once('SIGINT', () => void end('SIGINT'));
  served.closed?.then(
    () => end('the file was unmounted'),
    (error) => fail(error, 'serving the file broke', EXIT_BROKEN),
  );
  // The supervisor is gone. A guest goes on: its supervisor comes back, or whoever cleans up unmounts the
  // file. A server of a port would only stand in the way of the next one on the same port.
  if (!isAttach(spec)) void rpc.closed.then(() => end('the supervisor is gone'));
}

void main();
