import { createHash } from 'node:crypto';
import { libc, type NativeFunction } from './libc.ts';
import { addressOf } from './raw-io.ts';

export const SHA256_BYTES = 32;

/**
 * Up to here a digest costs less than handing it to another thread does (measured: 19 us for 16 KiB, 21 us
 * for the hand-over).
 */
const SYNCHRONOUS_BYTES_MAX = 16 * 1024;

/**
 * Of the thread pool's threads: the others are for the disk, whose reads a guest waits for. One makes more
 * than 1 GiB/s.
 */
const PARALLEL_MAX = 1;

/**
 * OpenSSL's SHA256(3), which the node program exports; null where it does not. node:crypto has no
 * asynchronous digest but that of WebCrypto, which copies its input on the event loop: 0.4 ms for 1 MiB,
 * against 0.06 ms here.
 */
function load(): NativeFunction | null {
  try {
    return libc.func('SHA256', 'uint64_t', ['uint64_t', 'size_t', 'uint64_t']);
  } catch {
    return null;
  }
}

const native = load();
const waiting: (() => void)[] = [];
let running = 0;
/** Inputs whose address native code has: nobody else need keep them. */
const inUse = new Set<Uint8Array>();

/**
 * SHA-256 (FIPS 180-4) of `bytes`, which nobody may change before the promise settles. Large inputs are
 * digested in the thread pool, one after the other.
 */
export async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  if (native === null || bytes.length <= SYNCHRONOUS_BYTES_MAX) {
    return new Uint8Array(createHash('sha256').update(bytes).digest());
  }
  if (running >= PARALLEL_MAX) await new Promise<void>((resolve) => waiting.push(resolve));
  else running++;
  const into = new Uint8Array(SHA256_BYTES);
  inUse.add(bytes);
  try {
    await new Promise<void>((resolve, reject) => {
      native.async(addressOf(bytes), bytes.length, addressOf(into), (error: Error | null) =>
        error ? reject(error) : resolve(),
      );
    });
    return into;
  } finally {
    inUse.delete(bytes);
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}
