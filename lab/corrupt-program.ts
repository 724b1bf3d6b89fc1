import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileExtents } from '../src/sys/file-extents.ts';

/**
 * `node lab/corrupt-program.ts DATA-FILE LENGTH-BYTES MARK BLOCKS`: waits until so many blocks of a volume
 * that hold the mark have come, and writes something else into them, past everybody who has the volume open.
 * Prints at which bytes the first and the last one are.
 */
const [path, lengthText, mark, blocksText] = process.argv.slice(2) as [string, string, string, string];
const BLOCK_BYTES = 4096;
const READ_BYTES = 2 ** 20;
const lengthBytes = Number(lengthText);
const blocksWanted = Number(blocksText);

const fd = openSync(path, 'r+');
let marked: number[] = [];
for (;;) {
  marked = markedBlocks();
  if (marked.length >= blocksWanted) break;
  await sleep(200);
}
const wrong = Buffer.alloc(BLOCK_BYTES, 'not what was sealed ');
for (const block of marked) writeSync(fd, wrong, 0, BLOCK_BYTES, block * BLOCK_BYTES);
fsyncSync(fd);
closeSync(fd);
console.log(`${marked[0]! * BLOCK_BYTES} ${marked.at(-1)! * BLOCK_BYTES}`);

function markedBlocks(): number[] {
  const found: number[] = [];
  const content = Buffer.alloc(READ_BYTES);
  for (const extent of fileExtents(fd, 0, lengthBytes)) {
    if (extent.kind === 'hole') continue;
    const end = extent.offsetBytes + extent.lengthBytes;
    for (let at = extent.offsetBytes; at < end; at += READ_BYTES) {
      const bytes = readSync(fd, content, 0, Math.min(READ_BYTES, end - at), at);
      for (let offset = 0; offset + BLOCK_BYTES <= bytes; offset += BLOCK_BYTES) {
        if (!content.subarray(offset, offset + BLOCK_BYTES).includes(mark)) continue;
        found.push((at + offset) / BLOCK_BYTES);
        if (found.length === blocksWanted) return found;
      }
    }
  }
  return found;
}
