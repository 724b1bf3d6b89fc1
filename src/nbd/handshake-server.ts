import { isGodwitError } from '../base/errors.ts';
import { protocolError } from './errors.ts';
import type { NbdExport, ReplyMode } from './export.ts';
import type { ServerLimits } from './limits.ts';
import {
  CLIENT_FLAG,
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOptionHeader,
  decodeString,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfo,
  encodeListed,
  encodeMetaContext,
  encodeOptionReply,
  HANDSHAKE_FLAG,
  INFO,
  OPTION,
  OPTION_HEADER_BYTES,
  OPTION_REPLY,
} from './protocol.ts';

/** What came out of a handshake. */
export type Agreement = {
  export: NbdExport;
  mode: ReplyMode;
  /**
   * Of the metadata contexts of the export those that the client selected, as places in `export.contexts`.
   */
  contextIds: number[];
};

export type HandshakeHost = {
  exports: () => NbdExport[];
  /** The server drains: options are refused, aborts are answered. */
  isClosing: () => boolean;
  /** 'none': there is no TLS. 'required': nothing but STARTTLS and ABORT before it. */
  tls: 'none' | 'optional' | 'required';
};

export type HandshakeStep =
  | { next: 'more' }
  /**
   * The answer is to be sent, then TLS begins; bytes that came after the option were not encrypted and end
   * the connection.
   */
  | { next: 'tls' }
  | { next: 'transmission'; agreement: Agreement }
  /** The answer is to be sent, then the connection ends. */
  | { next: 'end'; reason: string };

/**
 * The server's side of the fixed newstyle handshake. Bytes in, replies and the next step out; no socket, no
 * clock. Options are answered at once, so that one is under way at a time.
 */
export class ServerHandshake {
  readonly #host: HandshakeHost;
  readonly #limits: ServerLimits;
  readonly #reply: (bytes: Buffer) => void;
  readonly #takesMore: () => boolean;
  #state: 'flags' | 'option' | 'data' | 'skip' | 'done' = 'flags';
  #secure = false;
  #fixed = false;
  #noZeroes = false;
  #mode: ReplyMode = 'simple';
  /** What SET_META_CONTEXT selected, and of which export. */
  #selected: { export: NbdExport; contextIds: number[] } | null = null;
  #option = 0;
  #options = 0;
  #buffer: Buffer;
  #count = 0;
  #needed = CLIENT_FLAGS_BYTES;
  #skipBytes = 0;

  /** `takesMore`: false stops `push` before the next option. Default: always true. */
  constructor(options: {
    host: HandshakeHost;
    limits: ServerLimits;
    reply: (bytes: Buffer) => void;
    takesMore?: () => boolean;
  }) {
    this.#host = options.host;
    this.#limits = options.limits;
    this.#reply = options.reply;
    this.#takesMore = options.takesMore ?? (() => true);
    this.#buffer = Buffer.alloc(OPTION_HEADER_BYTES);
  }

  greet(): void {
    this.#reply(encodeGreeting(HANDSHAKE_FLAG.fixedNewstyle | HANDSHAKE_FLAG.noZeroes));
  }

  /** TLS has begun: what was agreed on before it is void. */
  secured(): void {
    this.#secure = true;
    this.#mode = 'simple';
    this.#selected = null;
  }

  /**
   * Takes bytes from `at` on. Stops after a step that is not 'more', and before an option that is not taken
   * now, and says where. Throws `NBD_PROTOCOL` for a client that does not keep to the protocol.
   */
  push(bytes: Buffer, at: number): { at: number; step: HandshakeStep } {
    for (;;) {
      if (this.#state === 'done') throw protocolError('bytes after the end of the handshake');
      if (this.#state === 'skip') {
        const count = Math.min(this.#skipBytes, bytes.length - at);
        this.#skipBytes -= count;
        at += count;
        if (this.#skipBytes > 0) return { at, step: { next: 'more' } };
        this.#answer(OPTION_REPLY.errorTooBig, 'the option is longer than any that is taken');
        this.#expectOption();
        continue;
      }
      if (this.#state === 'option' && this.#count === 0 && at < bytes.length && !this.#takesMore()) {
        return { at, step: { next: 'more' } };
      }
      const count = Math.min(this.#needed - this.#count, bytes.length - at);
      bytes.copy(this.#buffer, this.#count, at, at + count);
      this.#count += count;
      at += count;
      if (this.#count < this.#needed) return { at, step: { next: 'more' } };
      const step = this.#whole();
      if (step.next !== 'more') {
        if (step.next !== 'tls') this.#state = 'done';
        return { at, step };
      }
    }
  }

  /** The buffer has what was needed. */
  #whole(): HandshakeStep {
    switch (this.#state) {
      case 'flags': {
        const flags = decodeClientFlags(this.#buffer);
        if ((flags & ~(CLIENT_FLAG.fixedNewstyle | CLIENT_FLAG.noZeroes)) !== 0) {
          throw protocolError('the client sets flags that are not known', { flags });
        }
        this.#fixed = (flags & CLIENT_FLAG.fixedNewstyle) !== 0;
        this.#noZeroes = (flags & CLIENT_FLAG.noZeroes) !== 0;
        this.#expectOption();
        return { next: 'more' };
      }
      case 'option': {
        const { option, dataBytes } = decodeOptionHeader(this.#buffer);
        this.#options += 1;
        if (this.#options > this.#limits.optionsMax) throw protocolError('the handshake has no end');
        this.#option = option;
        if (dataBytes > this.#limits.optionBytesMax) {
          if (option === OPTION.exportName) throw protocolError('an export name is too long', { dataBytes });
          this.#skipBytes = dataBytes;
          this.#state = 'skip';
          return { next: 'more' };
        }
        if (dataBytes === 0) return this.#perform(Buffer.alloc(0));
        this.#state = 'data';
        this.#buffer = Buffer.allocUnsafe(dataBytes);
        this.#count = 0;
        this.#needed = dataBytes;
        return { next: 'more' };
      }
      default:
        return this.#perform(this.#buffer);
    }
  }

  #expectOption(): void {
    this.#state = 'option';
    this.#buffer = Buffer.alloc(OPTION_HEADER_BYTES);
    this.#count = 0;
    this.#needed = OPTION_HEADER_BYTES;
  }

  #perform(data: Buffer): HandshakeStep {
    const option = this.#option;
    this.#expectOption();
    if (!this.#fixed && option !== OPTION.exportName) {
      // A client of the unfixed newstyle does not look for replies.
      throw protocolError('an option other than the export name needs the fixed newstyle', { option });
    }
    if (option === OPTION.exportName) return this.#exportName(data);
    if (option === OPTION.abort) {
      this.#answer(OPTION_REPLY.ack);
      return { next: 'end', reason: 'the client aborted the handshake' };
    }
    if (this.#host.isClosing()) {
      this.#answer(OPTION_REPLY.errorShutdown, 'the server is being shut down');
      return { next: 'more' };
    }
    if (option !== OPTION.startTls && this.#needsTls()) {
      this.#answer(OPTION_REPLY.errorTlsRequired, 'TLS comes first');
      return { next: 'more' };
    }
    try {
      return this.#known(option, data);
    } catch (error) {
      if (!isGodwitError(error, 'NBD_PROTOCOL')) throw error;
      // The option was cut out by its length, so a mistake inside it does not put us out of step.
      if (option === OPTION.setMetaContext) this.#selected = null;
      this.#answer(OPTION_REPLY.errorInvalid, error.message);
      return { next: 'more' };
    }
  }

  #known(option: number, data: Buffer): HandshakeStep {
    switch (option) {
      case OPTION.list:
        this.#noData(data);
        for (const { name, description } of this.#host.exports()) {
          this.#reply(encodeOptionReply(option, OPTION_REPLY.server, encodeListed(name, description)));
        }
        this.#answer(OPTION_REPLY.ack);
        break;
      case OPTION.startTls:
        this.#noData(data);
        if (this.#host.tls === 'none') this.#answer(OPTION_REPLY.errorPolicy, 'the server has no TLS');
        else if (this.#secure) this.#answer(OPTION_REPLY.errorInvalid, 'TLS has begun already');
        else {
          this.#answer(OPTION_REPLY.ack);
          return { next: 'tls' };
        }
        break;
      case OPTION.info:
      case OPTION.go:
        return this.#infoOrGo(option, data);
      case OPTION.structuredReply:
        this.#noData(data);
        if (this.#mode === 'extended') {
          this.#answer(
            OPTION_REPLY.errorExtendedHeadersRequired,
            'extended headers include structured replies',
          );
        } else if (this.#mode === 'structured') {
          this.#answer(OPTION_REPLY.errorInvalid, 'structured replies are agreed on already');
        } else {
          this.#mode = 'structured';
          this.#answer(OPTION_REPLY.ack);
        }
        break;
      case OPTION.extendedHeaders:
        this.#noData(data);
        if (this.#mode === 'extended') {
          this.#answer(OPTION_REPLY.errorInvalid, 'extended headers are agreed on already');
        } else {
          this.#mode = 'extended';
          this.#answer(OPTION_REPLY.ack);
        }
        break;
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        this.#metaContext(option, data);
        break;
      default:
        this.#answer(OPTION_REPLY.errorUnsupported, 'the option is not known');
    }
    return { next: 'more' };
  }

  /** No error can be told here: a client that cannot be served is dropped. */
  #exportName(data: Buffer): HandshakeStep {
    if (this.#needsTls()) return { next: 'end', reason: 'the client asked for an export without TLS' };
    const found = this.#host.isClosing() ? null : this.#find(decodeString(data));
    if (found === null) return { next: 'end', reason: 'the client asked for an export that is not there' };
    const reply = {
      lengthBytes: found.device.lengthBytes,
      transmissionFlags: found.transmissionFlags(this.#mode),
    };
    this.#reply(encodeExportNameReply(reply, !this.#noZeroes));
    return { next: 'transmission', agreement: this.#agreement(found) };
  }

  #infoOrGo(option: number, data: Buffer): HandshakeStep {
    const request = decodeInfoRequest(data);
    const found = this.#find(request.exportName);
    if (found === null) {
      this.#answer(OPTION_REPLY.errorUnknown, 'there is no such export');
      return { next: 'more' };
    }
    const info = (what: Parameters<typeof encodeInfo>[0]) =>
      this.#reply(encodeOptionReply(option, OPTION_REPLY.info, encodeInfo(what)));
    info({
      type: 'export',
      lengthBytes: found.device.lengthBytes,
      transmissionFlags: found.transmissionFlags(this.#mode),
    });
    if (request.types.includes(INFO.name)) info({ type: 'name', name: found.name });
    if (request.types.includes(INFO.description) && found.description !== '') {
      info({ type: 'description', description: found.description });
    }
    // Told to those who did not ask too: requests are held to it.
    info({
      type: 'blockSize',
      minimumBytes: found.device.blockBytes,
      preferredBytes: Math.max(4096, found.device.blockBytes),
      maximumBytes: this.#limits.requestBytesMax,
    });
    this.#answer(OPTION_REPLY.ack);
    return option === OPTION.info
      ? { next: 'more' }
      : { next: 'transmission', agreement: this.#agreement(found) };
  }

  #metaContext(option: number, data: Buffer): void {
    const setting = option === OPTION.setMetaContext;
    if (setting) this.#selected = null;
    if (this.#mode === 'simple') throw protocolError('metadata contexts need structured replies');
    const { exportName, queries } = decodeMetaContextRequest(data);
    const found = this.#find(exportName);
    if (found === null) {
      this.#answer(OPTION_REPLY.errorUnknown, 'there is no such export');
      return;
    }
    for (const query of queries) {
      if (!query.includes(':')) throw protocolError('a query for metadata contexts has no namespace');
    }
    const matches = (context: string) =>
      queries.some((query) => query === context || (!setting && query === `${context.split(':')[0]}:`));
    const contextIds: number[] = [];
    for (const [id, name] of found.contexts.entries()) {
      if (!matches(name) && (setting || queries.length > 0)) continue;
      contextIds.push(id);
      const context = encodeMetaContext({ id: setting ? id : 0, name });
      this.#reply(encodeOptionReply(option, OPTION_REPLY.metaContext, context));
    }
    if (setting) this.#selected = { export: found, contextIds };
    this.#answer(OPTION_REPLY.ack);
  }

  #agreement(found: NbdExport): Agreement {
    const contextIds = this.#selected?.export === found ? this.#selected.contextIds : [];
    return { export: found, mode: this.#mode, contextIds };
  }

  #find(name: string): NbdExport | null {
    const exports = this.#host.exports();
    const named = exports.find((candidate) => candidate.name === name);
    if (named !== undefined) return named;
    return name === '' && exports.length === 1 ? exports[0]! : null;
  }

  #needsTls(): boolean {
    return this.#host.tls === 'required' && !this.#secure;
  }

  #noData(data: Buffer): void {
    if (data.length > 0) throw protocolError('the option has no data');
  }

  #answer(type: number, message = ''): void {
    this.#reply(encodeOptionReply(this.#option, type, Buffer.from(message)));
  }
}
