import { constants, fsyncSync, openSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { seededRandom } from '../../src/base/random.ts';
import { addressOf } from '../../src/sys/raw-io.ts';

const BLOCK_BYTES = 4096;
const BLOCKS_MAX = 8;
/** Every so many writes one is made durable. */
const FLUSH_EVERY = 16;
/** A hundred writes a second, so that the writer is no load of its own. */
const PAUSE_MS = 10;

/** A range of whole blocks, in bytes. */
export type BlockRange = { offsetBytes: number; lengthBytes: number };

/**
 * The endless list of writes that belongs to a seed: whole blocks, anywhere in the range. The bytes are good
 * until the next one.
 */
export function* blockWrites(
  seed: number,
  range: BlockRange,
): Generator<{ offsetBytes: number; bytes: Uint8Array }> {
  const random = seededRandom(seed);
  const memory = new Uint8Array((BLOCKS_MAX + 1) * BLOCK_BYTES);
  // O_DIRECT wants memory at a multiple of the sector.
  const buffer = memory.subarray(BLOCK_BYTES - (addressOf(memory) % BLOCK_BYTES));
  const rangeBlocks = range.lengthBytes / BLOCK_BYTES;
  for (let number = 1; ; number++) {
    const blocks = 1 + random.below(BLOCKS_MAX);
    const bytes = buffer.subarray(0, blocks * BLOCK_BYTES);
    new Uint32Array(buffer.buffer, buffer.byteOffset, bytes.length / 4).fill(random.below(2 ** 32));
    bytes[0] = number;
    yield {
      offsetBytes: range.offsetBytes + random.below(rangeBlocks - blocks + 1) * BLOCK_BYTES,
      bytes,
    };
  }
}

/**
 * A process of its own: writes that list to a device past the page cache, tells the number of each on
 * standard output, until standard input ends. An I/O error ends it.
 */
function main(path: string, seed: number, range: BlockRange): void {
  const file = openSync(path, constants.O_WRONLY | constants.O_DIRECT);
  const writes = blockWrites(seed, range);
  let ended = false;
  process.stdin.on('end', () => {
    ended = true;
  });
  process.stdin.resume();
  const next = (number: number) => {
    if (ended) {
      fsyncSync(file);
      return;
    }
    const { offsetBytes, bytes } = writes.next().value!;
    const written = writeSync(file, bytes, 0, bytes.length, offsetBytes);
    if (written !== bytes.length) throw new Error(`short write: ${written} of ${bytes.length}`);
    if (number % FLUSH_EVERY === 0) fsyncSync(file);
    process.stdout.write(`${number}\n`);
    setTimeout(next, PAUSE_MS, number + 1);
  };
  next(1);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [path, seed, offsetBytes, lengthBytes] = process.argv.slice(2);
  main(path!, Number(seed), { offsetBytes: Number(offsetBytes), lengthBytes: Number(lengthBytes) });
}
