import { chmodSync, mkdirSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { flushCompileCache } from 'node:module';
import { createServer, type Server } from 'node:net';
import { join, resolve } from 'node:path';
import { systemClock } from '../base/clock.ts';
import { collectAfterStart } from '../base/collect-after-start.ts';
import { messageOf, systemErrorCode } from '../base/errors.ts';
import { lineLogger } from '../base/line-logger.ts';
import { LineRpc } from '../base/line-rpc.ts';
import type { Logger } from '../base/logger.ts';
import { SharedRuns } from '../base/serial.ts';
import { readCgroupLayout } from '../host/cgroup.ts';
import { jailRuntime } from '../jail/runtime.ts';
import { shimLockName } from '../shim/lock.ts';
import { SHIM_EXIT_TAKEN, SHIM_FILES } from '../shim/protocol.ts';
import { ShimService } from '../shim/service.ts';
import { Workload } from './workload.ts';

/**
 * Process main: `node shim.ts <runtimeDir> [<hidden folder>…]`. Started detached by shim/client.ts with its
 * output in `shim.log`; from then on it depends on nobody. SIGTERM is an orderly shutdown.
 */
const LOG_FD = 2;

async function main(): Promise<void> {
  const [folder, ...hidden] = process.argv.slice(2).map((path) => resolve(path));
  if (folder === undefined) throw new Error('usage: shim.ts <runtimeDir> [<hidden folder>…]');
  process.umask(0o077);
  mkdirSync(folder, { recursive: true });
  const runtimeDir = realpathSync(folder);
  const logger = lineLogger(LOG_FD, systemClock, { shim: process.pid });
  const holder = await lock(runtimeDir);
  protectFromOutOfMemory(logger);

  const connections = new Set<LineRpc>();
  let isOver = false;
  const service: ShimService = new ShimService({
    runtimeDir,
    clock: systemClock,
    logger,
    workload: new Workload({
      runtimeDir,
      hidden,
      runtimes: { process: jailRuntime },
      cgroupLayout: readCgroupLayout(),
      clock: systemClock,
      logger,
      onChange: () => service.changed(),
    }),
    makeBackend: async (plane, events) => {
      const options = { clock: systemClock, logger, ...events };
      if (plane === 'kernel') {
        const { kernelBackend } = await import('../kernel/backend.ts');
        return kernelBackend({ runtimeDir, ...options });
      }
      const { userspaceBackend } = await import('../volume/backend.ts');
      setTimeout(flushCompileCache, 500).unref();
      const fuseDir = join(runtimeDir, SHIM_FILES.fuse);
      return userspaceBackend({ fuseDir, logPath: join(runtimeDir, SHIM_FILES.serverLog), ...options });
    },
    emit: (event, data) => {
      for (const connection of connections) connection.emit(event, data);
    },
    onShutdown: () => {
      isOver = true;
      // The next one may start: this one holds nothing any more.
      holder.close();
      logger.info({}, 'shim ends');
      for (const name of [SHIM_FILES.socket, SHIM_FILES.state]) {
        try {
          rmSync(join(runtimeDir, name), { force: true });
        } catch (error) {
          // A disk that has become read-only: who finds the file finds no process behind it.
          logger.warn({ name, reason: messageOf(error) }, 'a file of this shim stays');
        }
      }
      // The answer to the shutdown is on its way out.
      setTimeout(() => process.exit(0), 20);
    },
  });
  await service.writeState();

  const server = createServer((socket) => {
    const connection = new LineRpc(socket, socket, { handler: (op, args) => service.handle(op, args) });
    connections.add(connection);
    void connection.closed.then(() => {
      connections.delete(connection);
      socket.destroy();
    });
  });
  const socket = new ShimSocket(server, join(runtimeDir, SHIM_FILES.socket));
  await socket.listen();
  whenLookedFor(holder, async () => {
    if (isOver || socket.isThere()) return;
    logger.warn({ runtimeDir }, 'the socket is gone: the shim makes it and its state again');
    mkdirSync(runtimeDir, { recursive: true, mode: 0o700 });
    await service.rewriteState();
    await socket.listen();
  });
  process.on('SIGTERM', () => {
    logger.info({}, 'SIGTERM: shutting down');
    service.shutdown().catch((error: unknown) => {
      logger.error({ reason: messageOf(error) }, 'shutdown failed; the shim stays until it is asked again');
    });
  });
  // Whatever goes wrong here, the machine must not lose its shim for it.
  process.on('unhandledRejection', (reason) =>
    logger.error({ reason: messageOf(reason) }, 'unhandled rejection'),
  );
  process.on('uncaughtException', (error) =>
    logger.error({ reason: messageOf(error), stack: error.stack }, 'uncaught'),
  );
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGPIPE'] as const) process.on(signal, () => {});
  server.on('error', (error) => logger.error({ reason: messageOf(error) }, 'a connection was not taken'));
  logger.info({ runtimeDir }, 'shim listens');
  // Node writes its compile cache at the exit, which for a shim is far away; the next shims want it now.
  collectAfterStart(systemClock);
  setTimeout(flushCompileCache, 500).unref();
}

/** Where a shim is spoken to; may be made again where somebody has removed it. */
class ShimSocket {
  readonly #server: Server;
  readonly #path: string;
  #inode: number | undefined;

  constructor(server: Server, path: string) {
    this.#server = server;
    this.#path = path;
  }

  /** Whether what is at the path is this socket. */
  isThere(): boolean {
    return this.#inode !== undefined && this.#inodeThere() === this.#inode;
  }

  async listen(): Promise<void> {
    // Conversations that are under way go on.
    if (this.#server.listening) this.#server.close();
    rmSync(this.#path, { force: true });
    await listen(this.#server, this.#path);
    chmodSync(this.#path, 0o600);
    this.#inode = this.#inodeThere();
  }

  #inodeThere(): number | undefined {
    return statSync(this.#path, { throwIfNoEntry: false })?.ino;
  }
}

/**
 * Who finds neither socket nor state asks the lock whether a shim lives. Somebody who empties a runtime
 * folder (a cleaner of old files, a person) must not make a shim that nobody finds and that keeps out the
 * next.
 */
function whenLookedFor(holder: Server, beThere: () => Promise<void>): void {
  const looks = new SharedRuns();
  holder.on('connection', () => void looks.run(beThere).catch(() => {})); // asked again by who still finds none
}

/**
 * Two shims on one folder would fight for its socket. An abstract socket (unix(7)) is taken by one process at
 * a time and is gone with it, so it is a lock that cannot be left behind.
 */
async function lock(runtimeDir: string): Promise<Server> {
  const holder = createServer((socket) => socket.destroy());
  try {
    await listen(holder, shimLockName(runtimeDir));
  } catch (cause) {
    if (systemErrorCode(cause) !== 'EADDRINUSE') throw cause;
    process.exit(SHIM_EXIT_TAKEN);
  }
  holder.unref();
  return holder;
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/**
 * Dirty pages of the machine can only be written with the help of this process's children: the OOM killer
 * must leave them alone.
 */
function protectFromOutOfMemory(logger: Logger): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', '-1000');
  } catch (error) {
    logger.warn({ reason: messageOf(error) }, 'not protected from the OOM killer');
  }
}

main().catch((error: unknown) => {
  lineLogger(LOG_FD, systemClock, { shim: process.pid }).error(
    { reason: messageOf(error) },
    'shim could not start',
  );
  process.exit(1);
});
