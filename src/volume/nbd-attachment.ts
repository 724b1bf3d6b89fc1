import type { ClientBook } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { GuestWaits } from '../clone/disk-window.ts';
import type { ValidityMap } from '../clone/validity-map.ts';
import { NbdServer } from '../nbd/index.ts';
import type { Access, NbdSocketSpec } from '../opening/spec.ts';
import type { GuestStatistics } from '../opening/status.ts';
import { GuestDevice } from './guest-device.ts';

/** What NBD clients of a machine's own socket may ask for; without a name they get the same. */
const EXPORT_NAME = 'disk';

export type NbdAttachmentOptions = {
  socket: NbdSocketSpec;
  /**
   * What clients find in the export's description: another volume, or another generation of it, has another
   * one.
   */
  serial: string;
  device: BlockDevice;
  access: Access;
  /** Which blocks are here, when `device` is a clone; the export then has the context `godwit:hydration`. */
  validity: ValidityMap | null;
  writeBack: () => Promise<void>;
  clock: Clock;
  logger: Logger;
  clients: ClientBook;
};

/**
 * A volume behind an NBD socket, with the calls of `FuseServer`. The socket takes connections from the start,
 * and has nothing to offer them before standby ends: what a client is told in the handshake, such as whether
 * it may write, is then true from the first time.
 */
export class NbdAttachment {
  /** Never: nobody unmounts a socket. */
  readonly closed: Promise<void> = new Promise(() => {});
  readonly #options: NbdAttachmentOptions;
  readonly #guest: GuestDevice;
  readonly #server: NbdServer;
  #offered = false;

  private constructor(options: NbdAttachmentOptions, guest: GuestDevice, server: NbdServer) {
    this.#options = options;
    this.#guest = guest;
    this.#server = server;
  }

  /** Rejects `NBD_PATH_TOO_LONG`, `NBD_LISTEN_FAILED`, `SYS_PATH_REFUSED`. */
  static async open(options: NbdAttachmentOptions): Promise<NbdAttachment> {
    const { socket, clock, logger, clients } = options;
    const guest = new GuestDevice({ ...options, access: allowed(options.access, socket) });
    const server = await NbdServer.listen({
      address: { path: socket.path },
      socket: { owner: socket.owner, own: true },
      clock,
      logger,
      clients,
    });
    const attachment = new NbdAttachment(options, guest, server);
    if (options.access !== 'standby') attachment.#offer();
    return attachment;
  }

  get access(): Access {
    return this.#guest.access;
  }

  get served(): { location: string; connections: number } {
    const location = `nbd+unix:///${EXPORT_NAME}?socket=${encodeURI(this.#options.socket.path)}`;
    return { location, connections: this.#server.connections };
  }

  /**
   * An observer never writes, whatever the access. Clients that were told that they may write get EPERM after
   * a seal.
   */
  async setAccess(access: Access): Promise<void> {
    await this.#guest.setAccess(allowed(access, this.#options.socket));
    if (access !== 'standby') this.#offer();
  }

  becomeWhole(device: BlockDevice): Promise<void> {
    return this.#guest.becomeWhole(device);
  }

  statistics(): GuestStatistics {
    return this.#guest.statistics();
  }

  takeWaits(): GuestWaits {
    return this.#guest.takeWaits();
  }

  heat(): number[] {
    return this.#guest.heat();
  }

  /** Drops the clients. Idempotent. */
  stop(): Promise<void> {
    return this.#server.close();
  }

  #offer(): void {
    if (this.#offered) return;
    this.#offered = true;
    const { serial, socket, validity } = this.#options;
    const guest = this.#guest;
    this.#server.addExport({
      name: EXPORT_NAME,
      description: serial,
      device: guest,
      readOnly: socket.client === 'observer',
      ...(validity && { hydration: guest.hydration.bind(guest) }),
      // Beside a FUSE file nothing may hold this thread up.
      writesNow: socket.client === 'guest',
    });
  }
}

function allowed(access: Access, { client }: NbdSocketSpec): Access {
  return access === 'writable' && client === 'observer' ? 'readonly' : access;
}
