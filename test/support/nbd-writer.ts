import { setTimeout as sleep } from 'node:timers/promises';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { BLOCK_BYTES, blockOf, checkBlocks, collectorAt, PAUSE_MS, SLOTS } from './writer.ts';

/**
 * What writer.ts does, on a disk that the machine has as an NBD socket: `node nbd-writer.ts SOCKET PORT
 * NAME`.
 *
 *     block 0         filled with the highest number
 *     block 1 + slot  of number n at slot n mod SLOTS, filled with n
 */
async function main(path: string, port: number, name: string): Promise<void> {
  const openedAtNs = process.hrtime.bigint();
  const disk = await NbdClient.connect({
    address: { path },
    exportName: 'disk',
    readOnly: false,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  const faults: string[] = [];
  const content = Buffer.alloc((1 + SLOTS) * BLOCK_BYTES);
  await disk.read(0, content);
  const last = content.readUInt32LE();
  if (!content.subarray(0, BLOCK_BYTES).equals(blockOf(last))) faults.push('block 0 holds several numbers');
  checkBlocks(content.subarray(BLOCK_BYTES), last, faults);

  const tell = await collectorAt(port);
  const incarnation = `${process.hrtime.bigint()}`;
  await tell({ kind: 'hello', name, incarnation, openedAtNs: `${openedAtNs}`, last, faults });
  for (let number = last + 1; ; number++) {
    await disk.write((1 + (number % SLOTS)) * BLOCK_BYTES, blockOf(number));
    await disk.flush();
    await disk.write(0, blockOf(number), { fua: true });
    await tell({ kind: 'ack', number, durableAtNs: `${process.hrtime.bigint()}` });
    await sleep(PAUSE_MS);
  }
}

const [path, port, name] = process.argv.slice(2);
await main(path!, Number(port), name!);
