import { join } from 'node:path';
import type { ClientBook } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { SparedFlushes } from '../block/spared-flushes.ts';
import { ANY_INITIATOR, IscsiTarget } from '../iscsi/index.ts';
import { NbdServer } from '../nbd/index.ts';
import type { OpenVolume } from '../opening/open-volume.ts';
import type { AnswersOf } from '../opening/perform.ts';
import type { ServeListen, ServeSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { TlsFiles, TlsIdentity } from '../sys/tls-identity.ts';
import { DataGuard, GuardedFile } from './data-guard.ts';
import type { DataLock } from './data-lock.ts';
import { type DiskRoom, RoomyDevice, roomOf } from './disk-room.ts';
import type { UnlockedVolume } from './encryption.ts';
import { passFence } from './fence.ts';
import { VOLUME_FILES } from './files.ts';
import { exportSerial } from './specs.ts';

export type ServedVolumeOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What clients make this process hold, whatever it serves them by. */
  clients: ClientBook;
  /** The disk lost what a client wrote. */
  onDataLost: () => void;
};

/** What clients talk to. */
type Listener = {
  /** Null for a unix socket. */
  port: number | null;
  /** URI without a secret. */
  location: string;
  connections: () => number;
  close: () => Promise<void>;
};

const BLOCK_BYTES = 512;

/** Role `serve`: a whole volume, its plaintext where it is encrypted, for clients of other systems. */
export class ServedVolume implements OpenVolume<'serve', 'userspace'> {
  readonly answers: AnswersOf<'serve', 'userspace'> = {
    status: () => this.status(),
    flush: () => this.#flush(),
  };
  readonly #spec: ServeSpec;
  readonly #device: BlockDevice;
  readonly #guard: DataGuard;
  /** Null: nobody writes. */
  readonly #room: DiskRoom | null;
  readonly #listener: Listener;
  readonly #lock: DataLock;
  readonly #forgetKey: () => void;

  private constructor(
    spec: ServeSpec,
    parts: {
      device: BlockDevice;
      guard: DataGuard;
      room: DiskRoom | null;
      listener: Listener;
      lock: DataLock;
      forgetKey: () => void;
    },
  ) {
    this.#spec = spec;
    this.#device = parts.device;
    this.#guard = parts.guard;
    this.#room = parts.room;
    this.#listener = parts.listener;
    this.#lock = parts.lock;
    this.#forgetKey = parts.forgetKey;
  }

  /**
   * Takes the lock and listens. A reader passes the fence of a writer too: nobody else has the volume open
   * meanwhile. Rejects with the errors of the fence, `BLOCK_SHORT_FILE`, those of encryption.ts,
   * `NBD_LISTEN_FAILED`, `ISCSI_LISTEN_FAILED`.
   */
  static async open(spec: ServeSpec, options: ServedVolumeOptions): Promise<ServedVolume> {
    const { serve } = spec;
    const lock = await passFence(spec, 'write', options.clock);
    let unlocked: UnlockedVolume | null = null;
    let device: BlockDevice | null = null;
    const forgetKey = () => unlocked?.volumeKey.dispose();
    try {
      // As of a volume that a machine has: who lost a write, and asks the next server, is told too.
      const guard = new DataGuard({ ...spec, clock: options.clock, logger: options.logger });
      guard.onLost(options.onDataLost);
      const file = await FileDevice.open({
        file: join(spec.volumeDir, VOLUME_FILES.data),
        lengthBytes: spec.lengthBytes,
        blockBytes: BLOCK_BYTES,
        writable: spec.access === 'writable',
        flushFailureStays: false,
      });
      device = new GuardedFile(file, guard);
      lock.checkIs(file.fileDescriptor);
      if (spec.encryption) {
        const { plaintextOf, unlockVolume } = await import('./encryption.ts');
        unlocked = await unlockVolume({ ...spec, encryption: spec.encryption });
        device = plaintextOf(device, unlocked, spec.encryption.holes);
      }
      if (device.writable) device = new SparedFlushes(device);
      const room = spec.access === 'writable' ? roomOf(spec, file, options.clock) : null;
      if (room) device = new RoomyDevice(device, room);
      const listener =
        serve.listen.kind === 'iscsi'
          ? await listenIscsi(spec, serve.listen, device, options)
          : await listenNbd(spec, serve.exportName, serve.listen, device, options);
      return new ServedVolume(spec, { device, guard, room, listener, lock, forgetKey });
    } catch (error) {
      await device?.close();
      forgetKey();
      lock.release();
      throw error;
    }
  }

  get port(): number | null {
    return this.#listener.port;
  }

  status(): VolumeServerStatus {
    const { volumeId, generation, access } = this.#spec;
    const counts = { reads: 0, readBytes: 0, writes: 0, writeBytes: 0, flushes: 0, misses: 0 };
    const latencies = { readLatencyP50Ms: 0, readLatencyP99Ms: 0, missLatencyP50Ms: 0, missLatencyP99Ms: 0 };
    const noRoom = this.#room?.shortage();
    const { lost } = this.#guard;
    return {
      role: 'serve',
      volumeId,
      generation,
      access,
      residentBytes: process.memoryUsage.rss(),
      guest: { ...counts, ...latencies },
      served: { location: this.#listener.location, connections: this.#listener.connections() },
      ...(noRoom && { noRoom }),
      ...(lost && { dataLoss: { atMs: lost.atMs, reason: lost.reason } }),
    };
  }

  async #flush(): Promise<void> {
    if (this.#device.writable) await this.#device.flush();
  }

  /**
   * Drops the clients. What they wrote is durable when it resolves; a write that waits for room is refused.
   */
  async close(): Promise<void> {
    this.#room?.close({ refuse: true });
    await this.#listener.close();
    // What is lost was told.
    if (this.#guard.lost === null) await this.#flush();
    await this.#device.close();
    this.#forgetKey();
    this.#lock.release();
  }
}

async function listenNbd(
  spec: ServeSpec,
  exportName: string,
  listen: Exclude<ServeListen, { kind: 'iscsi' }>,
  device: BlockDevice,
  { clock, logger, clients }: ServedVolumeOptions,
): Promise<Listener> {
  const unix = listen.kind === 'nbd-unix';
  const tls = unix || !listen.tls ? {} : { tls: { identity: await identityOf(listen.tls, logger) } };
  const address = unix ? { path: listen.path } : { host: listen.host, port: listen.port };
  const server = await NbdServer.listen({ address, ...tls, clock, logger, clients });
  server.addExport({
    name: exportName,
    device,
    readOnly: spec.access !== 'writable',
    // This process does nothing else.
    writesNow: true,
  });
  const name = encodeURIComponent(exportName);
  const port = 'port' in server.address ? server.address.port : null;
  const location = unix
    ? `nbd+unix:///${name}?socket=${encodeURI(listen.path)}`
    : `${listen.tls ? 'nbds' : 'nbd'}://${authority(listen.host, port)}/${name}`;
  return { port, location, connections: () => server.connections, close: () => server.close() };
}

async function listenIscsi(
  spec: ServeSpec,
  listen: Extract<ServeListen, { kind: 'iscsi' }>,
  device: BlockDevice,
  options: ServedVolumeOptions,
): Promise<Listener> {
  const { host, port, targetIqn, chapUser, chapSecret, tls } = listen;
  const { volumeId, generation } = spec;
  const place = tls
    ? { port: null, tls: { port, identity: await identityOf(tls, options.logger) } }
    : { port };
  const target = await IscsiTarget.listen({ host, ...place, ...options });
  const listensAt = tls ? target.tlsPort : target.port;
  target
    .addExport({
      targetIqn,
      device,
      serial: exportSerial(volumeId, generation),
      generation,
      readOnly: spec.access !== 'writable',
    })
    .grant({ initiatorIqn: ANY_INITIATOR, chap: { user: chapUser, secret: chapSecret }, generation });
  return {
    port: listensAt,
    location: `${tls ? 'iscsis' : 'iscsi'}://${authority(host, listensAt)}/${targetIqn}/0`,
    connections: () => target.statistics().sessions,
    close: () => target.close(),
  };
}

/** Code of its own, which volumes that are served without TLS do without. */
async function identityOf(files: TlsFiles, logger: Logger): Promise<TlsIdentity> {
  const { TlsIdentity } = await import('../sys/tls-identity.ts');
  return new TlsIdentity(files, logger);
}

function authority(host: string, port: number | null): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}
