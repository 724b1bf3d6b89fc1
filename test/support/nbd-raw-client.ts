import type { Duplex } from 'node:stream';
import {
  CHUNK,
  CLIENT_FLAG,
  COMMAND,
  decodeChunkHeader,
  decodeGreeting,
  decodeOptionReplyHeader,
  decodeSimpleReply,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  GREETING_BYTES,
  OPTION,
  OPTION_REPLY,
  OPTION_REPLY_HEADER_BYTES,
  type Request,
  readUint64,
  SIMPLE_REPLY_MAGIC,
} from '../../src/nbd/protocol.ts';

export type RawReply = { cookie: number; chunks: { type: number; payload: Buffer }[]; error: number };
export type RawMode = 'simple' | 'structured' | 'extended';

/**
 * The client's side of the protocol, message by message, for tests that have to send what no real client
 * would. Works on any byte stream.
 */
export class RawNbdClient {
  mode: RawMode = 'simple';
  #stream: Duplex;
  /** What came and was not taken yet: many pieces are put together once. */
  #pieces: Buffer[] = [];
  #waitingBytes = 0;
  #wake: (() => void) | null = null;
  #ended = false;
  #nextCookie = 1;
  /** Lengths of reads under way: simple replies do not tell. */
  readonly #readLengths = new Map<number, number>();

  constructor(stream: Duplex) {
    this.#stream = stream;
    this.#listen(stream);
  }

  /** Goes on over another stream (TLS). */
  switchTo(stream: Duplex): void {
    this.#stream = stream;
    this.#listen(stream);
  }

  #listen(stream: Duplex): void {
    stream.on('data', (bytes: Buffer) => {
      this.#pieces.push(bytes);
      this.#waitingBytes += bytes.length;
      this.#wake?.();
    });
    stream.on('error', () => {});
    stream.on('close', () => {
      if (this.#stream !== stream) return;
      this.#ended = true;
      this.#wake?.();
    });
  }

  write(bytes: Uint8Array): void {
    this.#stream.write(bytes);
  }

  /** Ends the connection without a word. */
  destroy(): void {
    this.#stream.destroy();
  }

  /** Takes nothing from the kernel until `resume`. */
  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  /** Resolves when the server has closed the connection; false when bytes came instead. */
  async closed(): Promise<boolean> {
    while (!this.#ended && this.#waitingBytes === 0) await this.#more();
    return this.#ended;
  }

  async take(count: number): Promise<Buffer> {
    while (this.#waitingBytes < count) {
      if (this.#ended) throw new Error('connection closed');
      await this.#more();
    }
    const all = this.#pieces.length === 1 ? this.#pieces[0]! : Buffer.concat(this.#pieces);
    const bytes = all.subarray(0, count);
    this.#pieces = [all.subarray(count)];
    this.#waitingBytes -= count;
    return bytes;
  }

  #more(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  async greet(flags = CLIENT_FLAG.fixedNewstyle | CLIENT_FLAG.noZeroes): Promise<void> {
    decodeGreeting(await this.take(GREETING_BYTES));
    this.write(encodeClientFlags(flags));
  }

  /** All replies to an option, the last one being final. */
  async option(option: number, data?: Uint8Array): Promise<{ type: number; data: Buffer }[]> {
    this.write(encodeOption(option, data));
    const replies: { type: number; data: Buffer }[] = [];
    for (;;) {
      const header = decodeOptionReplyHeader(await this.take(OPTION_REPLY_HEADER_BYTES));
      if (header.option !== option) throw new Error(`reply to option ${header.option}`);
      replies.push({ type: header.type, data: await this.take(header.dataBytes) });
      const more: number[] = [OPTION_REPLY.server, OPTION_REPLY.info, OPTION_REPLY.metaContext];
      if (!more.includes(header.type)) return replies;
    }
  }

  /** Greeting to transmission. */
  async begin(options: { mode?: RawMode; contexts?: string[]; exportName?: string } = {}): Promise<void> {
    const { mode = 'simple', contexts = [], exportName = '' } = options;
    await this.greet();
    this.mode = mode;
    if (mode !== 'simple') {
      await this.option(mode === 'extended' ? OPTION.extendedHeaders : OPTION.structuredReply);
    }
    if (contexts.length > 0) {
      await this.option(OPTION.setMetaContext, encodeMetaContextRequest(exportName, contexts));
    }
    const replies = await this.option(OPTION.go, encodeInfoRequest(exportName, []));
    if (replies.at(-1)!.type !== OPTION_REPLY.ack) throw new Error('the server refuses to go');
  }

  send(request: Partial<Request> & { type: number }, payload: Uint8Array = Buffer.alloc(0)): number {
    const cookie = this.#nextCookie++;
    const extended = this.mode === 'extended';
    const header = Buffer.alloc(extended ? 32 : 28);
    const whole = {
      flags: 0,
      cookieHigh: 0xfeedface,
      cookieLow: cookie,
      offsetBytes: 0,
      lengthBytes: payload.length,
      ...request,
    };
    encodeRequest(header, 0, extended, whole);
    if (request.type === COMMAND.read) this.#readLengths.set(cookie, whole.lengthBytes);
    this.write(header);
    if (payload.length > 0) this.write(payload);
    return cookie;
  }

  /**
   * The next reply; of one in several chunks, all of them (requests whose chunks interleave are not for this
   * client).
   */
  async reply(): Promise<RawReply> {
    const reply: RawReply = { cookie: 0, chunks: [], error: 0 };
    for (;;) {
      const extended = this.mode === 'extended';
      const first = await this.take(4);
      if (first.readUInt32BE() === SIMPLE_REPLY_MAGIC) {
        if (extended) throw new Error('a simple reply with extended headers');
        const simple = decodeSimpleReply(Buffer.concat([first, await this.take(12)]), 0);
        const length = this.mode === 'simple' ? (this.#readLengths.get(simple.cookieLow) ?? 0) : 0;
        reply.cookie = simple.cookieLow;
        reply.error = simple.error;
        if (length > 0 && simple.error === 0) {
          reply.chunks.push({ type: CHUNK.offsetData, payload: await this.take(length) });
        }
        return reply;
      }
      const chunk = decodeChunkHeader(
        Buffer.concat([first, await this.take(extended ? 28 : 16)]),
        0,
        extended,
      );
      const payload = await this.take(chunk.payloadBytes);
      if (chunk.cookieHigh !== 0xfeedface) throw new Error('the cookie changed');
      reply.cookie = chunk.cookieLow;
      reply.chunks.push({ type: chunk.type, payload });
      if (chunk.type === CHUNK.error) reply.error = payload.readUInt32BE();
      if ((chunk.flags & 1) !== 0) return reply;
    }
  }

  async call(request: Partial<Request> & { type: number }, payload?: Uint8Array): Promise<RawReply> {
    const cookie = this.send(request, payload);
    const reply = await this.reply();
    if (reply.cookie !== cookie) throw new Error(`reply to ${reply.cookie}, not to ${cookie}`);
    return reply;
  }

  /** A read put together again from whatever chunks it came in. */
  async read(
    offsetBytes: number,
    lengthBytes: number,
    flags = 0,
  ): Promise<{ data: Buffer; types: number[] }> {
    const reply = await this.call({ type: COMMAND.read, offsetBytes, lengthBytes, flags });
    if (reply.error !== 0) throw new Error(`read failed: ${reply.error}`);
    const types = reply.chunks.map((chunk) => chunk.type);
    if (this.mode === 'simple') return { data: reply.chunks[0]!.payload, types };
    const data = Buffer.alloc(lengthBytes, 0xee);
    for (const { type, payload } of reply.chunks) {
      if (type === CHUNK.none) continue;
      const at = readUint64(payload, 0) - offsetBytes;
      if (type === CHUNK.offsetData) payload.copy(data, at, 8);
      else data.fill(0, at, at + payload.readUInt32BE(8));
    }
    return { data, types };
  }
}
