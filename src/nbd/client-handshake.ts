import { type ErrorValues, GodwitError } from '../base/errors.ts';
import type { NbdTlsMode } from './client-uri.ts';
import { protocolError } from './errors.ts';
import {
  ALLOCATION_CONTEXT,
  CLIENT_FLAG,
  decodeExportNameReply,
  decodeGreeting,
  decodeInfo,
  decodeListed,
  decodeMetaContext,
  decodeOptionReplyHeader,
  decodeString,
  EXPORT_NAME_REPLY_BYTES,
  EXPORT_NAME_ZEROES_BYTES,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  GREETING_BYTES,
  HANDSHAKE_FLAG,
  INFO,
  isErrorReply,
  nameOf,
  OPTION,
  OPTION_REPLY,
  OPTION_REPLY_HEADER_BYTES,
} from './protocol.ts';

/**
 * The client's side of the handshake (doc/proto.md, "Fixed newstyle negotiation"), without I/O: generators
 * that say what they need next. Every one begins with the greeting; `negotiate` ends where requests may be
 * sent, `list` with a soft disconnect.
 *
 *   greeting ─→ [STARTTLS] ─→ EXTENDED_HEADERS, else STRUCTURED_REPLY ─→ SET_META_CONTEXT ─→ GO, else EXPORT_NAME
 *   greeting ─→ [STARTTLS] ─→ LIST ─→ ABORT
 *
 * The rule is one option at a time, so each arrow is a round trip. Everything that the server sends has a
 * limit, in length and in number.
 */
export type HandshakeStep =
  /** Answer with exactly so many bytes. */
  | { kind: 'receive'; lengthBytes: number }
  | { kind: 'send'; bytes: Buffer }
  /** Answer when the rest of the conversation is inside TLS. */
  | { kind: 'secure' };

export type Handshake<Result> = Generator<HandshakeStep, Result, Buffer>;

/** How replies look on the wire from here on. */
export type ReplyStyle = 'simple' | 'structured' | 'extended';

/** What a server says of an export. */
export type RemoteExport = {
  lengthBytes: number;
  /** TRANSMISSION_FLAG. */
  transmissionFlags: number;
  /** The server's own name for it; that of the request where it does not say. */
  name: string;
  /** '' where there is none. */
  description: string;
  /** Every offset and length is a multiple of it; 1 to 65536. */
  minimumBlockBytes: number;
  preferredBlockBytes: number;
  /** Longest payload of one request. */
  maximumBlockBytes: number;
  replyStyle: ReplyStyle;
  /** Of base:allocation; null where the server does not offer it. */
  allocationContextId: number | null;
};

export type NbdListedExport = { name: string; description: string };

/** Longest reply to an option that is taken. Two strings of the protocol and their lengths are shorter. */
const OPTION_REPLY_BYTES_MAX = 16 * 1024;
/** Replies to one option other than LIST. */
const OPTION_REPLIES_MAX = 64;
const LISTED_EXPORTS_MAX = 10_000;
/** Without a word of the server (doc/proto.md, "Block size constraints"). */
const DEFAULT_BLOCKS = { minimumBlockBytes: 1, preferredBlockBytes: 4096, maximumBlockBytes: 32 * 2 ** 20 };
const MINIMUM_BLOCK_BYTES_MAX = 64 * 1024;
const INFO_TYPES = [INFO.name, INFO.description, INFO.blockSize];

export function* negotiate(options: { exportName: string; tls: NbdTlsMode }): Handshake<RemoteExport> {
  const noZeroes = yield* greet(options.tls);
  const replyStyle = yield* chooseReplyStyle();
  const allocationContextId = replyStyle === 'simple' ? null : yield* chooseContext(options.exportName);
  const go = yield* ask(OPTION.go, encodeInfoRequest(options.exportName, INFO_TYPES));
  const export_: RemoteExport = {
    ...DEFAULT_BLOCKS,
    lengthBytes: -1,
    transmissionFlags: 0,
    name: options.exportName,
    description: '',
    replyStyle,
    allocationContextId,
  };
  if (go.final === OPTION_REPLY.errorUnsupported) {
    yield { kind: 'send', bytes: encodeOption(OPTION.exportName, Buffer.from(options.exportName)) };
    const reply = yield* receive(EXPORT_NAME_REPLY_BYTES);
    Object.assign(export_, decodeExportNameReply(reply));
    if (!noZeroes) yield* receive(EXPORT_NAME_ZEROES_BYTES);
  } else {
    if (go.final !== OPTION_REPLY.ack) throw refusal(OPTION.go, go);
    for (const { type, data } of go.replies) {
      if (type === OPTION_REPLY.info) takeInfo(export_, data);
    }
  }
  checkExport(export_);
  return export_;
}

export function* list(options: { tls: NbdTlsMode }): Handshake<NbdListedExport[]> {
  yield* greet(options.tls);
  const answer = yield* ask(OPTION.list, Buffer.alloc(0), LISTED_EXPORTS_MAX);
  if (answer.final !== OPTION_REPLY.ack) throw refusal(OPTION.list, answer);
  const listed = answer.replies.map(({ type, data }) => {
    if (type !== OPTION_REPLY.server) throw protocolError('a reply to LIST is not an export', { type });
    return decodeListed(data);
  });
  yield { kind: 'send', bytes: encodeOption(OPTION.abort) };
  return listed;
}

/** Up to where options may be sent; true when the server leaves out the zeroes after EXPORT_NAME. */
function* greet(tls: NbdTlsMode): Handshake<boolean> {
  const flags = decodeGreeting(yield* receive(GREETING_BYTES));
  if ((flags & HANDSHAKE_FLAG.fixedNewstyle) === 0) {
    throw protocolError('the server does not speak fixed newstyle');
  }
  const noZeroes = (flags & HANDSHAKE_FLAG.noZeroes) !== 0;
  const clientFlags = CLIENT_FLAG.fixedNewstyle | (noZeroes ? CLIENT_FLAG.noZeroes : 0);
  yield { kind: 'send', bytes: encodeClientFlags(clientFlags) };
  if (tls === 'off') return noZeroes;
  const answer = yield* ask(OPTION.startTls, Buffer.alloc(0));
  if (answer.final === OPTION_REPLY.ack) yield { kind: 'secure' };
  else if (tls === 'require') {
    throw new GodwitError('NBD_TLS_REFUSED', 'the NBD server does not do TLS', {
      values: { reply: nameOf(OPTION_REPLY, answer.final) },
      retry: 'never',
      nextAction: 'Turn TLS on at the server, or say nbd: instead of nbds: where the network is private.',
    });
  }
  return noZeroes;
}

function* chooseReplyStyle(): Handshake<ReplyStyle> {
  const extended = yield* ask(OPTION.extendedHeaders, Buffer.alloc(0));
  if (extended.final === OPTION_REPLY.ack) return 'extended';
  failUnlessOptional(OPTION.extendedHeaders, extended);
  const structured = yield* ask(OPTION.structuredReply, Buffer.alloc(0));
  if (structured.final === OPTION_REPLY.ack) return 'structured';
  failUnlessOptional(OPTION.structuredReply, structured);
  return 'simple';
}

function* chooseContext(exportName: string): Handshake<number | null> {
  const request = encodeMetaContextRequest(exportName, [ALLOCATION_CONTEXT]);
  const answer = yield* ask(OPTION.setMetaContext, request);
  // What is wrong with the export itself GO says again, with more to say.
  if (answer.final !== OPTION_REPLY.ack) return null;
  let id: number | null = null;
  for (const { type, data } of answer.replies) {
    if (type !== OPTION_REPLY.metaContext) continue;
    const context = decodeMetaContext(data);
    if (context.name === ALLOCATION_CONTEXT) id = context.id;
  }
  return id;
}

type Answer = {
  /** Type of the last reply: ack, or an error. */
  final: number;
  /** What the server says about an error; '' where it says nothing. */
  message: string;
  replies: { type: number; data: Buffer }[];
};

/** Sends an option and takes its replies up to the final one. */
function* ask(option: number, data: Buffer, repliesMax = OPTION_REPLIES_MAX): Handshake<Answer> {
  yield { kind: 'send', bytes: encodeOption(option, data) };
  const replies: Answer['replies'] = [];
  for (;;) {
    const header = decodeOptionReplyHeader(yield* receive(OPTION_REPLY_HEADER_BYTES));
    if (header.option !== option) {
      throw protocolError('a reply to an option that was not sent', {
        option: nameOf(OPTION, header.option),
        expected: nameOf(OPTION, option),
      });
    }
    if (header.dataBytes > OPTION_REPLY_BYTES_MAX) {
      throw protocolError('the reply to an option is too long', { dataBytes: header.dataBytes });
    }
    const payload = header.dataBytes === 0 ? Buffer.alloc(0) : yield* receive(header.dataBytes);
    if (header.type === OPTION_REPLY.ack) return { final: header.type, message: '', replies };
    if (isErrorReply(header.type)) {
      return { final: header.type, message: messageOf(payload), replies };
    }
    if (replies.length >= repliesMax) throw protocolError('too many replies to an option', { repliesMax });
    replies.push({ type: header.type, data: payload });
  }
}

function* receive(lengthBytes: number): Handshake<Buffer> {
  return yield { kind: 'receive', lengthBytes };
}

/** The message of an error is for people; one that cannot be read is none. */
function messageOf(data: Buffer): string {
  try {
    return decodeString(data);
  } catch {
    return '';
  }
}

/** An option that a server need not know may be refused, but not because the export is out of reach. */
function failUnlessOptional(option: number, answer: Answer): void {
  const { final } = answer;
  if (final === OPTION_REPLY.errorTlsRequired || final === OPTION_REPLY.errorShutdown) {
    throw refusal(option, answer);
  }
}

function refusal(option: number, answer: Answer): GodwitError {
  const reply = nameOf(OPTION_REPLY, answer.final);
  const values: ErrorValues = { option: nameOf(OPTION, option), reply, serverMessage: answer.message };
  const said = answer.message === '' ? '' : `: ${answer.message}`;
  switch (answer.final) {
    case OPTION_REPLY.errorTlsRequired:
      return new GodwitError('NBD_TLS_REQUIRED', `the NBD server takes TLS only${said}`, {
        values,
        retry: 'never',
        nextAction: 'Say nbds: instead of nbd:, with the certificates that the server asks for.',
      });
    case OPTION_REPLY.errorUnknown:
      return new GodwitError('NBD_EXPORT_UNKNOWN', `the NBD server has no such export${said}`, {
        values,
        retry: 'never',
        nextAction: 'List what it has, for example with nbdinfo --list.',
      });
    case OPTION_REPLY.errorShutdown:
      return new GodwitError('NBD_CONNECTION_LOST', `the NBD server is shutting down${said}`, {
        values,
        nextAction: 'The connection is made anew by itself when the server is back.',
      });
    default:
      return new GodwitError('NBD_REFUSED', `the NBD server refused (${reply})${said}`, {
        values,
        retry: 'never',
        nextAction: 'Look at the log of the server for its reason.',
      });
  }
}

function takeInfo(export_: RemoteExport, data: Buffer): void {
  const info = decodeInfo(data);
  switch (info?.type) {
    case 'export':
      export_.lengthBytes = info.lengthBytes;
      export_.transmissionFlags = info.transmissionFlags;
      break;
    case 'name':
      export_.name = info.name;
      break;
    case 'description':
      export_.description = info.description;
      break;
    case 'blockSize':
      export_.minimumBlockBytes = info.minimumBytes;
      export_.preferredBlockBytes = info.preferredBytes;
      export_.maximumBlockBytes = info.maximumBytes;
      break;
    default:
  }
}

/** Throws `NBD_PROTOCOL` for what the document forbids. */
function checkExport(export_: RemoteExport): void {
  const { lengthBytes, minimumBlockBytes: minimum, preferredBlockBytes: preferred } = export_;
  const maximum = export_.maximumBlockBytes;
  if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 0) {
    throw protocolError('the server does not tell the length of the export', { lengthBytes });
  }
  const powerOfTwo = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));
  if (
    !powerOfTwo(minimum) ||
    minimum > MINIMUM_BLOCK_BYTES_MAX ||
    !powerOfTwo(preferred) ||
    preferred < minimum ||
    maximum < minimum ||
    (maximum !== 0xffffffff && maximum % minimum !== 0)
  ) {
    throw protocolError('the block sizes of the export cannot be', { minimum, preferred, maximum });
  }
}

/**
 * Drives a handshake with the bytes of a connection. `push` answers what is to be done now; bytes that came
 * after the end of the handshake, or after its switch to TLS, are in `rest`.
 */
export class HandshakeDriver<Result> {
  readonly #handshake: Handshake<Result>;
  readonly #send: (bytes: Buffer) => void;
  #need: HandshakeStep | null = null;
  #chunks: Buffer[] = [];
  #bufferedBytes = 0;
  #result: { value: Result } | null = null;

  constructor(handshake: Handshake<Result>, send: (bytes: Buffer) => void) {
    this.#handshake = handshake;
    this.#send = send;
    this.#advance(Buffer.alloc(0));
  }

  /** What it waits for. */
  get waitsFor(): 'bytes' | 'secure' | 'nothing' {
    if (this.#result !== null) return 'nothing';
    return this.#need?.kind === 'secure' ? 'secure' : 'bytes';
  }

  /** There when it waits for nothing more. */
  get result(): Result {
    return this.#result!.value;
  }

  /** Bytes that came and were not asked for. */
  get restBytes(): number {
    return this.#bufferedBytes;
  }

  /** Throws the errors of the handshake; it is of no more use afterwards. */
  push(bytes: Uint8Array): void {
    // A copy: the buffer that bytes are read into is used again.
    this.#chunks.push(Buffer.from(bytes));
    this.#bufferedBytes += bytes.length;
    while (this.#need?.kind === 'receive' && this.#bufferedBytes >= this.#need.lengthBytes) {
      const all = this.#chunks.length === 1 ? this.#chunks[0]! : Buffer.concat(this.#chunks);
      const { lengthBytes } = this.#need;
      this.#bufferedBytes -= lengthBytes;
      this.#chunks = this.#bufferedBytes === 0 ? [] : [all.subarray(lengthBytes)];
      this.#advance(all.subarray(0, lengthBytes));
    }
  }

  /** The connection is inside TLS now. */
  secured(): void {
    this.#advance(Buffer.alloc(0));
  }

  #advance(answer: Buffer): void {
    let step = this.#handshake.next(answer);
    while (step.done !== true && step.value.kind === 'send') {
      this.#send(step.value.bytes);
      step = this.#handshake.next(Buffer.alloc(0));
    }
    if (step.done === true) {
      this.#result = { value: step.value };
      this.#need = null;
    } else this.#need = step.value;
  }
}
