import { BlockList, isIPv4, isIPv6 } from 'node:net';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { isLoopback } from '../base/loopback.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import { SerialByKey } from '../base/serial.ts';
import { runOf } from '../contract/machine-run.ts';
import type { ServedView, ServeReply, ServeVolumeRequest } from '../contract/schemas.ts';
import type { MachineManager } from '../machine/manager.ts';
import { namedPlace } from '../sys/named-path.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import {
  type KeySource,
  lostError,
  newChapSecret,
  readDataLoss,
  type ServeListen,
  serveSpec,
  targetIqn,
  type VolumeRecord,
  type VolumeServerStatus,
  type VolumeStore,
} from '../volume/index.ts';
import type { Openings } from './openings.ts';
import type { ShimOwner } from './shim-owner.ts';
import type { ServerTrouble, VolumeServerLooks } from './volume-server-looks.ts';

export type ServingOptions = {
  machines: Pick<MachineManager, 'records'>;
  openings: Openings;
  volumes: VolumeStore;
  keys: KeySource | null;
  /** What becomes of writes of clients when the disk is full but for its reserve. */
  whenFull: 'pause' | 'error';
  tls: TlsFiles | null;
  /** Folders that machines do not see: nothing is made in them either. */
  hidden: readonly string[];
  looks: VolumeServerLooks;
  random: Random;
  logger: Logger;
};

/** Its shim hangs, and has said nothing to this process yet. */
const SILENT: ServedView = { location: null, connections: 0, writable: false };

/** sun_path of unix(7), without its closing zero byte. */
const SOCKET_PATH_BYTES_MAX = 107;
const STATUS_TIMEOUT_MS = PATIENCE.servedStatus.ms;

/**
 * Volumes that are served to clients of other systems, each by a shim of its own without a workload.
 */
export class Serving {
  readonly #options: ServingOptions;
  /** Two who ask at once would get one shim, and the end of the second's would be that of the first's. */
  readonly #turns = new SerialByKey();

  constructor(options: ServingOptions) {
    this.#options = options;
  }

  /**
   * Serves a whole volume that no running machine has, until `stop`; a stopped one gives it back. Rejects
   * `WORKER_VOLUME_SERVED`, `WORKER_VOLUME_HELD`, `WORKER_SERVE_REFUSED`, `WORKER_SERVE_IN_CLEAR`,
   * `WORKER_BAD_LISTEN`, `SYS_PATH_REFUSED`, `MACHINE_MOVING`, `VOLUME_DATA_LOST`, and with the errors of
   * `ServedVolume.open`.
   */
  serve({ id }: VolumeRecord, request: ServeVolumeRequest): Promise<ServeReply> {
    return this.#turns.run(id, async () => this.#serve(await this.#options.volumes.get(id), request));
  }

  async #serve(record: VolumeRecord, request: ServeVolumeRequest): Promise<ServeReply> {
    const { openings, volumes, keys, whenFull, random } = this.#options;
    const { id } = record;
    if (record.state !== 'ready') {
      throw new GodwitError('WORKER_SERVE_REFUSED', `volume ${record.name} is ${record.state}, not ready`, {
        values: { volumeId: id, state: record.state },
        nextAction:
          record.state === 'clone'
            ? 'Wait until it is whole: godwit volume show says how far it is.'
            : 'It has moved, or is moving: serve it where `godwit volume list` says that it is ready.',
      });
    }
    const volume = { volumeDir: volumes.folder(id), volumeId: id, generation: record.generation };
    const loss = readDataLoss(volume.volumeDir, volume);
    if (loss !== null) throw lostError(volume, loss);
    await openings.refuseKept(record, 'serve');
    const chap =
      request.protocol === 'iscsi'
        ? (request.chap ?? { user: record.name, secret: newChapSecret(random) })
        : null;
    const listen = this.#listen(record, request, chap);
    await openings.takeAway(record, 'serve');
    const client = await openings.ensure(serverOf(id));
    try {
      const access = request.writable ? 'writable' : 'readonly';
      const spec = serveSpec(record, { volumeDir: volumes.folder(id), access, listen, keys, whenFull });
      await client.open(spec);
      const { served } = await client.volume('status', {}, { volumeTimeoutMs: STATUS_TIMEOUT_MS });
      if (!served) throw new Error('a served volume says where');
      if (listen.kind === 'nbd' && !listen.tls) {
        const { location } = served;
        this.#options.logger.warn(
          { volumeId: id, location },
          'a volume is open to every process and machine of this host: --open-to-host',
        );
      }
      return { location: served.location, writable: request.writable, chap };
    } catch (error) {
      await openings.end(serverOf(id));
      throw error;
    }
  }

  /** Drops the clients; what they wrote is durable. Idempotent. */
  async stop(volumeId: string): Promise<void> {
    await this.#turns.run(volumeId, () => this.#options.openings.end(serverOf(volumeId)));
  }

  /**
   * `served`: null, it is not. `dataLoss`: its disk lost what a client wrote, also where it refuses the word.
   */
  async shown(
    volumeId: string,
  ): Promise<{ served: ServedView | null; dataLoss?: VolumeServerStatus['dataLoss'] }> {
    const { status, silentForMs } = await this.#look(volumeId);
    const volume = status?.volume ?? null;
    if (!volume) return { served: status === null && silentForMs !== null ? SILENT : null };
    const { location, connections } = volume.status?.served ?? { location: null, connections: 0 };
    return {
      served: { location, connections, writable: volume.spec.access === 'writable' },
      dataLoss: volume.status?.dataLoss,
    };
  }

  /** Of a volume that is served: that what its clients write finds no room. */
  async noRoom(volumeId: string): Promise<VolumeServerStatus['noRoom']> {
    return (await this.#look(volumeId)).status?.volume?.status?.noRoom;
  }

  /**
   * Of a volume that is served: that nobody answers its clients, as far as can be seen. Null: it is not
   * served, or all is well.
   */
  async trouble(volumeId: string): Promise<{ silentForMs: number | null; server: ServerTrouble | null }> {
    const { status, silentForMs } = await this.#look(volumeId);
    const client = await this.#options.openings.client(serverOf(volumeId));
    if (silentForMs !== null || client === null || !status?.volume) return { silentForMs, server: null };
    return {
      silentForMs,
      server: await this.#options.looks.look(volumeId, client, status.volume.serverPid),
    };
  }

  /** Of the shim that serves it, whose log is there. */
  runtimeDir(volumeId: string): string {
    return this.#options.openings.runtimeDir(serverOf(volumeId));
  }

  /** For lists: a shim that hangs is not waited for. */
  #look(volumeId: string): ReturnType<Openings['look']> {
    return this.#options.openings.look(serverOf(volumeId));
  }

  /** Before anything is taken from a machine. The volume server looks again, when it makes the socket. */
  #checkPlace(path: string): void {
    const { machines, hidden } = this.#options;
    const shown = machines.records().flatMap(({ config }) => runOf(config).hostFolders ?? []);
    namedPlace(path, { closed: [...hidden, ...shown] });
  }

  #listen(record: VolumeRecord, request: ServeVolumeRequest, chap: ServeReply['chap']): ServeListen {
    const { tls } = this.#options;
    const { protocol, listen } = request;
    if (request.tls === true && (request.openToHost === true || listen.startsWith('unix:')))
      throw badListen(listen, 'a socket of the host, or a port that is open to the host, has no TLS');
    if (protocol === 'nbd' && listen.startsWith('unix:')) {
      const path = listen.slice('unix:'.length);
      const fits = path.startsWith('/') && Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX;
      if (!fits || path.includes('\0'))
        throw badListen(listen, 'a socket has an absolute path of at most 107 bytes');
      this.#checkPlace(path);
      return { kind: 'nbd-unix', path };
    }
    const { host, port } = parseListen(listen);
    const loopback = isLoopback(host);
    if (protocol === 'nbd') {
      if (loopback && request.openToHost === true) return { kind: 'nbd', host, port };
      if (tls) return { kind: 'nbd', host, port, tls };
      throw inClear(
        host,
        loopback
          ? 'NBD asks nobody for a secret: every user of this host, and every machine with the network of the host, could read it'
          : 'NBD asks nobody for a secret, and this worker has no certificate for TLS',
      );
    }
    if (!chap) throw new Error('iSCSI has a secret');
    const overTls = request.tls === true;
    if (overTls && !tls) throw inClear(host, 'this worker has no certificate for TLS');
    if (!overTls && !loopback && record.encryption) throw inClear(host, 'the volume is encrypted');
    if (!overTls && !loopback && !isIn(PRIVATE, host))
      throw inClear(host, 'it is not an address of a private network');
    return {
      ...{ kind: 'iscsi', host, port },
      targetIqn: targetIqn(record.id, record.generation),
      chapUser: chap.user,
      chapSecret: chap.secret,
      ...(overTls && tls && { tls }),
    };
  }
}

/** `HOST:PORT` with an address for a host. Port 0: the system picks. Pure. */
function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9a-z.-]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? (match?.[2] === 'localhost' ? '127.0.0.1' : match?.[2]) ?? '';
  const port = Number(match?.[3]);
  if (!match || port > 65535) throw badListen(text, 'write HOST:PORT');
  if (!isIPv4(host) && !isIPv6(host)) throw badListen(text, 'the host is an IP address of the worker');
  return { host, port };
}

/** RFC 1918, RFC 3927, RFC 6598, RFC 4193, RFC 4291 section 2.5.6. */
const PRIVATE = blockList(
  ...([
    ['10.0.0.0', 8],
    ['172.16.0.0', 12],
    ['192.168.0.0', 16],
    ['169.254.0.0', 16],
    ['100.64.0.0', 10],
    ['fc00::', 7],
    ['fe80::', 10],
  ] as const),
);

function blockList(...subnets: (readonly [address: string, prefix: number])[]): BlockList {
  const list = new BlockList();
  for (const [address, prefix] of subnets) list.addSubnet(address, prefix, isIPv6(address) ? 'ipv6' : 'ipv4');
  return list;
}

function isIn(list: BlockList, host: string): boolean {
  return list.check(host, isIPv6(host) ? 'ipv6' : 'ipv4');
}

function serverOf(volumeId: string): ShimOwner {
  return { kind: 'serve', volumeId };
}

function inClear(host: string, reason: string): GodwitError {
  return new GodwitError(
    'WORKER_SERVE_IN_CLEAR',
    `the volume is not served in the clear at ${host}: ${reason}`,
    {
      values: { host },
      nextAction:
        'Serve it on a unix socket (--nbd unix:/run/NAME.sock); over NBD, or over iSCSI with --tls, on a worker with --tls-cert, --tls-key and --tls-ca; over iSCSI, which asks for a secret, on an address of a private network; or on loopback to all of the host with --open-to-host.',
    },
  );
}

function badListen(listen: string, reason: string): GodwitError {
  return new GodwitError('WORKER_BAD_LISTEN', `a volume cannot be served there: ${reason}`, {
    values: { listen },
    nextAction: 'Give HOST:PORT, e.g. 10.0.0.1:10809, or for NBD unix:/run/disk.sock.',
  });
}
