import { join } from 'node:path';
import type { Access, Grant, VolumeServerSpec, VolumeServerStatus } from '../attach/server-spec.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Random } from '../base/random.ts';
import { FileDevice } from '../block/file-device.ts';
import { IscsiTarget, type TargetExport } from '../iscsi/index.ts';
import type { DataLock } from './data-lock.ts';
import { passFence } from './fence.ts';
import { VOLUME_FILES } from './files.ts';
import { exportSerial } from './specs.ts';

export type ExportedVolumeOptions = { clock: Clock; random: Random; logger: Logger };

const BLOCK_BYTES = 512;

/** Role `export`: the sealed data file, read-only, over iSCSI. */
export class ExportedVolume {
  readonly #spec: VolumeServerSpec;
  readonly #options: ExportedVolumeOptions;
  readonly #device: FileDevice;
  readonly #target: IscsiTarget;
  readonly #export: TargetExport;
  #lock: DataLock | null;

  private constructor(
    spec: VolumeServerSpec,
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
   * Listens. In `standby` initiators can log in and ask for the size, and their reads wait. Rejects with the errors of the fence,
   * `BLOCK_SHORT_FILE`, `ISCSI_LISTEN_FAILED`, `VOLUME_BAD_SPEC`.
   */
  static async open(spec: VolumeServerSpec, options: ExportedVolumeOptions): Promise<ExportedVolume> {
    const exportSpec = spec.export;
    if (!exportSpec || spec.access === 'writable') {
      throw new GodwitError('VOLUME_BAD_SPEC', 'an export needs a place to listen, and is never writable', {
        values: { volumeId: spec.volumeId, access: spec.access },
        nextAction: 'This is a defect of the caller: volume/specs.ts builds specs that fit.',
      });
    }
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
      target = await IscsiTarget.listen({
        host: exportSpec.listenHost,
        port: exportSpec.listenPort,
        clock: options.clock,
        random: options.random,
        logger: options.logger,
      });
      const share = target.addExport({
        targetIqn: exportSpec.targetIqn,
        device,
        serial: exportSerial(spec.volumeId, spec.generation),
        generation: spec.generation,
        standby: spec.access === 'standby',
      });
      for (const grant of exportSpec.grants) share.grant(iscsiGrant(grant));
      return new ExportedVolume(spec, options, { device, target, share, lock });
    } catch (error) {
      await target?.close();
      await device?.close();
      lock?.release();
      throw error;
    }
  }

  get port(): number {
    return this.#target.port;
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
      guest: {
        reads: 0,
        readBytes: 0,
        writes: 0,
        writeBytes: 0,
        flushes: 0,
        misses: 0,
        readLatencyP50Ms: 0,
        readLatencyP99Ms: 0,
        missLatencyP50Ms: 0,
        missLatencyP99Ms: 0,
      },
      export: { host: this.#target.host, port: this.port, sessions, bytesServed },
    };
  }

  /** Lets the reads through that wait. Only once the record says that the generation is sealed (`VOLUME_FENCED`). Idempotent. */
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
    this.#lock ??= await passFence(this.#spec, 'export', this.#options.clock);
    this.#export.open();
  }

  grant(grant: Grant): void {
    this.#export.grant(iscsiGrant(grant));
  }

  revoke(initiatorIqn: string): void {
    this.#export.revoke(initiatorIqn);
  }

  async close(): Promise<void> {
    await this.#target.close();
    await this.#device.close();
    this.#lock?.release();
  }
}

function iscsiGrant(grant: Grant): Parameters<TargetExport['grant']>[0] {
  return {
    initiatorIqn: grant.initiatorIqn,
    chap: { user: grant.chapUser, secret: grant.chapSecret },
    generation: grant.generation,
  };
}
