import { join } from 'node:path';
import { attachLoop } from '../attach/loop.ts';
import type { Access, VolumeServerSpec, VolumeServerStatus } from '../attach/server-spec.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { LioExport } from '../host/lio.ts';
import { SECTOR_BYTES } from '../host/mapper-table.ts';
import type { DataLock } from '../volume/data-lock.ts';
import { passFence } from '../volume/fence.ts';
import { VOLUME_FILES } from '../volume/files.ts';
import { exportSerial } from '../volume/specs.ts';
import type { PlaneHost } from './host.ts';
import { detachLoops } from './loops.ts';
import { mapperNames } from './names.ts';
import { NO_GUEST } from './no-guest.ts';

/** Of iSCSI (IANA). The kernel's target cannot take any free port; all exports of a host share this one. */
export const ISCSI_PORT = 3260;

/**
 * Role `export` in the kernel plane:
 *
 *     data.raw ── loop, read-only ── linear ── LIO, one target, one initiator
 *
 * The linear device is suspended until the seal: an initiator can log in and ask for size and serial number, and its reads wait.
 */
export class KernelExport {
  readonly #spec: VolumeServerSpec;
  readonly #share: LioExport;
  readonly #host: PlaneHost;
  readonly #clock: Clock;
  #lock: DataLock | null = null;
  #isOpen = false;
  #bytesServed = 0;
  #sessions = 0;

  private constructor(spec: VolumeServerSpec, share: LioExport, host: PlaneHost, clock: Clock) {
    this.#spec = spec;
    this.#share = share;
    this.#host = host;
    this.#clock = clock;
  }

  /** Rejects `VOLUME_BAD_SPEC`, with the errors of the fence and of LIO. */
  static async open(spec: VolumeServerSpec, host: PlaneHost, clock: Clock): Promise<KernelExport> {
    const [grant, ...others] = spec.export?.grants ?? [];
    if (
      !spec.export ||
      grant === undefined ||
      others.length > 0 ||
      spec.export.tls ||
      spec.access === 'writable'
    ) {
      throw new GodwitError(
        'VOLUME_BAD_SPEC',
        'an export of the kernel plane has one grant, no TLS, and is never writable',
        {
          values: { volumeId: spec.volumeId, access: spec.access, grants: spec.export?.grants.length ?? 0 },
          nextAction: 'This is a defect of the caller: volume/specs.ts builds specs that fit.',
        },
      );
    }
    const share: LioExport = {
      targetIqn: spec.export.targetIqn,
      host: spec.export.listenHost,
      port: spec.export.listenPort || ISCSI_PORT,
      initiatorIqn: grant.initiatorIqn,
      chapUser: grant.chapUser,
      chapSecret: grant.chapSecret,
    };
    const made = new KernelExport(spec, share, host, clock);
    try {
      // What a shim before this one has left.
      await removeExport(spec, host, clock);
      await made.#openStandby();
      if (spec.access === 'readonly') await made.activate('readonly');
      return made;
    } catch (error) {
      await made.close().catch(() => {});
      throw error;
    }
  }

  get port(): number {
    return this.#share.port;
  }

  get access(): Access {
    return this.#isOpen ? 'readonly' : 'standby';
  }

  /** Lets the reads through that wait, once the record says that the generation is sealed (`VOLUME_FENCED`). Idempotent. */
  async activate(access: Access): Promise<void> {
    if (access === this.access) return;
    if (access !== 'readonly') {
      throw new GodwitError(
        'VOLUME_BAD_ACCESS',
        `an export that is ${this.access} does not go to ${access}`,
        {
          values: { access: this.access, requested: access },
          nextAction: 'An export goes from standby to readonly; close it to end it.',
        },
      );
    }
    this.#lock ??= await passFence(this.#spec, 'export', this.#clock);
    await this.#host.mapper.resume(mapperNames(this.#spec.volumeId).export);
    this.#isOpen = true;
  }

  async refresh(): Promise<void> {
    const { sessions, bytesServed } = await this.#host.lio.statistics(this.#share);
    this.#sessions = sessions;
    this.#bytesServed = bytesServed;
  }

  status(): VolumeServerStatus {
    return {
      role: 'export',
      volumeId: this.#spec.volumeId,
      generation: this.#spec.generation,
      access: this.access,
      residentBytes: 0,
      guest: NO_GUEST,
      export: {
        host: this.#share.host,
        port: this.#share.port,
        sessions: this.#sessions,
        bytesServed: this.#bytesServed,
      },
    };
  }

  async close(): Promise<void> {
    await removeExport(this.#spec, this.#host, this.#clock);
    this.#isOpen = false;
    this.#lock?.release();
    this.#lock = null;
  }

  async #openStandby(): Promise<void> {
    const { volumeId, generation, volumeDir, lengthBytes } = this.#spec;
    const { mapper, lio } = this.#host;
    const name = mapperNames(volumeId).export;
    const device = await attachLoop({ filePath: join(volumeDir, VOLUME_FILES.data), readonly: true });
    const sectors = lengthBytes / SECTOR_BYTES;
    const shown = await mapper.create(
      name,
      { target: 'linear', sectors, device, startSector: 0 },
      { readonly: true },
    );
    await mapper.suspend(name, { flush: false });
    await lio.open(this.#share);
    await lio.show(this.#share, { device: shown, serial: exportSerial(volumeId, generation) });
  }
}

/** Everything of an export that is on this host. Idempotent. */
export async function removeExport(
  spec: Pick<VolumeServerSpec, 'volumeId' | 'volumeDir' | 'export'>,
  { mapper, lio }: PlaneHost,
  clock: Clock,
): Promise<void> {
  const name = mapperNames(spec.volumeId).export;
  const present = (await mapper.names()).includes(name);
  if (present && spec.export && (await lio.isOpen(spec.export.targetIqn))) {
    // A read that waits for the seal would hold up the end of its session.
    const { sectors } = await mapper.table(name);
    await mapper.load(name, { target: 'error', sectors });
    await mapper.resume(name);
  }
  if (spec.export) await lio.close(spec.export.targetIqn);
  if (present) await mapper.remove(name);
  await detachLoops(join(spec.volumeDir, VOLUME_FILES.data), { readonly: true, clock });
}
