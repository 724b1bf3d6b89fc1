import { join } from 'node:path';
import type { ClientBook } from '../base/client-account.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { FileDevice } from '../block/file-device.ts';
import { IscsiTarget, type TargetExport, type TargetOptions } from '../iscsi/index.ts';
import { NO_GUEST } from '../opening/guest.ts';
import type { OpenVolume } from '../opening/open-volume.ts';
import type { AnswersOf } from '../opening/perform.ts';
import type { Access, ExportSpec, Grant } from '../opening/spec.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import type { DataLock } from './data-lock.ts';
import { exportAccessError } from './export-access.ts';
import { passFence } from './fence.ts';
import { VOLUME_FILES } from './files.ts';
import { readFreeRuns } from './free-map-file.ts';
import type { RegionDigests, RegionDigestsOptions } from './region-digests.ts';
import { exportSerial } from './specs.ts';

export type ExportedVolumeOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What clients make this process hold, whatever it serves them by. */
  clients: ClientBook;
};

const BLOCK_BYTES = 512;
const DIGESTS_AFTER_MS = 1_000;

/** Role `export`: the sealed data file, read-only, over iSCSI. */
export class ExportedVolume implements OpenVolume<'export', 'userspace'> {
  readonly answers: AnswersOf<'export', 'userspace'> = {
    status: () => this.status(),
    activate: (access) => this.#activate(access),
    digests: async (ranges) => ({ digests: await (await this.#regionDigests()).digestsOf(ranges) }),
    owed: async ({ range, cursor }) => (await this.#regionDigests()).owed(range, cursor),
    stated: async (cursor) => (await this.#regionDigests()).stated(cursor),
    grant: (grant) => this.#export.grant(iscsiGrant(grant)),
    revoke: (initiatorIqn) => this.#export.revoke(initiatorIqn),
  };
  readonly #spec: ExportSpec;
  readonly #options: ExportedVolumeOptions;
  readonly #device: FileDevice;
  readonly #target: IscsiTarget;
  readonly #export: TargetExport;
  #lock: DataLock | null;
  #digests: Promise<RegionDigests> | null = null;
  #cancelDigests: () => void = () => {};

  private constructor(
    spec: ExportSpec,
    options: ExportedVolumeOptions,
    parts: { device: FileDevice; target: IscsiTarget; share: TargetExport; lock: DataLock | null },
  ) {
    this.#spec = spec;
    this.#options = options;
    this.#device = parts.device;
    this.#target = parts.target;
    this.#export = parts.share;
    this.#lock = parts.lock;
  }

  /**
   * Listens. In `standby` initiators can log in and ask for the size, and their reads wait. Rejects with the
   * errors of the fence, `BLOCK_SHORT_FILE`, `ISCSI_LISTEN_FAILED`, and of `TlsIdentity`.
   */
  static async open(spec: ExportSpec, options: ExportedVolumeOptions): Promise<ExportedVolume> {
    const { export: share } = spec;
    const lock = spec.access === 'readonly' ? await passFence(spec, 'export', options.clock) : null;
    let device: FileDevice | undefined;
    let target: IscsiTarget | undefined;
    try {
      device = await FileDevice.open({
        file: join(spec.volumeDir, VOLUME_FILES.data),
        lengthBytes: spec.lengthBytes,
        blockBytes: BLOCK_BYTES,
        writable: false,
      });
      lock?.checkIs(device.fileDescriptor);
      target = await IscsiTarget.listen({
        host: share.listenHost,
        ...(await listenOptions(share, options.logger)),
        clock: options.clock,
        random: options.random,
        logger: options.logger,
        clients: options.clients,
      });
      const exported = target.addExport({
        targetIqn: share.targetIqn,
        device,
        serial: exportSerial(spec.volumeId, spec.generation),
        generation: spec.generation,
        standby: spec.access === 'standby',
      });
      for (const grant of share.grants) exported.grant(iscsiGrant(grant));
      const volume = new ExportedVolume(spec, options, { device, target, share: exported, lock });
      if (lock !== null) volume.#digestInBackground();
      return volume;
    } catch (error) {
      await target?.close();
      await device?.close();
      lock?.release();
      throw error;
    }
  }

  get port(): number {
    return this.#spec.export.tls ? this.#target.tlsPort : this.#target.port;
  }

  get access(): Access {
    return this.#export.state === 'open' ? 'readonly' : 'standby';
  }

  status(): VolumeServerStatus {
    const { sessions, bytesServed } = this.#target.statistics();
    return {
      role: 'export',
      volumeId: this.#spec.volumeId,
      generation: this.#spec.generation,
      access: this.access,
      residentBytes: process.memoryUsage.rss(),
      guest: NO_GUEST,
      export: { host: this.#target.host, port: this.port, sessions, bytesServed },
    };
  }

  /**
   * Lets the reads through that wait. Only once the record says that the generation is sealed
   * (`VOLUME_FENCED`). Idempotent.
   */
  async #activate(access: Access): Promise<void> {
    if (access === this.access) return;
    if (access !== 'readonly') throw exportAccessError(this.access, access);
    this.#lock ??= await this.#takeLock();
    this.#export.open();
    this.#digestInBackground();
  }

  async #takeLock(): Promise<DataLock> {
    const lock = await passFence(this.#spec, 'export', this.#options.clock);
    try {
      lock.checkIs(this.#device.fileDescriptor);
      return lock;
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#cancelDigests();
    await this.#target.close();
    await (await this.#digests?.catch(() => null))?.close();
    await this.#device.close();
    this.#lock?.release();
  }

  /** Not at once, nor is the code loaded: a machine boots from this content just now. */
  #digestInBackground(): void {
    this.#cancelDigests = this.#options.clock.timer(DIGESTS_AFTER_MS, () => {
      this.#regionDigests().then(
        (digests) => digests.start(),
        (error: unknown) =>
          this.#options.logger.warn({ reason: messageOf(error) }, 'no digests of this export'),
      );
    });
  }

  /** Rejects as region-digests.ts, and `VOLUME_BAD_ACCESS` before the seal. Made again at the next question. */
  #regionDigests(): Promise<RegionDigests> {
    if (this.access !== 'readonly') {
      return Promise.reject(
        new GodwitError('VOLUME_BAD_ACCESS', 'digests are of sealed content', {
          values: { access: this.access, requested: 'readonly' },
          nextAction: 'Seal the volume and open its export first.',
        }),
      );
    }
    this.#digests ??= openDigests(this.#spec, this.#device, {
      clock: this.#options.clock,
      logger: this.#options.logger,
      bytesServed: () => this.#target.statistics().bytesServed,
    }).catch((error: unknown) => {
      this.#digests = null;
      throw error;
    });
    return this.#digests;
  }
}

/** Its code is loaded when it is needed. */
async function openDigests(
  spec: ExportSpec,
  device: FileDevice,
  options: Pick<RegionDigestsOptions, 'clock' | 'logger' | 'bytesServed'>,
): Promise<RegionDigests> {
  const { RegionDigests } = await import('./region-digests.ts');
  const { volumeDir, volumeId, generation, lengthBytes } = spec;
  const freeRuns = await readFreeRuns(volumeDir, { volumeId, generation, lengthBytes }).catch(() => null);
  const path = join(volumeDir, VOLUME_FILES.regionDigests);
  return RegionDigests.open({ ...options, device, path, volumeId, generation, freeRuns });
}

/** One port, under TLS or in the clear: never both, so that nobody can talk two workers out of TLS. */
async function listenOptions(
  spec: ExportSpec['export'],
  logger: Logger,
): Promise<Pick<TargetOptions, 'port' | 'tls'>> {
  if (!spec.tls) return { port: spec.listenPort };
  const { TlsIdentity } = await import('../sys/tls-identity.ts');
  return { port: null, tls: { port: spec.listenPort, identity: new TlsIdentity(spec.tls, logger) } };
}

function iscsiGrant(grant: Grant): Parameters<TargetExport['grant']>[0] {
  return {
    initiatorIqn: grant.initiatorIqn,
    chap: { user: grant.chapUser, secret: grant.chapSecret },
    generation: grant.generation,
  };
}
