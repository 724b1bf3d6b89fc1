/**
 * AES-256-XTS of a Luks2Device against `openssl speed` in the same run, in turns.
 *   node bench/xts.ts [--rounds 5]
 *
 * Ours is the whole device call on a volume in memory: read into the caller's buffer and decrypt, in requests
 * of 1 MiB. OpenSSL's figure is the cipher alone, over one buffer of the size of a sector, in a C loop.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { parseArgs, promisify } from 'node:util';
import { median } from '../demo/report.ts';
import type { BlockDevice } from '../src/block/block-device.ts';
import { Luks2Device } from '../src/crypt/luks2-device.ts';
import { NativeXts, NodeXts, type XtsCipher } from '../src/crypt/xts.ts';

const MIB = 2 ** 20;
const REQUEST_BYTES = MIB;

export type XtsRow = {
  sectorBytes: number;
  /** MiB/s, medians. */
  cipher: number;
  read: number;
  write: number;
  node: number;
  openssl: number;
};

export async function benchXts(rounds: number, secondsEach = 0.5): Promise<XtsRow[]> {
  const rows: XtsRow[] = [];
  for (const sectorBytes of [512, 4096]) {
    const key = randomBytes(64);
    const cipher = new NativeXts(key, sectorBytes);
    const node = new NodeXts(key, sectorBytes);
    const device = new Luks2Device(new BufferDevice(8 * MIB), { cipher });
    const buffer = new Uint8Array(randomBytes(REQUEST_BYTES));
    for (let at = 0; at < device.lengthBytes; at += MIB) await device.write(at, buffer);
    const found = { cipher: [], read: [], write: [], node: [], openssl: [] } as Record<string, number[]>;
    for (let round = 0; round < rounds; round++) {
      let at = 0;
      const next = () => {
        at = (at + MIB) % device.lengthBytes;
        return at;
      };
      found.openssl!.push(await opensslSpeed(sectorBytes));
      found.cipher!.push(await rate(secondsEach, () => encrypt(cipher, buffer)));
      found.read!.push(await rate(secondsEach, () => device.read(next(), buffer)));
      found.write!.push(await rate(secondsEach, () => device.write(next(), buffer)));
      found.node!.push(await rate(secondsEach, () => encrypt(node, buffer)));
    }
    await device.close();
    const of = (name: string) => median(found[name]!);
    rows.push({
      sectorBytes,
      cipher: of('cipher'),
      read: of('read'),
      write: of('write'),
      node: of('node'),
      openssl: of('openssl'),
    });
  }
  return rows;
}

export function xtsTable(rows: readonly XtsRow[]): string {
  const lines = rows.map((row) => {
    const speeds = [row.openssl, row.cipher, row.read, row.write, row.node].map((speed) => speed.toFixed(0));
    return `| ${row.sectorBytes} | ${speeds.join(' | ')} | ${(row.cipher / row.openssl).toFixed(2)} |`;
  });
  return [
    '| sector | openssl speed | our cipher | device read | device write | node:crypto | cipher / openssl |',
    '|---|---|---|---|---|---|---|',
    ...lines,
  ].join('\n');
}

/** Memory that copies and nothing else, so that the layer above is what is measured. */
class BufferDevice implements BlockDevice {
  readonly lengthBytes: number;
  readonly blockBytes = 512;
  readonly writable = true;
  readonly #bytes: Uint8Array;

  constructor(lengthBytes: number) {
    this.lengthBytes = lengthBytes;
    this.#bytes = new Uint8Array(lengthBytes);
  }

  async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    into.set(this.#bytes.subarray(offsetBytes, offsetBytes + into.length));
  }

  async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    this.#bytes.set(from, offsetBytes);
  }

  async flush(): Promise<void> {}

  async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
  }

  async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    this.#bytes.fill(0, offsetBytes, offsetBytes + lengthBytes);
  }

  async close(): Promise<void> {}
}

async function encrypt(cipher: XtsCipher, buffer: Uint8Array): Promise<void> {
  cipher.encrypt(buffer, buffer, 0);
}

/** MiB/s of requests of 1 MiB, one after the other. */
async function rate(seconds: number, request: () => Promise<void>): Promise<number> {
  const startMs = performance.now();
  let requests = 0;
  while (performance.now() - startMs < seconds * 1000) {
    await request();
    requests++;
  }
  return (requests * REQUEST_BYTES) / MIB / ((performance.now() - startMs) / 1000);
}

async function opensslSpeed(sectorBytes: number): Promise<number> {
  const args = [
    'speed',
    '-mr',
    '-elapsed',
    '-seconds',
    '1',
    '-bytes',
    `${sectorBytes}`,
    '-evp',
    'aes-256-xts',
  ];
  const { stdout } = await promisify(execFile)('openssl', args);
  // Machine-readable: `+F:22:AES-256-XTS:<bytes per second>`.
  const bytesPerSecond = Number(/^\+F:.*:([0-9.]+)$/m.exec(stdout)?.[1]);
  if (!(bytesPerSecond > 0)) throw new Error(`openssl speed printed something else: ${stdout}`);
  return bytesPerSecond / MIB;
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '5' } } });
  process.stdout.write(`${xtsTable(await benchXts(Number(values.rounds)))}\n`);
}
