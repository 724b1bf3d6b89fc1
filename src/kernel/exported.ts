import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { FileDevice } from '../block/file-device.ts';
import type { LioExport } from '../host/lio.ts';
import { attachLoop } from '../host/losetup.ts';
import { SECTOR_BYTES } from '../host/mapper-table.ts';
import { NO_GUEST } from '../opening/guest.ts';
import type { OpenVolume } from '../opening/open-volume.ts';
import type { AnswersOf } from '../opening/perform.ts';
import type { Access, ExportSpec } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { DataLock } from '../volume/data-lock.ts';
import { exportAccessError } from '../volume/export-access.ts';
import { passFence } from '../volume/fence.ts';
import { VOLUME_FILES } from '../volume/files.ts';
import { readFreeRuns } from '../volume/free-map-file.ts';
import type { RegionDigests } from '../volume/region-digests.ts';
import { exportSerial } from '../volume/specs.ts';
import type { KernelHost } from './host.ts';
import { detachLoops } from './loops.ts';
import { mapperNames } from './names.ts';

export type KernelExportOptions = { host: KernelHost; clock: Clock; logger: Logger };

/** Of iSCSI (IANA). The kernel's target cannot take any free port; all exports of a host share this one. */
export const ISCSI_PORT = 3260;

/**
 * Role `export` in the kernel plane:
 *
 *     data.raw ── loop, read-only ── linear ── LIO, one target, one initiator
 *
 * The linear device is suspended until the seal: an initiator can log in and ask for size and serial number,
 * and its reads wait.
 */
export class KernelExport implements OpenVolume<'export', 'kernel'> {
  readonly answers: AnswersOf<'export', 'kernel'> = {
    status: async () => {
      await this.#refresh();
      return this.status();
    },
    activate: (access) => this.#activate(access),
    digests: async (ranges) => ({ digests: await (await this.#regionDigests()).digestsOf(ranges) }),
    owed: async ({ range, cursor }) => (await this.#regionDigests()).owed(range, cursor),
    stated: async (cursor) => (await this.#regionDigests()).stated(cursor),
  };
  readonly #spec: ExportSpec;
  readonly #share: LioExport;
  readonly #host: KernelHost;
  readonly #clock: Clock;
  #lock: DataLock | null = null;
  readonly #logger: Logger;
  #isOpen = false;
  #digests: Promise<RegionDigests> | null = null;
  #sealed: FileDevice | null = null;
  #bytesServed = 0;
  #sessions = 0;

  private constructor(spec: ExportSpec, share: LioExport, { host, clock, logger }: KernelExportOptions) {
    this.#logger = logger;
    this.#spec = spec;
    this.#share = share;
    this.#host = host;
    this.#clock = clock;
  }

  /** Rejects with the errors of the fence and of LIO. */
  static async open(spec: ExportSpec, options: KernelExportOptions): Promise<KernelExport> {
    const { host, clock } = options;
    const [grant] = spec.export.grants;
    if (grant === undefined) throw new Error('an export without a grant is refused');
    const share: LioExport = {
      targetIqn: spec.export.targetIqn,
      host: spec.export.listenHost,
      port: spec.export.listenPort || ISCSI_PORT,
      initiatorIqn: grant.initiatorIqn,
      chapUser: grant.chapUser,
      chapSecret: grant.chapSecret,
    };
    const made = new KernelExport(spec, share, options);
    try {
      // What a shim before this one has left.
      await removeExport({ ...spec, targetIqn: share.targetIqn }, host, clock);
      await made.#openStandby();
      if (spec.access === 'readonly') await made.#activate('readonly');
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

  /**
   * Lets the reads through that wait, once the record says that the generation is sealed (`VOLUME_FENCED`).
   * Idempotent.
   */
  async #activate(access: Access): Promise<void> {
    if (access === this.access) return;
    if (access !== 'readonly') throw exportAccessError(this.access, access);
    this.#lock ??= await passFence(this.#spec, 'export', this.#clock);
    await this.#host.mapper.resume(mapperNames(this.#spec.volumeId).export);
    this.#isOpen = true;
  }

  async #refresh(): Promise<void> {
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
    await (await this.#digests?.catch(() => null))?.close();
    this.#digests = null;
    await this.#sealed?.close();
    this.#sealed = null;
    await removeExport({ ...this.#spec, targetIqn: this.#share.targetIqn }, this.#host, this.#clock);
    this.#isOpen = false;
    this.#lock?.release();
    this.#lock = null;
  }

  /** Made again at the next question when they could not be made. */
  #regionDigests(): Promise<RegionDigests> {
    if (!this.#isOpen) {
      return Promise.reject(
        new GodwitError('VOLUME_BAD_ACCESS', 'digests are of sealed content', {
          values: { access: this.access, requested: 'readonly' },
          nextAction: 'Seal the volume and open its export first.',
        }),
      );
    }
    this.#digests ??= this.#openDigests().catch((error: unknown) => {
      this.#digests = null;
      throw error;
    });
    return this.#digests;
  }

  async #openDigests(): Promise<RegionDigests> {
    const { RegionDigests } = await import('../volume/region-digests.ts');
    const { volumeDir, volumeId, generation, lengthBytes } = this.#spec;
    this.#sealed ??= await FileDevice.open({
      file: join(volumeDir, VOLUME_FILES.data),
      lengthBytes,
      blockBytes: SECTOR_BYTES,
      writable: false,
    });
    return RegionDigests.open({
      ...{ device: this.#sealed, volumeId, generation, clock: this.#clock, logger: this.#logger },
      path: join(volumeDir, VOLUME_FILES.regionDigests),
      freeRuns: await readFreeRuns(volumeDir, { volumeId, generation, lengthBytes }).catch(() => null),
      bytesServed: () => this.#bytesServed,
    });
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
  spec: { volumeId: string; volumeDir: string; targetIqn: string },
  { mapper, lio }: KernelHost,
  clock: Clock,
): Promise<void> {
  const name = mapperNames(spec.volumeId).export;
  const present = (await mapper.names()).includes(name);
  if (present && (await lio.isOpen(spec.targetIqn))) {
    // A read that waits for the seal would hold up the end of its session.
    const { sectors } = await mapper.table(name);
    await mapper.load(name, { target: 'error', sectors });
    await mapper.resume(name);
  }
  await lio.close(spec.targetIqn);
  if (present) await mapper.remove(name);
  await detachLoops(join(spec.volumeDir, VOLUME_FILES.data), { readonly: true, clock });
}
