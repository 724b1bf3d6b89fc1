import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { ChunkSink } from './chunk-writer.ts';

/**
 * Of what is given to a TLS socket so much is with it at a time. It encrypts all that it gets at once,
 * whether the peer takes it or not, and what is encrypted is on nobody's account. Eight records of TLS (RFC
 * 8446 section 5.1) are what Node hands to the kernel in one turn, so less would cost turns and more only
 * memory.
 */
export const TLS_AHEAD_BYTES_MAX = 128 * 1024;

/** Where a connection sends to. */
export type SocketSink = {
  /** Sends batches of chunks in order. A socket that is gone takes nothing and says nothing. */
  send: ChunkSink;
  /** Ends our half of the connection once all that was given has been taken. Nothing is sent after it. */
  end: () => void;
};

export function socketSink(socket: Socket): SocketSink {
  return socket instanceof TLSSocket ? new PacedSink(socket, TLS_AHEAD_BYTES_MAX) : new DirectSink(socket);
}

/** Each batch with one system call, from where its bytes lie. */
class DirectSink implements SocketSink {
  readonly #socket: Socket;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  readonly send: ChunkSink = (chunks, done) => writeAll(this.#socket, chunks, done);

  end(): void {
    this.#socket.end();
  }
}

/**
 * Never more than `aheadBytesMax` at a time: the rest stays with whoever made it until the socket has got rid
 * of that.
 */
export class PacedSink implements SocketSink {
  readonly #socket: Socket;
  readonly #aheadBytesMax: number;
  /**
   * Batches that the socket has not been given whole; of the first of them `#at` bytes of chunk `#index` are
   * through.
   */
  #batches: { chunks: Uint8Array[]; done: () => void }[] = [];
  #index = 0;
  #at = 0;
  #writing = false;
  #ended = false;

  constructor(socket: Socket, aheadBytesMax: number) {
    this.#socket = socket;
    this.#aheadBytesMax = aheadBytesMax;
  }

  readonly send: ChunkSink = (chunks, done) => {
    this.#batches.push({ chunks, done });
    if (!this.#writing) this.#next();
  };

  end(): void {
    this.#ended = true;
    if (!this.#writing) this.#socket.end();
  }

  #next(): void {
    const portion: Uint8Array[] = [];
    const dones: (() => void)[] = [];
    let leftBytes = this.#aheadBytesMax;
    while (leftBytes > 0) {
      const batch = this.#batches[0];
      if (batch === undefined) break;
      const chunk = batch.chunks[this.#index]!;
      const end = Math.min(chunk.length, this.#at + leftBytes);
      portion.push(this.#at === 0 && end === chunk.length ? chunk : chunk.subarray(this.#at, end));
      leftBytes -= end - this.#at;
      this.#at = end;
      if (end < chunk.length) break;
      this.#at = 0;
      this.#index += 1;
      if (this.#index < batch.chunks.length) continue;
      this.#index = 0;
      this.#batches.shift();
      dones.push(batch.done);
    }
    if (portion.length === 0) {
      if (this.#ended) this.#socket.end();
      return;
    }
    this.#writing = true;
    writeAll(this.#socket, portion, () => {
      this.#writing = false;
      for (const done of dones) done();
      // Unless one of them sent more.
      if (!this.#writing) this.#next();
    });
  }
}

function writeAll(socket: Socket, chunks: readonly Uint8Array[], done: () => void): void {
  if (socket.destroyed || socket.writableEnded) return;
  const last = chunks.length - 1;
  const onWritten = (error?: Error | null) => {
    if (error === undefined || error === null) done();
  };
  if (last === 0) {
    socket.write(chunks[0]!, onWritten);
    return;
  }
  socket.cork();
  for (let index = 0; index < last; index += 1) socket.write(chunks[index]!);
  socket.write(chunks[last]!, onWritten);
  socket.uncork();
}
