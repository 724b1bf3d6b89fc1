import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/**
 * Program of a test machine: `node writer.ts FOLDER [HOST:]PORT NAME`. Writes the numbers 1, 2, 3… to a
 * volume, makes each durable, and only then tells it to the collector (writer-collector.ts) on 127.0.0.1:PORT
 * or HOST:PORT, which answers before the next one is written. When it starts it reads all that is there and
 * says what it found.
 *
 *     FOLDER/log      one line a number, in order
 *     FOLDER/blocks   SLOTS blocks of 4 KiB; the block of number n is at slot n mod SLOTS, filled with n. Each block is written over
 *                     again and again, so a block of an older copy of the volume does not go unnoticed.
 *
 * Times are of CLOCK_MONOTONIC, which all machines of a host share: that is how two writers at the same time
 * would show. With a HOST, the machines are in kernels of their own on one host, and what they share is the
 * time of day.
 */
export const SLOTS = 256;
export const BLOCK_BYTES = 4096;
/**
 * Many writes in each phase of a move, and little of the machine: a volume server with nothing else to do
 * serves hundreds a second.
 */
export const PAUSE_MS = 30;
/** In its environment: another pause, in milliseconds, for many writers on one host. */
export const PAUSE_VARIABLE = 'WRITER_PAUSE_MS';
const READY_FILE = '/run/ready';

export type WriterHello = {
  kind: 'hello';
  name: string;
  incarnation: string;
  /** Before anything of the volume was opened. */
  openedAtNs: string;
  /** Highest number in the log; all before it are there. */
  last: number;
  /** What is wrong with the content of the volume. */
  faults: string[];
};
export type WriterAck = { kind: 'ack'; number: number; durableAtNs: string };

function readAll(fd: number): Buffer {
  const bytes = Buffer.alloc(fstatSync(fd).size);
  for (let offset = 0; offset < bytes.length; ) {
    const count = readSync(fd, bytes, offset, bytes.length - offset, offset);
    if (count === 0) throw new Error('the file became shorter');
    offset += count;
  }
  return bytes;
}

/** Highest number, and the length of all whole lines: a last one without its end was never acknowledged. */
function checkLog(text: string, faults: string[]): { last: number; lengthBytes: number } {
  const lengthBytes = text.lastIndexOf('\n') + 1;
  const lines = text.slice(0, lengthBytes).split('\n').slice(0, -1);
  const wrong = lines.findIndex((line, index) => line !== String(index + 1));
  if (wrong !== -1)
    faults.push(`line ${wrong + 1} of the log is ${JSON.stringify(lines[wrong]?.slice(0, 40))}`);
  return { last: lines.length, lengthBytes };
}

/**
 * The block is written before the line, so that of the number after the last one may be there already, whole
 * or in part.
 */
export function checkBlocks(blocks: Buffer, last: number, faults: string[]): void {
  for (let slot = 0; slot < SLOTS; slot++) {
    const newest = last - ((last - slot + SLOTS) % SLOTS);
    const expected = newest > 0 ? [newest] : [0];
    if ((last + 1) % SLOTS === slot) expected.push(last + 1);
    const block = blocks.subarray(slot * BLOCK_BYTES, (slot + 1) * BLOCK_BYTES);
    for (let offset = 0; offset < block.length; offset += 4) {
      const found = block.readUInt32LE(offset);
      if (expected.includes(found)) continue;
      faults.push(`block ${slot} has ${found} at ${offset}, not ${expected.join(' or ')}`);
      break;
    }
    if (block.length < BLOCK_BYTES && !expected.includes(0)) faults.push(`block ${slot} is missing`);
  }
}

export function blockOf(number: number): Buffer {
  const word = Buffer.alloc(4);
  word.writeUInt32LE(number);
  return Buffer.alloc(BLOCK_BYTES, word);
}

/**
 * Connects to the collector. What is returned tells it something, and resolves when it has heard. Without it
 * there is no going on.
 */
export async function collectorAt(
  port: number,
  host = '127.0.0.1',
): Promise<(message: WriterHello | WriterAck) => Promise<void>> {
  const socket = await dial(host, port);
  socket.on('error', () => process.exit(1));
  socket.on('close', () => process.exit(1));
  const answers = socket[Symbol.asyncIterator]();
  return async (message) => {
    socket.write(`${JSON.stringify(message)}\n`);
    // One byte an answer, and never two questions at a time.
    if ((await answers.next()).done) process.exit(1);
  };
}

async function dial(host: string, port: number): Promise<Socket> {
  for (;;) {
    const socket = connect(port, host);
    const connected = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    if (connected) return socket.setNoDelay(true);
    await sleep(100);
  }
}

async function main(folder: string, place: string, name: string): Promise<void> {
  const [port = '', host] = place.split(':').reverse();
  const nowNs = () => (host === undefined ? process.hrtime.bigint() : BigInt(Date.now()) * 1_000_000n);
  const openedAtNs = nowNs();
  const pauseMs = Number(process.env[PAUSE_VARIABLE] ?? PAUSE_MS);
  const faults: string[] = [];
  const log = openSync(join(folder, 'log'), 'a+');
  const blocks = openSync(join(folder, 'blocks'), 'a');
  closeSync(blocks);
  const blocksFd = openSync(join(folder, 'blocks'), 'r+');
  const text = readAll(log).toString('latin1');
  const { last, lengthBytes } = checkLog(text, faults);
  ftruncateSync(log, lengthBytes);
  checkBlocks(readAll(blocksFd), last, faults);

  const tell = await collectorAt(Number(port), host);
  const incarnation = `${process.hrtime.bigint()}`;
  await tell({ kind: 'hello', name, incarnation, openedAtNs: `${openedAtNs}`, last, faults });
  for (let number = last + 1; ; number++) {
    writeSync(blocksFd, blockOf(number), 0, BLOCK_BYTES, (number % SLOTS) * BLOCK_BYTES);
    fsyncSync(blocksFd);
    writeSync(log, `${number}\n`);
    fsyncSync(log);
    await tell({ kind: 'ack', number, durableAtNs: `${nowNs()}` });
    if (number === last + 1) writeFileSync(READY_FILE, '');
    await sleep(pauseMs);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder, port, name] = process.argv.slice(2);
  await main(folder!, port!, name!);
}
