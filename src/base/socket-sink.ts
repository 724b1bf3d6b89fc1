import type { Socket } from 'node:net';
import type { ChunkSink } from './chunk-writer.ts';

/** Writes each batch of chunks with one system call. A socket that is gone takes nothing and says nothing. */
export function socketSink(socket: Socket): ChunkSink {
  return (chunks, done) => {
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
  };
}
