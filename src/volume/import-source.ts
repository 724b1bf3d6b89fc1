import { closeSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { type ErrorValues, GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Random } from '../base/random.ts';
import { BLOCK_BYTES, type BlockDevice, type Extent } from '../block/block-device.ts';
import { FileDevice } from '../block/file-device.ts';
import { checkRange } from '../block/range.ts';
import { ReadOnlyDevice } from '../block/read-only-device.ts';
import { type InitiatorOptions, IscsiInitiator, type UnitIdentity } from '../iscsi/index.ts';
import {
  isNbdUri,
  NbdClient,
  type NbdClientOptions,
  type NbdIdentity,
  type NbdUri,
  parseNbdUri,
} from '../nbd/index.ts';
import type { ImportedExport, ImportedUnit } from '../opening/spec.ts';
import { openNamedFile } from '../sys/named-path.ts';
import { TlsIdentity } from '../sys/tls-identity.ts';
import type { Connection } from './source-device.ts';

/** A disk of another system that a clone can be made of: read, and never written. */
export type ImportSource =
  | { kind: 'nbd'; uri: NbdUri }
  | {
      kind: 'iscsi';
      host: string;
      port: number;
      targetIqn: string;
      lun: number;
      chap: { user: string; secret: string } | null;
      /**
       * Over TLS, as the one that has these certificates: a folder with `ca-cert.pem`, `client-cert.pem` and
       * `client-key.pem`.
       */
      certificatesDir: string | null;
    }
  | { kind: 'file'; path: string };

export type ImportSourceOptions = {
  clock: Clock;
  random: Random;
  logger: Logger;
  /** What the source must be; another length is refused. */
  sourceLengthBytes?: number;
  /** The unit that it must be, where that is known. */
  unit?: ImportedUnit;
  /** The export that it must be, where that is known. */
  nbdExport?: ImportedExport;
};
type Expecting = ImportSourceOptions & { sourceLengthBytes: number };

const ISCSI_PORT = 3260;
const INITIATOR_IQN = 'iqn.2026-11.dev.godwit:import';
/**
 * MD5, which every target has, before what some have: tgt takes SHA-256's number (7) for SHA-1, chooses it
 * where it is offered first, and then refuses the right secret.
 */
const CHAP_ALGORITHMS = ['md5', 'sha3_256', 'sha256', 'sha1'] as const;
const FILE_BLOCK_BYTES = 512;
/** Of one question about holes: an answer is small, and asked for soon enough to end when the time is up. */
const MEASURE_STEP_BYTES = 4 * 1024 ** 3;
const MEASURE_EXTENTS = 1000;
/**
 * libiscsi's form. User and secret are percent-encoded; the separator between them is a percent sign that
 * begins no code, or a colon.
 */
const ISCSI_PATTERN =
  /^(iscsis?):\/\/(?:([^/@]*)@)?(\[[0-9A-Fa-f:.]+\]|[^/:@?#]+)(?::(\d{1,5}))?\/([^/?#]+)\/(\d{1,3})(?:\?tls-certificates=([^&#]+))?$/i;

/**
 * `nbd://…` and its kin (nbd/client-uri.ts), `iscsi://[user[%secret]@]host[:port]/iqn/lun`,
 * `iscsis://…?tls-certificates=FOLDER`, or the path of a file with a raw image. Pure. Throws `NBD_BAD_URI` or
 * `VOLUME_BAD_SOURCE`; neither repeats a secret.
 */
export function parseImportSource(text: string): ImportSource {
  if (isNbdUri(text)) return { kind: 'nbd', uri: parseNbdUri(text) };
  if (/^iscsis?:/i.test(text)) return parseIscsi(text);
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(text)) throw badSource('its scheme is neither nbd nor iscsi');
  if (text === '' || text.includes('\0')) throw badSource('it is no path');
  return { kind: 'file', path: text };
}

function parseIscsi(text: string): ImportSource {
  const match = ISCSI_PATTERN.exec(text);
  if (match === null) throw badSource('write iscsi://[user[%secret]@]host[:port]/iqn/lun');
  const [, scheme, login, host, portText, iqn, lunText, folder] = match;
  if ((scheme!.toLowerCase() === 'iscsis') !== (folder !== undefined))
    throw badSource('iscsis:// needs ?tls-certificates=FOLDER, and nothing else has it');
  const port = portText === undefined ? ISCSI_PORT : Number(portText);
  const lun = Number(lunText);
  if (port < 1 || port > 65535) throw badSource('its port is not one', { port });
  if (lun > 255) throw badSource('its logical unit is above 255', { lun });
  return {
    kind: 'iscsi',
    host: host!.replace(/^\[|\]$/g, ''),
    port,
    targetIqn: decode(iqn!),
    lun,
    chap: login === undefined ? null : parseLogin(login),
    certificatesDir: folder === undefined ? null : decode(folder),
  };
}

/** `user%secret`, as libiscsi takes it: the first percent sign is the separator. */
function parseLogin(login: string): { user: string; secret: string } {
  const at = login.indexOf('%');
  if (at < 1) throw badSource('a user needs a secret: user%secret@host');
  return { user: login.slice(0, at), secret: login.slice(at + 1) };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw badSource('it is not percent-encoded UTF-8');
  }
}

/**
 * The source, connected and checked, for the first look at it: its `lengthBytes` are rounded up to whole
 * blocks of 4096 bytes, and what is behind its real end reads as zeros. Rejects with the errors of the
 * client, or `VOLUME_BAD_SOURCE` for a file that cannot be read.
 */
export async function connectImportSource(
  source: ImportSource,
  options: ImportSourceOptions,
  timeoutMs: number = PATIENCE.importConnect.ms,
): Promise<ImportedDevice> {
  switch (source.kind) {
    case 'nbd':
      return new ImportedDevice(await NbdClient.connect(nbdOptions(source.uri, options), { timeoutMs }));
    case 'iscsi':
      return new ImportedDevice(await IscsiInitiator.connect(iscsiOptions(source, options), { timeoutMs }));
    case 'file':
      return new ImportedDevice(await openFile(source.path, options.sourceLengthBytes ?? null));
  }
}

/**
 * What the source is formatted with, by the magic number of its superblock (ext4: s_magic, Linux
 * fs/ext4/ext4.h; XFS: XFS_SB_MAGIC). Rejects as the source's reads, or with `VOLUME_BAD_SOURCE` where the
 * first block did not come in `limitMs`.
 */
export async function detectFilesystem(
  device: Pick<ImportedDevice, 'read' | 'lengthBytes' | 'state' | 'lastError' | 'trouble'>,
  clock: Pick<Clock, 'timer'>,
  limitMs: number = PATIENCE.importConnect.ms,
): Promise<'ext4' | 'xfs' | 'none'> {
  const head = Buffer.alloc(BLOCK_BYTES);
  const answered = device.read(0, head).then(() => true);
  if (!(await inTime(answered, clock, limitMs))) {
    const why = device.trouble ?? (device.state === 'connected' ? null : device.lastError);
    const reason = why === null ? '' : `: ${why.message}`;
    throw badSource(`its first block could not be read in time${reason}`, { waitedMs: limitMs });
  }
  if (head.toString('latin1', 0, 4) === 'XFSB') return 'xfs';
  return head.readUInt16LE(1024 + 56) === 0xef53 ? 'ext4' : 'none';
}

/**
 * How much of a source is no hole: `dataBytes` certainly, `unknownBytes` nobody knows, because the time was
 * up or the source failed to tell. One that never tells is all data.
 */
export async function measureUse(
  device: Pick<ImportedDevice, 'extents' | 'lengthBytes'>,
  clock: Pick<Clock, 'monotonicMs' | 'timer'>,
  budgetMs: number = PATIENCE.importProbe.ms,
): Promise<{ dataBytes: number; unknownBytes: number }> {
  const untilMs = clock.monotonicMs() + budgetMs;
  let dataBytes = 0;
  let at = 0;
  while (at < device.lengthBytes && clock.monotonicMs() < untilMs) {
    const lengthBytes = Math.min(MEASURE_STEP_BYTES, device.lengthBytes - at);
    // A source that fails to tell is not one that cannot be read.
    const answer = device.extents(at, lengthBytes, MEASURE_EXTENTS).catch(() => []);
    const extents = await inTime(answer, clock, untilMs - clock.monotonicMs());
    if (extents === null || extents.length === 0) break;
    for (const extent of extents) {
      if (extent.kind === 'data') dataBytes += extent.lengthBytes;
      at = extent.offsetBytes + extent.lengthBytes;
    }
  }
  return { dataBytes, unknownBytes: device.lengthBytes - at };
}

/** Null: it was not there in time. What comes of it later is nobody's. */
async function inTime<T>(
  answer: Promise<T>,
  clock: Pick<Clock, 'timer'>,
  limitMs: number,
): Promise<T | null> {
  const late = Promise.withResolvers<null>();
  const cancel = clock.timer(limitMs, () => late.resolve(null));
  try {
    return await Promise.race([answer, late.promise]);
  } finally {
    cancel();
    answer.catch(() => {});
  }
}

/** The same at once, for a source that was looked at before; reads wait until it is there. */
export function openImportSource(source: ImportSource, options: Expecting): ImportedDevice {
  const lengthBytes = options.sourceLengthBytes;
  switch (source.kind) {
    case 'nbd':
      return new ImportedDevice(
        NbdClient.open({
          ...nbdOptions(source.uri, options),
          expected: { lengthBytes, ...options.nbdExport },
        }),
      );
    case 'iscsi':
      return new ImportedDevice(
        IscsiInitiator.open({ ...iscsiOptions(source, options), expected: { lengthBytes, ...options.unit } }),
      );
    case 'file':
      return new ImportedDevice(new LateFile(source.path, lengthBytes));
  }
}

type Inner = Pick<BlockDevice, 'lengthBytes' | 'read' | 'extents' | 'close'> &
  Partial<Pick<Connection, 'state' | 'lastError' | 'trouble' | 'vouch'>> & {
    readonly identity?: object | null;
  };

/** The device that is read, in blocks that a clone takes, and with a tail of zeros up to a whole one. */
class ImportedDevice extends ReadOnlyDevice implements Connection {
  readonly lengthBytes: number;
  /** Of the source, without the tail. */
  readonly sourceLengthBytes: number;
  readonly blockBytes = BLOCK_BYTES;
  readonly #inner: Inner;

  constructor(inner: Inner) {
    super();
    this.#inner = inner;
    this.sourceLengthBytes = inner.lengthBytes;
    this.lengthBytes = Math.ceil(inner.lengthBytes / BLOCK_BYTES) * BLOCK_BYTES;
  }

  /** A file is always there. */
  get state(): string {
    return this.#inner.state ?? 'connected';
  }
  get lastError(): GodwitError | null {
    return this.#inner.lastError ?? null;
  }
  get trouble(): GodwitError | null {
    return this.#inner.trouble ?? null;
  }
  /** What tells it from another, beside its length, of iSCSI. */
  get unit(): ImportedUnit | null {
    const identity = this.#inner.identity as Partial<UnitIdentity> | null | undefined;
    if (identity?.serial === undefined || identity.designators === undefined) return null;
    return { serial: identity.serial, designators: identity.designators };
  }

  /** The same of NBD: what its server says of the export. */
  get nbdExport(): ImportedExport | null {
    const identity = this.#inner.identity as Partial<NbdIdentity> | null | undefined;
    if (identity?.name === undefined || identity.description === undefined) return null;
    const { name, description, minimumBlockBytes = 1 } = identity;
    return { name, description, minimumBlockBytes };
  }

  async vouch(): Promise<void> {
    await this.#inner.vouch?.();
  }

  async read(
    offsetBytes: number,
    into: Uint8Array,
    options?: { priority?: 'guest' | 'background' },
  ): Promise<void> {
    checkRange(this, offsetBytes, into.length);
    const realBytes = Math.min(into.length, Math.max(0, this.sourceLengthBytes - offsetBytes));
    const inner: Pick<Connection, 'read'> = this.#inner;
    if (realBytes > 0) await inner.read(offsetBytes, into.subarray(0, realBytes), options);
    into.fill(0, realBytes);
  }

  /** A border inside of a block makes the whole block data; all data where the source cannot tell. */
  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    checkRange(this, offsetBytes, lengthBytes);
    const realBytes = Math.min(lengthBytes, this.sourceLengthBytes - offsetBytes);
    if (this.#inner.extents === undefined || realBytes < lengthBytes) {
      // The last block may be shorter at the source: fetched, whatever is in it.
      const wholeBytes = Math.floor(realBytes / BLOCK_BYTES) * BLOCK_BYTES;
      if (this.#inner.extents === undefined || wholeBytes <= 0)
        return [{ offsetBytes, lengthBytes, kind: 'data' }];
      return this.extents(offsetBytes, wholeBytes, limitExtents);
    }
    const found = await this.#inner.extents(offsetBytes, lengthBytes, limitExtents);
    return inWholeBlocks(offsetBytes, found);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}

/** A file that is opened when it is needed first, and again after an error. */
class LateFile implements Pick<BlockDevice, 'lengthBytes' | 'blockBytes' | 'read' | 'close'> {
  readonly lengthBytes: number;
  readonly blockBytes = FILE_BLOCK_BYTES;
  readonly #path: string;
  #opened: Promise<FileDevice> | null = null;

  constructor(path: string, lengthBytes: number) {
    this.#path = path;
    this.lengthBytes = lengthBytes;
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    await (await this.#file()).read(offsetBytes, into);
  }

  async extents(offsetBytes: number, lengthBytes: number, limitExtents: number): Promise<Extent[]> {
    return (await this.#file()).extents(offsetBytes, lengthBytes, limitExtents);
  }

  async close(): Promise<void> {
    const opened = this.#opened;
    this.#opened = null;
    await opened?.then((file) => file.close()).catch(() => {});
  }

  #file(): Promise<FileDevice> {
    if (this.#opened === null) {
      const opening = openFile(this.#path, this.lengthBytes);
      this.#opened = opening;
      opening.catch(() => {
        this.#opened = null;
      });
    }
    return this.#opened;
  }
}

/**
 * The same extents with borders at whole blocks: a block with data in it is data. Pure. The first begins at a
 * block.
 */
export function inWholeBlocks(offsetBytes: number, extents: readonly Extent[]): Extent[] {
  const whole: Extent[] = [];
  let at = offsetBytes;
  for (const [index, { offsetBytes: start, lengthBytes, kind }] of extents.entries()) {
    const stop = start + lengthBytes;
    const isLast = index === extents.length - 1;
    const border = kind === 'data' ? Math.ceil(stop / BLOCK_BYTES) : Math.floor(stop / BLOCK_BYTES);
    const end = border * BLOCK_BYTES;
    if (end <= at) continue;
    const last = whole.at(-1);
    if (last?.kind === kind) last.lengthBytes += end - at;
    else whole.push({ offsetBytes: at, lengthBytes: end - at, kind });
    at = end;
    if (isLast) break;
  }
  if (whole.length === 0) whole.push({ offsetBytes, lengthBytes: BLOCK_BYTES, kind: 'data' });
  return whole;
}

function nbdOptions(uri: NbdUri, options: ImportSourceOptions): NbdClientOptions {
  const { clock, random, logger } = options;
  const expected = expectedOf(options);
  const { certificatesDir, hostname, mode, verifyPeer } = uri.tls;
  const tls: NonNullable<NbdClientOptions['tls']> = { mode, verifyPeer };
  if (hostname !== null) tls.hostname = hostname;
  if (certificatesDir !== null) {
    const file = (name: string) => readOptional(join(certificatesDir, name));
    const [ca, certificate, key] = [file('ca-cert.pem'), file('client-cert.pem'), file('client-key.pem')];
    if (ca !== null) tls.ca = ca;
    if (certificate !== null && key !== null) Object.assign(tls, { certificate, key });
  }
  return {
    address: uri.address,
    exportName: uri.exportName,
    tls,
    connections: 2,
    clock,
    random,
    logger,
    ...expected,
  };
}

function iscsiOptions(
  source: Extract<ImportSource, { kind: 'iscsi' }>,
  options: ImportSourceOptions,
): InitiatorOptions {
  const { clock, random, logger, sourceLengthBytes, unit } = options;
  const { host, port, certificatesDir } = source;
  const file = (name: string) => join(certificatesDir!, name);
  const tls = certificatesDir !== null && {
    tls: new TlsIdentity(
      {
        caFile: file('ca-cert.pem'),
        certFile: file('client-cert.pem'),
        keyFile: file('client-key.pem'),
      },
      logger,
    ),
  };
  return {
    portals: [{ host, port, ...tls }],
    targetIqn: source.targetIqn,
    initiatorIqn: INITIATOR_IQN,
    chap: source.chap && { ...source.chap, algorithms: CHAP_ALGORITHMS },
    lun: source.lun,
    clock,
    random,
    logger,
    ...(sourceLengthBytes === undefined ? {} : { expected: { lengthBytes: sourceLengthBytes, ...unit } }),
  };
}

function expectedOf({
  sourceLengthBytes,
  nbdExport,
}: ImportSourceOptions): Pick<NbdClientOptions, 'expected'> {
  return sourceLengthBytes === undefined
    ? {}
    : { expected: { lengthBytes: sourceLengthBytes, ...nbdExport } };
}

/**
 * The open file is what is looked at: its name may lead elsewhere by the time that it is opened again, into
 * the data of another volume too.
 */
async function openFile(path: string, expectedBytes: number | null): Promise<FileDevice> {
  let file: ReturnType<typeof openNamedFile>;
  try {
    file = openNamedFile(path);
  } catch (error) {
    throw badSource(`the file cannot be read: ${messageOf(error)}`, {
      path,
      systemCode: systemErrorCode(error) ?? null,
    });
  }
  const { fd, lengthBytes } = file;
  const refusal =
    lengthBytes === 0 || lengthBytes % FILE_BLOCK_BYTES !== 0
      ? 'the file is not made of whole blocks of 512 bytes'
      : expectedBytes !== null && lengthBytes !== expectedBytes
        ? 'the file has another length than before'
        : null;
  if (refusal !== null) {
    closeSync(fd);
    throw badSource(refusal, { path, lengthBytes, expectedBytes });
  }
  return FileDevice.open({ file: fd, lengthBytes, blockBytes: FILE_BLOCK_BYTES, writable: false });
}

function readOptional(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return null;
    throw badSource(`a certificate cannot be read: ${messageOf(error)}`, { path });
  }
}

function badSource(reason: string, values: ErrorValues = {}): GodwitError {
  return new GodwitError('VOLUME_BAD_SOURCE', `nothing can be imported from this: ${reason}`, {
    values,
    nextAction:
      'Give nbd://HOST:PORT/EXPORT, iscsi://[user%secret@]HOST:PORT/IQN/LUN (iscsis://…?tls-certificates=FOLDER for TLS), or the path of a raw disk image on the worker.',
  });
}
