import { protocolError } from './errors.ts';

/**
 * The NBD protocol (NetworkBlockDevice/nbd, doc/proto.md), fixed newstyle: its constants, and one
 * encode/decode pair for each message. Everything is big-endian. Nothing here keeps state or reads from a
 * socket.
 *
 * 64-bit offsets and lengths are numbers: above 2^53 they are rounded, which is beyond every export, so that
 * range checks still refuse them. Cookies are opaque; they travel as two 32-bit halves.
 */

/** 'NBDMAGIC', the first half of the greeting. */
const GREETING_MAGIC_HIGH = 0x4e42444d;
const GREETING_MAGIC_LOW = 0x41474943;
/** 'IHAVEOPT', the second half of the greeting and the start of each option. */
const OPTION_MAGIC_HIGH = 0x49484156;
const OPTION_MAGIC_LOW = 0x454f5054;
const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
const REQUEST_MAGIC = 0x25609513;
const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const HANDSHAKE_FLAG = { fixedNewstyle: 1 << 0, noZeroes: 1 << 1 } as const;
export const CLIENT_FLAG = { fixedNewstyle: 1 << 0, noZeroes: 1 << 1 } as const;

export const TRANSMISSION_FLAG = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDontFragment: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
  blockStatusPayload: 1 << 12,
} as const;

export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  peekExport: 4,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

const ERROR_BIT = 0x80000000;
export const OPTION_REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errorUnsupported: ERROR_BIT + 1,
  errorPolicy: ERROR_BIT + 2,
  errorInvalid: ERROR_BIT + 3,
  errorPlatform: ERROR_BIT + 4,
  errorTlsRequired: ERROR_BIT + 5,
  errorUnknown: ERROR_BIT + 6,
  errorShutdown: ERROR_BIT + 7,
  errorBlockSizeRequired: ERROR_BIT + 8,
  errorTooBig: ERROR_BIT + 9,
  errorExtendedHeadersRequired: ERROR_BIT + 10,
} as const;

export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
  resize: 8,
} as const;

export const COMMAND_FLAG = {
  fua: 1 << 0,
  noHole: 1 << 1,
  dontFragment: 1 << 2,
  reqOne: 1 << 3,
  fastZero: 1 << 4,
  payloadLength: 1 << 5,
} as const;

export const REPLY_FLAG = { done: 1 << 0 } as const;

export const CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  blockStatusExtended: 6,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;
/** Set in the type of every error chunk, also of those that are not known yet. */
export const CHUNK_ERROR_BIT = 0x8000;

/** The values that the error field of a reply may have. */
export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** The context of the standard: which extents are allocated, which read as zeros. */
export const ALLOCATION_CONTEXT = 'base:allocation';
export const ALLOCATION_STATE = { hole: 1 << 0, zero: 1 << 1 } as const;
/**
 * Our own context, of clones: which extents have to be fetched from their source before they can be read from
 * here.
 */
export const HYDRATION_CONTEXT = 'godwit:hydration';
export const HYDRATION_STATE = { remote: 1 << 0 } as const;

/** Longest string of the protocol (export name, context name, message), in bytes of UTF-8. */
export const STRING_BYTES_MAX = 4096;

export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;
export const OPTION_HEADER_BYTES = 16;
export const OPTION_REPLY_HEADER_BYTES = 20;
export const EXPORT_NAME_REPLY_BYTES = 10;
export const EXPORT_NAME_ZEROES_BYTES = 124;
export const REQUEST_BYTES = 28;
export const EXTENDED_REQUEST_BYTES = 32;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_REPLY_BYTES = 20;
export const EXTENDED_REPLY_BYTES = 32;
/** What stands before the bytes in the payload of an offsetData chunk. */
export const OFFSET_BYTES = 8;
export const OFFSET_HOLE_BYTES = 12;

/** The name of a constant in one of the tables above, for people. */
export function nameOf(table: Readonly<Record<string, number>>, value: number): string {
  for (const [name, known] of Object.entries(table)) if (known === value) return name;
  return `0x${value.toString(16)}`;
}

export function writeUint64(into: Buffer, value: number, at: number): number {
  into.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  return into.writeUInt32BE(value % 2 ** 32, at + 4);
}

export function readUint64(from: Buffer, at: number): number {
  return from.readUInt32BE(at) * 2 ** 32 + from.readUInt32BE(at + 4);
}

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A string of the protocol: UTF-8, no NUL, at most 4096 bytes. */
export function decodeString(bytes: Buffer): string {
  if (bytes.length > STRING_BYTES_MAX) throw protocolError('string is too long', { bytes: bytes.length });
  if (bytes.includes(0)) throw protocolError('string contains NUL');
  try {
    return UTF8.decode(bytes);
  } catch {
    throw protocolError('string is not UTF-8');
  }
}

/** Reads the fields of an option or of its reply; running over the end is a protocol error. */
class Fields {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  take(count: number): Buffer {
    if (count > this.left) {
      throw protocolError('a field runs over the end of its message', { needed: count, left: this.left });
    }
    this.#at += count;
    return this.#bytes.subarray(this.#at - count, this.#at);
  }

  uint16(): number {
    return this.take(2).readUInt16BE();
  }

  uint32(): number {
    return this.take(4).readUInt32BE();
  }

  uint64(): number {
    return readUint64(this.take(8), 0);
  }

  string(lengthBytes: number): string {
    return decodeString(this.take(lengthBytes));
  }

  end(): void {
    if (this.left > 0) throw protocolError('bytes left over at the end of a message', { bytes: this.left });
  }
}

// ---- Handshake

/** Server to client: 'NBDMAGIC'(8) 'IHAVEOPT'(8) handshake flags(2). */
export function encodeGreeting(handshakeFlags: number): Buffer {
  const bytes = Buffer.allocUnsafe(GREETING_BYTES);
  bytes.writeUInt32BE(GREETING_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(GREETING_MAGIC_LOW, 4);
  bytes.writeUInt32BE(OPTION_MAGIC_HIGH, 8);
  bytes.writeUInt32BE(OPTION_MAGIC_LOW, 12);
  bytes.writeUInt16BE(handshakeFlags, 16);
  return bytes;
}

/** The handshake flags. A server of the old style (no 'IHAVEOPT') is refused. */
export function decodeGreeting(bytes: Buffer): number {
  if (bytes.readUInt32BE(0) !== GREETING_MAGIC_HIGH || bytes.readUInt32BE(4) !== GREETING_MAGIC_LOW) {
    throw protocolError('the server does not greet as NBD servers do');
  }
  if (bytes.readUInt32BE(8) !== OPTION_MAGIC_HIGH || bytes.readUInt32BE(12) !== OPTION_MAGIC_LOW) {
    throw protocolError('the server speaks the old style of the protocol');
  }
  return bytes.readUInt16BE(16);
}

/** Client to server: client flags(4). */
export function encodeClientFlags(flags: number): Buffer {
  const bytes = Buffer.allocUnsafe(CLIENT_FLAGS_BYTES);
  bytes.writeUInt32BE(flags);
  return bytes;
}

export function decodeClientFlags(bytes: Buffer): number {
  return bytes.readUInt32BE(0);
}

/** Client to server: 'IHAVEOPT'(8) option(4) data length(4) data. */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_HEADER_BYTES + data.length);
  bytes.writeUInt32BE(OPTION_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(OPTION_MAGIC_LOW, 4);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  bytes.set(data, OPTION_HEADER_BYTES);
  return bytes;
}

export function decodeOptionHeader(bytes: Buffer): { option: number; dataBytes: number } {
  if (bytes.readUInt32BE(0) !== OPTION_MAGIC_HIGH || bytes.readUInt32BE(4) !== OPTION_MAGIC_LOW) {
    throw protocolError('an option does not begin with its magic');
  }
  return { option: bytes.readUInt32BE(8), dataBytes: bytes.readUInt32BE(12) };
}

/** Server to client: magic(8) option(4) reply type(4) data length(4) data. */
export function encodeOptionReply(
  option: number,
  type: number,
  data: Uint8Array = new Uint8Array(0),
): Buffer {
  const bytes = Buffer.allocUnsafe(OPTION_REPLY_HEADER_BYTES + data.length);
  bytes.writeUInt32BE(OPTION_REPLY_MAGIC_HIGH, 0);
  bytes.writeUInt32BE(OPTION_REPLY_MAGIC_LOW, 4);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  bytes.set(data, OPTION_REPLY_HEADER_BYTES);
  return bytes;
}

export function decodeOptionReplyHeader(bytes: Buffer): { option: number; type: number; dataBytes: number } {
  if (bytes.readUInt32BE(0) !== OPTION_REPLY_MAGIC_HIGH || bytes.readUInt32BE(4) !== OPTION_REPLY_MAGIC_LOW) {
    throw protocolError('the reply to an option does not begin with its magic');
  }
  return {
    option: bytes.readUInt32BE(8),
    type: bytes.readUInt32BE(12),
    dataBytes: bytes.readUInt32BE(16),
  };
}

export function isErrorReply(type: number): boolean {
  return type >= ERROR_BIT;
}

/**
 * Server to client, to NBD_OPT_EXPORT_NAME: length(8) transmission flags(2) zeroes(124, unless the client
 * wants none).
 */
export function encodeExportNameReply(
  reply: { lengthBytes: number; transmissionFlags: number },
  zeroes: boolean,
): Buffer {
  const bytes = Buffer.alloc(EXPORT_NAME_REPLY_BYTES + (zeroes ? EXPORT_NAME_ZEROES_BYTES : 0));
  bytes.writeUInt16BE(reply.transmissionFlags, writeUint64(bytes, reply.lengthBytes, 0));
  return bytes;
}

export function decodeExportNameReply(bytes: Buffer): { lengthBytes: number; transmissionFlags: number } {
  return { lengthBytes: readUint64(bytes, 0), transmissionFlags: bytes.readUInt16BE(8) };
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO: name length(4) name, count(2), information types(2 each). */
export function encodeInfoRequest(exportName: string, types: readonly number[]): Buffer {
  const name = Buffer.from(exportName);
  const bytes = Buffer.allocUnsafe(4 + name.length + 2 + 2 * types.length);
  bytes.writeUInt32BE(name.length, 0);
  bytes.set(name, 4);
  let at = bytes.writeUInt16BE(types.length, 4 + name.length);
  for (const type of types) at = bytes.writeUInt16BE(type, at);
  return bytes;
}

export function decodeInfoRequest(data: Buffer): { exportName: string; types: number[] } {
  const fields = new Fields(data);
  const exportName = fields.string(fields.uint32());
  const count = fields.uint16();
  const types: number[] = [];
  for (let index = 0; index < count; index += 1) types.push(fields.uint16());
  fields.end();
  return { exportName, types };
}

/** What NBD_REP_INFO tells; types that are not known decode as null. */
export type ExportInfo =
  | { type: 'export'; lengthBytes: number; transmissionFlags: number }
  | { type: 'name'; name: string }
  | { type: 'description'; description: string }
  | { type: 'blockSize'; minimumBytes: number; preferredBytes: number; maximumBytes: number };

/**
 * Data of NBD_REP_INFO: type(2), then
 *   export: length(8) transmission flags(2)    name, description: string
 *   block size: minimum(4) preferred(4) maximum(4)
 */
export function encodeInfo(info: ExportInfo): Buffer {
  switch (info.type) {
    case 'export': {
      const bytes = Buffer.allocUnsafe(12);
      bytes.writeUInt16BE(INFO.export, 0);
      bytes.writeUInt16BE(info.transmissionFlags, writeUint64(bytes, info.lengthBytes, 2));
      return bytes;
    }
    case 'name':
      return Buffer.concat([Buffer.of(0, INFO.name), Buffer.from(info.name)]);
    case 'description':
      return Buffer.concat([Buffer.of(0, INFO.description), Buffer.from(info.description)]);
    case 'blockSize': {
      const bytes = Buffer.allocUnsafe(14);
      bytes.writeUInt16BE(INFO.blockSize, 0);
      bytes.writeUInt32BE(info.minimumBytes, 2);
      bytes.writeUInt32BE(info.preferredBytes, 6);
      bytes.writeUInt32BE(info.maximumBytes, 10);
      return bytes;
    }
  }
}

export function decodeInfo(data: Buffer): ExportInfo | null {
  const fields = new Fields(data);
  const type = fields.uint16();
  let info: ExportInfo;
  switch (type) {
    case INFO.export:
      info = { type: 'export', lengthBytes: fields.uint64(), transmissionFlags: fields.uint16() };
      break;
    case INFO.name:
      info = { type: 'name', name: fields.string(fields.left) };
      break;
    case INFO.description:
      info = { type: 'description', description: fields.string(fields.left) };
      break;
    case INFO.blockSize:
      info = {
        type: 'blockSize',
        minimumBytes: fields.uint32(),
        preferredBytes: fields.uint32(),
        maximumBytes: fields.uint32(),
      };
      break;
    default:
      return null;
  }
  fields.end();
  return info;
}

/** Data of NBD_REP_SERVER: name length(4) name description(the rest). */
export function encodeListed(name: string, description: string): Buffer {
  const nameBytes = Buffer.from(name);
  const length = Buffer.allocUnsafe(4);
  length.writeUInt32BE(nameBytes.length);
  return Buffer.concat([length, nameBytes, Buffer.from(description)]);
}

export function decodeListed(data: Buffer): { name: string; description: string } {
  const fields = new Fields(data);
  const name = fields.string(fields.uint32());
  return { name, description: fields.string(fields.left) };
}

/**
 * Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: name length(4) name, count(4), then
 * length(4) query each.
 */
export function encodeMetaContextRequest(exportName: string, queries: readonly string[]): Buffer {
  const parts: Buffer[] = [];
  const uint32 = (value: number) => {
    const bytes = Buffer.allocUnsafe(4);
    bytes.writeUInt32BE(value);
    parts.push(bytes);
  };
  const string = (text: string) => {
    const bytes = Buffer.from(text);
    uint32(bytes.length);
    parts.push(bytes);
  };
  string(exportName);
  uint32(queries.length);
  for (const query of queries) string(query);
  return Buffer.concat(parts);
}

export function decodeMetaContextRequest(data: Buffer): { exportName: string; queries: string[] } {
  const fields = new Fields(data);
  const exportName = fields.string(fields.uint32());
  const count = fields.uint32();
  // Each query has a length field, so the count cannot make more of them than there are bytes.
  const queries: string[] = [];
  for (let index = 0; index < count; index += 1) queries.push(fields.string(fields.uint32()));
  fields.end();
  return { exportName, queries };
}

/** Data of NBD_REP_META_CONTEXT: context id(4) name(the rest). */
export function encodeMetaContext(context: { id: number; name: string }): Buffer {
  const id = Buffer.allocUnsafe(4);
  id.writeUInt32BE(context.id);
  return Buffer.concat([id, Buffer.from(context.name)]);
}

export function decodeMetaContext(data: Buffer): { id: number; name: string } {
  const fields = new Fields(data);
  const id = fields.uint32();
  return { id, name: fields.string(fields.left) };
}

// ---- Transmission

export type Request = {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  offsetBytes: number;
  /** Of the effect, or of the payload that follows: see `requestPayloadBytes`. */
  lengthBytes: number;
};

/**
 * Client to server.
 *
 *   compact:  magic(4) flags(2) type(2) cookie(8) offset(8) length(4)
 *   extended: magic(4) flags(2) type(2) cookie(8) offset(8) length(8)
 *
 * Returns the position after it.
 */
export function encodeRequest(into: Buffer, at: number, extended: boolean, request: Request): number {
  into.writeUInt32BE(extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC, at);
  into.writeUInt16BE(request.flags, at + 4);
  into.writeUInt16BE(request.type, at + 6);
  into.writeUInt32BE(request.cookieHigh, at + 8);
  into.writeUInt32BE(request.cookieLow, at + 12);
  writeUint64(into, request.offsetBytes, at + 16);
  return extended
    ? writeUint64(into, request.lengthBytes, at + 24)
    : into.writeUInt32BE(request.lengthBytes, at + 24);
}

export function decodeRequest(from: Buffer, at: number, extended: boolean): Request {
  if (from.readUInt32BE(at) !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
    throw protocolError('a request does not begin with its magic', { magic: from.readUInt32BE(at) });
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    offsetBytes: readUint64(from, at + 16),
    lengthBytes: extended ? readUint64(from, at + 24) : from.readUInt32BE(at + 24),
  };
}

/**
 * How many bytes of payload follow a request. Writes carry their bytes; with extended headers the
 * payload-length flag says so for any other command too (known or not), which is what lets a server skip it.
 */
export function requestPayloadBytes(request: Request, extended: boolean): number {
  if (request.type === COMMAND.write) return request.lengthBytes;
  return extended && (request.flags & COMMAND_FLAG.payloadLength) !== 0 ? request.lengthBytes : 0;
}

/**
 * Server to client: magic(4) error(4) cookie(8), then the bytes of a successful read. Returns the position
 * after it.
 */
export function encodeSimpleReply(
  into: Buffer,
  at: number,
  reply: { error: number; cookieHigh: number; cookieLow: number },
): number {
  into.writeUInt32BE(SIMPLE_REPLY_MAGIC, at);
  into.writeUInt32BE(reply.error, at + 4);
  into.writeUInt32BE(reply.cookieHigh, at + 8);
  return into.writeUInt32BE(reply.cookieLow, at + 12);
}

export function decodeSimpleReply(
  from: Buffer,
  at: number,
): { error: number; cookieHigh: number; cookieLow: number } {
  if (from.readUInt32BE(at) !== SIMPLE_REPLY_MAGIC)
    throw protocolError('a reply does not begin with its magic');
  return {
    error: from.readUInt32BE(at + 4),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
  };
}

export type ChunkHeader = {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  /** Of the request; only extended headers carry it (0 in structured ones). */
  offsetBytes: number;
  payloadBytes: number;
};

/**
 * Server to client, header of a chunk.
 *
 *   structured: magic(4) flags(2) type(2) cookie(8) length(4)
 *   extended:   magic(4) flags(2) type(2) cookie(8) offset(8) length(8)
 *
 * Returns the position after it.
 */
export function encodeChunkHeader(into: Buffer, at: number, extended: boolean, chunk: ChunkHeader): number {
  into.writeUInt32BE(extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, at);
  into.writeUInt16BE(chunk.flags, at + 4);
  into.writeUInt16BE(chunk.type, at + 6);
  into.writeUInt32BE(chunk.cookieHigh, at + 8);
  into.writeUInt32BE(chunk.cookieLow, at + 12);
  if (!extended) return into.writeUInt32BE(chunk.payloadBytes, at + 16);
  writeUint64(into, chunk.offsetBytes, at + 16);
  return writeUint64(into, chunk.payloadBytes, at + 24);
}

export function decodeChunkHeader(from: Buffer, at: number, extended: boolean): ChunkHeader {
  if (from.readUInt32BE(at) !== (extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC)) {
    throw protocolError('a reply chunk does not begin with its magic', { magic: from.readUInt32BE(at) });
  }
  return {
    flags: from.readUInt16BE(at + 4),
    type: from.readUInt16BE(at + 6),
    cookieHigh: from.readUInt32BE(at + 8),
    cookieLow: from.readUInt32BE(at + 12),
    offsetBytes: extended ? readUint64(from, at + 16) : 0,
    payloadBytes: extended ? readUint64(from, at + 24) : from.readUInt32BE(at + 16),
  };
}

/** Payload of an offsetHole chunk: offset(8) length(4). Returns the position after it. */
export function encodeHole(into: Buffer, at: number, offsetBytes: number, lengthBytes: number): number {
  return into.writeUInt32BE(lengthBytes, writeUint64(into, offsetBytes, at));
}

export function decodeHole(payload: Buffer): { offsetBytes: number; lengthBytes: number } {
  const fields = new Fields(payload);
  const hole = { offsetBytes: fields.uint64(), lengthBytes: fields.uint32() };
  fields.end();
  return hole;
}

/** Payload of an error chunk: error(4) message length(2) message, and for errorOffset: offset(8). */
export function encodeErrorChunk(error: number, message: string, offsetBytes: number | null = null): Buffer {
  const text = Buffer.from(message);
  const bytes = Buffer.allocUnsafe(6 + text.length + (offsetBytes === null ? 0 : 8));
  bytes.writeUInt32BE(error, 0);
  bytes.writeUInt16BE(text.length, 4);
  bytes.set(text, 6);
  if (offsetBytes !== null) writeUint64(bytes, offsetBytes, 6 + text.length);
  return bytes;
}

/**
 * `offsetBytes` is null unless the chunk has one. Error chunks of a type that is not known may end in fields
 * of their own.
 */
export function decodeErrorChunk(
  type: number,
  payload: Buffer,
): { error: number; message: string; offsetBytes: number | null } {
  const fields = new Fields(payload);
  const error = fields.uint32();
  const message = fields.string(fields.uint16());
  const offsetBytes = type === CHUNK.errorOffset ? fields.uint64() : null;
  if (type === CHUNK.error || type === CHUNK.errorOffset) fields.end();
  return { error, message, offsetBytes };
}

export type StatusExtent = { lengthBytes: number; state: number };

/**
 * Payload of a block status chunk.
 *
 *   blockStatus:         context id(4), then length(4) state(4) each
 *   blockStatusExtended: context id(4) count(4), then length(8) state(8) each
 */
export function encodeBlockStatus(
  extended: boolean,
  contextId: number,
  extents: readonly StatusExtent[],
): Buffer {
  const bytes = Buffer.allocUnsafe(extended ? 8 + 16 * extents.length : 4 + 8 * extents.length);
  let at = bytes.writeUInt32BE(contextId, 0);
  if (extended) at = bytes.writeUInt32BE(extents.length, at);
  for (const { lengthBytes, state } of extents) {
    if (extended) {
      at = writeUint64(bytes, lengthBytes, at);
      at = writeUint64(bytes, state, at);
    } else {
      at = bytes.writeUInt32BE(lengthBytes, at);
      at = bytes.writeUInt32BE(state, at);
    }
  }
  return bytes;
}

export function decodeBlockStatus(
  type: number,
  payload: Buffer,
): { contextId: number; extents: StatusExtent[] } {
  const extended = type === CHUNK.blockStatusExtended;
  const fields = new Fields(payload);
  const contextId = fields.uint32();
  const count = extended ? fields.uint32() : Number.POSITIVE_INFINITY;
  const extents: StatusExtent[] = [];
  while (fields.left > 0) {
    const lengthBytes = extended ? fields.uint64() : fields.uint32();
    const state = extended ? fields.uint64() : fields.uint32();
    if (lengthBytes === 0) throw protocolError('an extent of a block status is empty');
    extents.push({ lengthBytes, state });
  }
  if (extents.length === 0) throw protocolError('a block status has no extent');
  if (extended && count !== extents.length) {
    throw protocolError('a block status does not have as many extents as it says', { count });
  }
  return { contextId, extents };
}

/**
 * Payload of a NBD_CMD_BLOCK_STATUS request with the payload-length flag: length of the effect(8), context
 * ids(4 each).
 */
export function encodeBlockStatusPayload(lengthBytes: number, contextIds: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(8 + 4 * contextIds.length);
  let at = writeUint64(bytes, lengthBytes, 0);
  for (const id of contextIds) at = bytes.writeUInt32BE(id, at);
  return bytes;
}

export function decodeBlockStatusPayload(payload: Buffer): { lengthBytes: number; contextIds: number[] } {
  const fields = new Fields(payload);
  const lengthBytes = fields.uint64();
  const contextIds: number[] = [];
  while (fields.left > 0) contextIds.push(fields.uint32());
  return { lengthBytes, contextIds };
}
