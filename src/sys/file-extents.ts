import { constants } from 'node:os';
import { callError, lastErrno, libc } from './libc.ts';

const lseek = libc.func('lseek', 'int64_t', ['int', 'int64_t', 'int']);

/** include/uapi/linux/fs.h */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

export type FileExtent = { offsetBytes: number; lengthBytes: number; kind: 'data' | 'hole' };

/**
 * The data and the holes of a range of an open file, in order, without gaps, lazily: one lseek(2) an extent.
 * What lies behind the end of the file is a hole. Borders are where the filesystem has them (commonly
 * multiples of its block). A filesystem that knows no holes gives one data extent. Moves the file offset of
 * the descriptor.
 */
export function* fileExtents(fd: number, offsetBytes: number, lengthBytes: number): Generator<FileExtent> {
  const endBytes = offsetBytes + lengthBytes;
  for (let at = offsetBytes; at < endBytes; ) {
    const dataAt = Math.min(endBytes, seek(fd, at, SEEK_DATA, endBytes));
    if (dataAt > at) yield { offsetBytes: at, lengthBytes: dataAt - at, kind: 'hole' };
    if (dataAt >= endBytes) return;
    const holeAt = Math.min(endBytes, seek(fd, dataAt, SEEK_HOLE, endBytes));
    // A file that is changed meanwhile may lose the data between the two calls; one byte of it keeps the loop
    // going.
    at = Math.max(holeAt, dataAt + 1);
    yield { offsetBytes: dataAt, lengthBytes: at - dataAt, kind: 'data' };
  }
}

/** ENXIO is the kernel's word for `none from here to the end of the file`. */
function seek(fd: number, offsetBytes: number, whence: number, whenNoneBytes: number): number {
  const found = Number(lseek(fd, offsetBytes, whence));
  if (found >= 0) return found;
  const errno = lastErrno();
  if (errno === constants.errno.ENXIO) return whenNoneBytes;
  throw callError('lseek', { offsetBytes, whence }, errno);
}
