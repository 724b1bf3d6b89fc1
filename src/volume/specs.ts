import { join } from 'node:path';
import { GodwitError } from '../base/errors.ts';
import type { Random } from '../base/random.ts';
import type {
  Access,
  AttachSpec,
  CloneSpec,
  ExportSpec,
  Grant,
  HydrationSettings,
  ImportedSourceSpec,
  ImportSpec,
  KeySource,
  OwnSpec,
  ServeListen,
  ServeSpec,
  SourceSpec,
} from '../opening/spec.ts';
import { ownPath } from '../sys/named-path.ts';
import type { TlsFiles } from '../sys/tls-identity.ts';
import { VOLUME_FILES } from './files.ts';
import type { VolumeRecord } from './record.ts';

/** Names of godwit's targets and initiators (RFC 7143 section 4.2.7.4). */
const IQN_PREFIX = 'iqn.2026-11.dev.godwit';
const CHAP_SECRET_BYTES = 24;

/** Where an attached volume is, for whom, and with which keys. */
export type AttachOptions = {
  volumeDir: string;
  access: Access;
  keys?: KeySource | null;
  whenFull?: AttachSpec['whenFull'];
};

/** What a copy has beside that. `validityDir` is a folder on tmpfs that all volumes of the worker share. */
type CopyOptions = AttachOptions & { validityDir: string; hydration?: HydrationSettings };

/** For a record in state `ready`. Throws `VOLUME_NO_KEYS` for an encrypted one without `keys`. */
export function ownSpec(record: VolumeRecord, options: AttachOptions): OwnSpec {
  return { kind: 'own', ...attachOf(record, options), ...keysOf(record, options) };
}

/** For a record in state `incoming` or `clone` that a move made. Throws `VOLUME_NO_KEYS`. */
export function cloneSpec(
  record: VolumeRecord,
  options: CopyOptions & { source: SourceSpec; tls?: TlsFiles | null },
): CloneSpec {
  const { source, tls } = options;
  return {
    ...{ kind: 'clone', ...attachOf(record, options), ...keysOf(record, options) },
    clone: { ...copyOf(record, options), source, ...(source.tls && tls ? { tls } : {}) },
  };
}

/** For a record in state `clone` that is made of a disk of another system. Throws `VOLUME_NO_KEYS`. */
export function importSpec(
  record: VolumeRecord,
  options: CopyOptions & { source: ImportedSourceSpec },
): ImportSpec {
  const { source } = options;
  return {
    ...{ kind: 'import', ...attachOf(record, options), ...keysOf(record, options) },
    clone: { ...copyOf(record, options), source },
  };
}

function volumeOf(record: VolumeRecord, volumeDir: string) {
  const { id: volumeId, generation, lengthBytes } = record;
  return { volumeId, generation, lengthBytes, volumeDir };
}

function attachOf(record: VolumeRecord, { volumeDir, access, whenFull }: AttachOptions) {
  return { ...volumeOf(record, volumeDir), access, ...(whenFull && { whenFull }) };
}

function keysOf(record: VolumeRecord, { keys }: Pick<AttachOptions, 'keys'>): Pick<CloneSpec, 'encryption'> {
  const { encryption } = record;
  if (!encryption) return {};
  if (!keys) throw noKeysError(record);
  return { encryption: { ...encryption, keyGeneration: encryption.keyGeneration ?? 1, keys } };
}

function copyOf(record: VolumeRecord, options: CopyOptions) {
  return {
    metadataPath: join(options.volumeDir, VOLUME_FILES.cloneMetadata),
    validityPath: validityPath(options.validityDir, record.id),
    hydration: options.hydration ?? { paused: false, rateBytesPerSecondMax: 0 },
  };
}

/** Where the live validity bits of a volume are: for cleaning up after one that was destroyed. */
export function validityPath(validityDir: string, volumeId: string): string {
  return ownPath(validityDir, `${volumeId}.validity`);
}

/**
 * Spec of an export of the record's generation; `standby` before it is sealed, `readonly` afterwards. A
 * restart on the same port gives `listenPort`.
 */
export function exportSpec(
  record: VolumeRecord,
  options: {
    volumeDir: string;
    access: 'standby' | 'readonly';
    listenHost: string;
    listenPort?: number;
    grants: Grant[];
    tls?: TlsFiles | null;
  },
): ExportSpec {
  return {
    kind: 'export',
    ...volumeOf(record, options.volumeDir),
    access: options.access,
    export: {
      listenHost: options.listenHost,
      listenPort: options.listenPort ?? 0,
      targetIqn: targetIqn(record.id, record.generation),
      grants: options.grants,
      ...(options.tls ? { tls: options.tls } : {}),
    },
  };
}

/** Spec of a server for clients of other systems; of a volume that is `ready`. Throws `VOLUME_NO_KEYS`. */
export function serveSpec(
  record: VolumeRecord,
  options: Omit<AttachOptions, 'access'> & { access: ServeSpec['access']; listen: ServeListen },
): ServeSpec {
  const { volumeDir, access, listen, whenFull } = options;
  return {
    ...{ kind: 'serve', ...volumeOf(record, volumeDir), access, ...keysOf(record, options) },
    ...(whenFull && { whenFull }),
    serve: { exportName: record.name, listen },
  };
}

/** CHAP secret of 192 bits. */
export function newChapSecret(random: Random): string {
  return Buffer.from(random.bytes(CHAP_SECRET_BYTES)).toString('base64url');
}

/** A grant for one target worker, with a fresh CHAP secret of 192 bits. */
export function newGrant(record: VolumeRecord, targetWorker: string, random: Random): Grant {
  return {
    initiatorIqn: initiatorIqn(targetWorker, record.id),
    chapUser: record.id,
    chapSecret: newChapSecret(random),
    generation: record.generation,
  };
}

/**
 * A worker that is to open, make or receive an encrypted volume, which a new one is, has to know where keys
 * come from.
 */
export function noKeysError(volume: { name: string }): GodwitError {
  return new GodwitError(
    'VOLUME_NO_KEYS',
    `volume ${volume.name} is to be encrypted, and this worker has no keys`,
    {
      values: { volume: volume.name },
      retry: 'never',
      nextAction:
        'Start the worker with --key-file or --key-exec; or, for a new volume in the clear, say --no-encryption.',
    },
  );
}

/** What the target worker is given to find and open the export with that grant. */
export function sourceSpec(
  record: VolumeRecord,
  grant: Grant,
  place: { host: string; port: number; tls?: boolean },
): SourceSpec {
  return {
    ...place,
    targetIqn: targetIqn(record.id, record.generation),
    lun: 0,
    initiatorIqn: grant.initiatorIqn,
    chapUser: grant.chapUser,
    chapSecret: grant.chapSecret,
  };
}

/**
 * What initiators know a volume's export by; another volume, or another generation of it, has another one.
 */
export function exportSerial(volumeId: string, generation: number): string {
  return `${volumeId}.${generation}`;
}

export function targetIqn(volumeId: string, generation: number): string {
  return `${IQN_PREFIX}:${iqnPart(volumeId)}.g${generation}`;
}

function initiatorIqn(worker: string, volumeId: string): string {
  return `${IQN_PREFIX}:worker.${iqnPart(worker)}.${iqnPart(volumeId)}`;
}

/**
 * iSCSI names take lower-case letters, digits, `-`, `.` and `:` (RFC 3722); the underscore of our ids is not
 * among them.
 */
function iqnPart(text: string): string {
  return text.toLowerCase().replace(/[^a-z0-9.-]/g, '-');
}
