import type { TlsFiles } from '../sys/tls-identity.ts';
import { withKind } from './earlier-spec.ts';
import { badSpec, flag, integer, nodeName, object, oneOf, ownName, text } from './read-fields.ts';
import type {
  Access,
  AttachSpec,
  CloneSpec,
  EncryptionSpec,
  ExportSpec,
  Grant,
  HydrationSettings,
  ImportedExport,
  ImportedSourceSpec,
  ImportedUnit,
  ImportSpec,
  NbdSocketSpec,
  OpeningSpec,
  ServeListen,
  ServeSpec,
  SourceSpec,
} from './spec.ts';

/**
 * What a volume server is told, checked by hand: the schemas of spec.ts say the same, but their
 * validator would take a third of the process's memory and half of the pause that a restart is for the guest.
 * A message names the field and never its value, which may be a secret. Everything here throws
 * `VOLUME_BAD_SPEC`.
 */
export function parseSpec(line: string): OpeningSpec {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw badSpec('the first line is not JSON', error);
  }
  const spec = withKind(object(value, 'spec'));
  const kind = oneOf(spec.kind, ['own', 'clone', 'import', 'export', 'serve'], 'kind');
  const volume = {
    volumeId: ownName(spec.volumeId, 'volumeId'),
    generation: integer(spec.generation, 1, 'generation'),
    lengthBytes: integer(spec.lengthBytes, 4096, 'lengthBytes'),
    volumeDir: text(spec.volumeDir, 'volumeDir'),
    ...(spec.plane === undefined ? {} : { plane: oneOf(spec.plane, ['kernel'], 'plane') }),
  };
  switch (kind) {
    case 'own':
      return { kind, ...volume, ...parseAttach(spec), ...parseKey(spec) };
    case 'clone':
      return { kind, ...volume, ...parseAttach(spec), ...parseKeys(spec), clone: parseClone(spec.clone) };
    case 'import':
      return { kind, ...volume, ...parseAttach(spec), ...parseKey(spec), clone: parseImport(spec.clone) };
    case 'export': {
      const access = oneOf(spec.access, ['standby', 'readonly'], 'access');
      return { kind, ...volume, access, export: parseExport(spec.export) };
    }
    case 'serve': {
      const access = oneOf(spec.access, ['readonly', 'writable'], 'access');
      const { whenFull } = spec;
      return {
        ...{ kind, ...volume, access, ...parseKey(spec) },
        ...(whenFull === undefined ? {} : { whenFull: parseWhenFull(whenFull) }),
        serve: parseServe(spec.serve),
      };
    }
  }
}

type Fields = Readonly<Record<string, unknown>>;

function parseWhenFull(value: unknown): 'pause' | 'error' {
  return oneOf(value, ['pause', 'error'], 'whenFull');
}

function parseAttach(
  spec: Fields,
): Omit<
  AttachSpec,
  'kind' | 'volumeId' | 'generation' | 'lengthBytes' | 'volumeDir' | 'plane' | 'encryption' | 'clone'
> {
  const { whenFull, leaving, follows, instance, dataLoss, nbd } = spec;
  return {
    access: parseAccess(spec.access),
    ...(whenFull === undefined ? {} : { whenFull: parseWhenFull(whenFull) }),
    ...(leaving === undefined ? {} : { leaving: oneOf(leaving, ['running', 'stopped'], 'leaving') }),
    ...(follows === undefined ? {} : { follows: flag(follows, 'follows') }),
    ...(instance === undefined ? {} : { instance: text(instance, 'instance', 0) }),
    ...(dataLoss === undefined ? {} : { dataLoss: parseLoss(dataLoss) }),
    ...(nbd === undefined ? {} : { nbd: parseNbdSocket(nbd) }),
  };
}

function parseLoss(value: unknown): NonNullable<AttachSpec['dataLoss']> {
  const loss = object(value, 'dataLoss');
  if (typeof loss.atMs !== 'number') throw badSpec('dataLoss.atMs is not a number');
  return { atMs: loss.atMs, reason: text(loss.reason, 'dataLoss.reason', 0) };
}

export function parseAccess(value: unknown): Access {
  return oneOf(value, ['standby', 'writable', 'readonly'], 'access');
}

export function parseGrant(value: unknown): Grant {
  const grant = object(value, 'grant');
  return {
    initiatorIqn: text(grant.initiatorIqn, 'grant.initiatorIqn'),
    chapUser: text(grant.chapUser, 'grant.chapUser'),
    chapSecret: text(grant.chapSecret, 'grant.chapSecret', 12),
    generation: integer(grant.generation, 1, 'grant.generation'),
  };
}

export function parseHydration(value: unknown): HydrationSettings {
  const settings = object(value, 'hydration');
  return {
    paused: flag(settings.paused, 'hydration.paused'),
    rateBytesPerSecondMax: integer(settings.rateBytesPerSecondMax, 0, 'hydration.rateBytesPerSecondMax'),
  };
}

function parseCopy(clone: Fields): Omit<CloneSpec['clone'], 'source' | 'tls'> {
  return {
    metadataPath: text(clone.metadataPath, 'clone.metadataPath'),
    validityPath: text(clone.validityPath, 'clone.validityPath'),
    hydration: parseHydration(clone.hydration),
  };
}

function parseClone(value: unknown): CloneSpec['clone'] {
  const clone = object(value, 'clone');
  return {
    ...parseCopy(clone),
    source: parseSource(object(clone.source, 'clone.source')),
    ...(clone.tls === undefined ? {} : { tls: parseTlsFiles(clone.tls, 'clone.tls') }),
  };
}

function parseImport(value: unknown): ImportSpec['clone'] {
  const clone = object(value, 'clone');
  return { ...parseCopy(clone), source: parseImportedSource(object(clone.source, 'clone.source')) };
}

/** Of a volume whose key is one. */
function parseKey({ encryption }: Fields): { encryption?: EncryptionSpec } {
  return encryption === undefined ? {} : { encryption: parseEncryption(object(encryption, 'encryption')) };
}

/** Of a clone, whose source may have another one. */
function parseKeys({ encryption }: Fields): Pick<CloneSpec, 'encryption'> {
  if (encryption === undefined) return {};
  const fields = object(encryption, 'encryption');
  const { source } = fields;
  const header = source === undefined ? undefined : object(source, 'encryption.source');
  return {
    encryption: {
      ...parseEncryption(fields),
      ...(header === undefined ? {} : { source: parseHeader(header, 'encryption.source') }),
    },
  };
}

function parseEncryption(encryption: Fields): EncryptionSpec {
  const keys = object(encryption.keys, 'encryption.keys');
  const header = {
    ...parseHeader(encryption, 'encryption'),
    ...(encryption.holes === undefined
      ? {}
      : { holes: oneOf(encryption.holes, ['none'], 'encryption.holes') }),
  };
  const kind = oneOf(keys.kind, ['file', 'exec'], 'encryption.keys.kind');
  if (kind === 'file') return { ...header, keys: { kind, path: text(keys.path, 'encryption.keys.path', 1) } };
  if (!Array.isArray(keys.argv) || keys.argv.length === 0) throw badSpec('encryption.keys.argv does not fit');
  return { ...header, keys: { kind, argv: keys.argv.map((part) => text(part, 'encryption.keys.argv')) } };
}

function parseHeader(
  fields: Fields,
  what: string,
): { uuid: string; keyGeneration: number; keyVolumeId?: string } {
  return {
    uuid: text(fields.uuid, `${what}.uuid`),
    keyGeneration: integer(fields.keyGeneration, 1, `${what}.keyGeneration`),
    ...(fields.keyVolumeId === undefined
      ? {}
      : { keyVolumeId: ownName(fields.keyVolumeId, `${what}.keyVolumeId`) }),
  };
}

function parseNbdSocket(value: unknown): NbdSocketSpec {
  const nbd = object(value, 'nbd');
  const owner = object(nbd.owner, 'nbd.owner');
  return {
    path: text(nbd.path, 'nbd.path', 1),
    owner: { uid: integer(owner.uid, 0, 'nbd.owner.uid'), gid: integer(owner.gid, 0, 'nbd.owner.gid') },
    client: oneOf(nbd.client, ['guest', 'observer'], 'nbd.client'),
  };
}

function parseImportedSource(source: Fields): ImportedSourceSpec {
  return {
    location: text(source.location, 'source.location', 1),
    sourceLengthBytes: integer(source.sourceLengthBytes, 512, 'source.sourceLengthBytes'),
    ...(source.unit === undefined ? {} : { unit: parseUnit(source.unit) }),
    ...(source.nbdExport === undefined ? {} : { nbdExport: parseNbdExport(source.nbdExport) }),
  };
}

function parseSource(source: Fields): SourceSpec {
  return {
    host: text(source.host, 'source.host'),
    port: integer(source.port, 1, 'source.port', 65535),
    targetIqn: nodeName(source.targetIqn, 'source.targetIqn'),
    lun: integer(source.lun, 0, 'source.lun', 255),
    initiatorIqn: nodeName(source.initiatorIqn, 'source.initiatorIqn'),
    chapUser: text(source.chapUser, 'source.chapUser'),
    chapSecret: text(source.chapSecret, 'source.chapSecret'),
    ...(source.tls === undefined ? {} : { tls: flag(source.tls, 'source.tls') }),
  };
}

function parseUnit(value: unknown): ImportedUnit {
  const unit = object(value, 'source.unit');
  return {
    serial: text(unit.serial, 'unit.serial'),
    designators: text(unit.designators, 'unit.designators'),
  };
}

function parseNbdExport(value: unknown): ImportedExport {
  const fields = object(value, 'source.nbdExport');
  return {
    name: text(fields.name, 'nbdExport.name'),
    description: text(fields.description, 'nbdExport.description'),
    minimumBlockBytes: integer(fields.minimumBlockBytes, 1, 'nbdExport.minimumBlockBytes'),
  };
}

function parseExport(value: unknown): ExportSpec['export'] {
  const fields = object(value, 'export');
  if (!Array.isArray(fields.grants)) throw badSpec('export.grants does not fit');
  return {
    listenHost: text(fields.listenHost, 'export.listenHost'),
    listenPort: integer(fields.listenPort, 0, 'export.listenPort', 65535),
    targetIqn: text(fields.targetIqn, 'export.targetIqn'),
    grants: fields.grants.map(parseGrant),
    ...(fields.tls === undefined ? {} : { tls: parseTlsFiles(fields.tls, 'export.tls') }),
  };
}

function parseServe(value: unknown): ServeSpec['serve'] {
  const serve = object(value, 'serve');
  return { exportName: text(serve.exportName, 'serve.exportName'), listen: parseListen(serve.listen) };
}

function parseListen(value: unknown): ServeListen {
  const listen = object(value, 'serve.listen');
  const kind = oneOf(listen.kind, ['nbd-unix', 'nbd', 'iscsi'], 'listen.kind');
  if (kind === 'nbd-unix') return { kind, path: text(listen.path, 'listen.path', 1) };
  const place = {
    host: text(listen.host, 'listen.host', 1),
    port: integer(listen.port, 0, 'listen.port', 65535),
    ...(listen.tls === undefined ? {} : { tls: parseTlsFiles(listen.tls, 'listen.tls') }),
  };
  if (kind === 'nbd') return { kind, ...place };
  return {
    kind,
    ...place,
    targetIqn: text(listen.targetIqn, 'listen.targetIqn'),
    chapUser: text(listen.chapUser, 'listen.chapUser', 1),
    chapSecret: text(listen.chapSecret, 'listen.chapSecret', 12),
  };
}

function parseTlsFiles(value: unknown, what: string): TlsFiles {
  const files = object(value, what);
  return {
    certFile: text(files.certFile, `${what}.certFile`),
    keyFile: text(files.keyFile, `${what}.keyFile`),
    caFile: text(files.caFile, `${what}.caFile`),
  };
}
