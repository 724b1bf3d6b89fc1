import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { systemErrorCode } from '../../src/base/errors.ts';
import type { Random } from '../../src/base/random.ts';
import { BLOCK_BYTES } from '../../src/block/block-device.ts';
import type { FreeMap } from '../../src/freemap/free-map.ts';
import { mustRun, systemTools } from '../../src/host/tools.ts';
import { patient, until } from './patience.ts';
import { scratchDir } from './scratch.ts';
import { unmount } from './unmount.ts';

const toolDeadlineMs = () => patient(60_000);

/**
 * A sparse file with a real filesystem, and a folder to mount it on; unmounted and removed after the test,
 * whatever happens.
 */
export class FilesystemImage {
  readonly path: string;
  readonly mountDir: string;
  readonly lengthBytes: number;

  private constructor(dir: string, lengthBytes: number) {
    this.path = join(dir, 'image');
    this.mountDir = join(dir, 'mnt');
    this.lengthBytes = lengthBytes;
  }

  /** `mkfs` and its arguments; the file's path is added. */
  static async make(t: TestContext, lengthBytes: number, mkfs: readonly string[]): Promise<FilesystemImage> {
    let image: FilesystemImage | undefined;
    // Registered before the folder's own hook, because hooks run in order.
    t.after(() => image?.unmount());
    image = new FilesystemImage(scratchDir(t), lengthBytes);
    mkdirSync(image.mountDir);
    closeSync(openSync(image.path, 'w'));
    truncateSync(image.path, lengthBytes);
    await tool(mkfs[0]!, [...mkfs.slice(1), image.path]);
    return image;
  }

  /** False where this kernel lacks a feature of the filesystem. */
  async mountable(): Promise<boolean> {
    const { exitCode } = await systemTools().run(['mount', '-o', 'loop', this.path, this.mountDir], {
      deadlineMs: toolDeadlineMs(),
    });
    await this.unmount();
    return exitCode === 0;
  }

  /** Runs `work` on the mounted filesystem; unmounted afterwards, also when it fails. */
  async mounted<T>(work: (dir: string) => T | Promise<T>): Promise<T> {
    await tool('mount', ['-o', 'loop', this.path, this.mountDir]);
    try {
      return await work(this.mountDir);
    } finally {
      await this.unmount();
    }
  }

  /** Idempotent. The loop device goes with the mount. */
  async unmount(): Promise<void> {
    const entry = readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' '))
      .find(([, place]) => place === this.mountDir);
    if (entry === undefined) return;
    await unmount(this.mountDir);
    await until(`the mount of ${entry[0]} to end`, () => isClaimable(entry[0]!));
  }

  /** Fills every block of the map with garbage. */
  overwriteFree(map: FreeMap, byte: number): void {
    const file = openSync(this.path, 'r+');
    try {
      const garbage = Buffer.alloc(2 ** 20, byte);
      for (const { first, end } of map.runs()) {
        for (let offset = first * BLOCK_BYTES; offset < end * BLOCK_BYTES; ) {
          const length = Math.min(garbage.length, end * BLOCK_BYTES - offset);
          offset += writeSync(file, garbage, 0, length, offset);
        }
      }
    } finally {
      closeSync(file);
    }
  }
}

/**
 * A machine of another test that starts just now has a copy of every mount for a moment, and the filesystem
 * ends with the last of them. Until its last block is written the kernel has the device as its own; the
 * filesystem is gone from sysfs before that.
 */
function isClaimable(device: string): boolean {
  try {
    closeSync(openSync(device, constants.O_RDONLY | constants.O_EXCL));
    return true;
  } catch (error) {
    if (systemErrorCode(error) === 'EBUSY') return false;
    throw error;
  }
}

/** Runs a program that has to succeed; its standard output, whole. */
export async function tool(program: string, argv: readonly string[]): Promise<string> {
  return (await mustRun(systemTools(), [program, ...argv], { deadlineMs: toolDeadlineMs() })).trim();
}

/**
 * Makes a random tree of files, some with holes, some deleted or cut again, until `budgetBytes` are written
 * or the disk is full.
 */
export function growTree(dir: string, random: Random, budgetBytes: number): void {
  let leftBytes = budgetBytes;
  // A folder of its own, so that a tree can be grown again.
  const root = join(dir, `t${readdirSync(dir).length}`);
  try {
    mkdirSync(root);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOSPC') return;
    throw error;
  }
  const folders = [root];
  const files: string[] = [];
  for (let serial = 0; leftBytes > 0; serial++) {
    const folder = folders[random.below(folders.length)]!;
    const dice = random.below(20);
    try {
      if (dice === 0 && folders.length < 40) {
        const made = join(folder, `d${serial}`);
        mkdirSync(made);
        folders.push(made);
      } else if (dice <= 3 && files.length > 4) {
        const [gone] = files.splice(random.below(files.length), 1);
        rmSync(gone!);
      } else if (dice === 4 && files.length > 0) {
        const file = files[random.below(files.length)]!;
        truncateSync(file, random.below(statSync(file).size + 1));
      } else {
        const path = join(folder, `f${serial}`);
        files.push(path);
        const scale = 2 ** random.below(random.below(8) === 0 ? 23 : 16);
        const bytes = Math.min(leftBytes, 1 + random.below(scale));
        leftBytes -= bytes;
        const content = Buffer.alloc(bytes, random.bytes(251));
        if (dice === 5) writeHoled(path, content);
        else writeFileSync(path, content);
      }
    } catch (error) {
      if (systemErrorCode(error) === 'ENOSPC') return;
      throw error;
    }
  }
}

/** The content in four parts with holes of 64 KiB in between and 1 MiB behind. */
function writeHoled(path: string, content: Buffer): void {
  const file = openSync(path, 'w');
  try {
    const part = Math.ceil(content.length / 4);
    for (let index = 0; index < 4; index++) {
      const piece = content.subarray(index * part, (index + 1) * part);
      if (piece.length > 0) writeSync(file, piece, 0, piece.length, index * (part + 65536));
    }
    ftruncateSync(file, content.length + 4 * 65536 + 2 ** 20);
  } finally {
    closeSync(file);
  }
}

/** Every file of a tree with the SHA-256 of its content. */
export function digestTree(dir: string): Map<string, string> {
  const digests = new Map<string, string>();
  for (const entry of readdirSync(dir, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    digests.set(path.slice(dir.length), createHash('sha256').update(readFileSync(path)).digest('hex'));
  }
  return digests;
}

/**
 * The blocks of 4 KiB that lie wholly in free blocks of the filesystem: free runs [first, last] of
 * `blockBytes` each, as its own tool tells them. One byte a block, 1 for free.
 */
export function freeUnits(
  runs: Iterable<readonly [first: number, last: number]>,
  blockBytes: number,
  lengthBytes: number,
): Uint8Array {
  // In units of 1 KiB (or a block, if that is less), which all sizes are multiples of.
  const grain = Math.min(1024, blockBytes);
  const grains = new Uint8Array(lengthBytes / grain);
  const perBlock = blockBytes / grain;
  for (const [first, last] of runs) grains.fill(1, first * perBlock, (last + 1) * perBlock);
  const perUnit = BLOCK_BYTES / grain;
  return Uint8Array.from({ length: Math.floor(lengthBytes / BLOCK_BYTES) }, (_, unit) =>
    grains.subarray(unit * perUnit, (unit + 1) * perUnit).every((free) => free === 1) ? 1 : 0,
  );
}

export function unitsOf(map: FreeMap): Uint8Array {
  const units = new Uint8Array(map.blockCount);
  for (const { first, end } of map.runs()) units.fill(1, first, end);
  return units;
}
