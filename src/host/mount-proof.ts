import { open, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32c } from '@node-rs/crc32';
import { type Clock, systemClock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { MountNeeds } from './mount-needs.ts';
import { systemTools, type Tools } from './tools.ts';

/*
 * Can the kernel of this host mount a filesystem with these features? A list of features says what it knows,
 * not what it was built with (casefold needs CONFIG_UNICODE, quota CONFIG_QUOTA): so an empty one is made,
 * and mounted, in a mount namespace that ends with the program. The loop device goes by itself with the
 * mount.
 */

/** By bit, as mke2fs(8) calls them (e2fsprogs lib/e2p/feature.c). */
const EXT4_COMPATIBLE = new Map([
  [0x4, 'has_journal'],
  [0x8, 'ext_attr'],
  [0x10, 'resize_inode'],
  [0x20, 'dir_index'],
  [0x200, 'sparse_super2'],
  [0x400, 'fast_commit'],
  [0x800, 'stable_inodes'],
  [0x1000, 'orphan_file'],
]);
const EXT4_INCOMPATIBLE = new Map([
  [0x2, 'filetype'],
  [0x10, 'meta_bg'],
  [0x40, 'extent'],
  [0x80, '64bit'],
  [0x100, 'mmp'],
  [0x200, 'flex_bg'],
  [0x400, 'ea_inode'],
  [0x2000, 'metadata_csum_seed'],
  [0x4000, 'large_dir'],
  [0x8000, 'inline_data'],
  [0x10000, 'encrypt'],
  [0x20000, 'casefold'],
]);
const EXT4_READONLY_COMPATIBLE = new Map([
  [0x1, 'sparse_super'],
  [0x2, 'large_file'],
  [0x8, 'huge_file'],
  [0x10, 'uninit_bg'],
  [0x20, 'dir_nlink'],
  [0x40, 'extra_isize'],
  [0x100, 'quota'],
  [0x200, 'bigalloc'],
  [0x400, 'metadata_csum'],
  [0x2000, 'project'],
  [0x8000, 'verity'],
]);
const EXT4_SUPERBLOCK_BYTES = 1024;
const EXT4_METADATA_CSUM = 0x400;

/** As mkfs.xfs(8) calls them. */
const XFS_READONLY_COMPATIBLE = [
  [0x1, 'finobt'],
  [0x2, 'rmapbt'],
  [0x4, 'reflink'],
  [0x8, 'inobtcount'],
] as const;
const XFS_SPARSE_INODES = 0x2;
const XFS_BIGTIME = 0x8;
const XFS_NREXT64 = 0x20;
/** Those, file types, and the uuid that tune can change. */
const XFS_INCOMPATIBLE_MADE = 0x1 | XFS_SPARSE_INODES | 0x4 | XFS_BIGTIME | XFS_NREXT64;

/** What every kernel with ext4 mounts: a journal, file types, extents, sparse superblocks, large files. */
const CONTROL: MountNeeds = {
  filesystem: 'ext4',
  blockBytes: 4096,
  clusterBytes: 4096,
  inodeBytes: 256,
  compatible: 0x4,
  incompatible: 0x2 | 0x40,
  readonlyCompatible: 0x1 | 0x2,
};

const FILE_BYTES = { ext4: 64 * 2 ** 20, xfs: 512 * 2 ** 20 };
/** What did not mount may after a `modprobe`, or with another kernel's modules. */
const REFUSED_KEEP_MS = PATIENCE.mountRefused.ms;

/** The names of the bits, and the bits without one. Pure. */
function named(word: number, names: ReadonlyMap<number, string>): { names: string[]; rest: number } {
  let rest = word;
  const found: string[] = [];
  for (const [bit, name] of names) {
    if ((word & bit) === 0) continue;
    found.push(name);
    rest &= ~bit;
  }
  return { names: found, rest: rest >>> 0 };
}

type Recipe = {
  argv: [string, ...string[]];
  features: string[];
  incompatible: number;
  readonlyCompatible: number;
};

/**
 * How an empty filesystem of that kind is made at `path`; the bits that the program has no name for are put
 * in afterwards. Pure.
 */
export function proofRecipe(needs: MountNeeds, path: string): Recipe {
  if (needs.filesystem === 'ext4') {
    const compatible = named(needs.compatible, EXT4_COMPATIBLE);
    const incompatible = named(needs.incompatible, EXT4_INCOMPATIBLE);
    const readonlyCompatible = named(needs.readonlyCompatible, EXT4_READONLY_COMPATIBLE);
    const features = [...compatible.names, ...incompatible.names, ...readonlyCompatible.names];
    return {
      argv: [
        ...([
          'mkfs.ext4',
          '-q',
          '-F',
          '-b',
          String(needs.blockBytes),
          '-I',
          String(needs.inodeBytes),
        ] as const),
        ...['-E', ['nodiscard', ...(features.includes('casefold') ? ['encoding=utf8'] : [])].join(',')],
        ...(features.includes('bigalloc') ? ['-C', String(needs.clusterBytes)] : []),
        ...['-O', ['none', ...features].join(','), path],
      ],
      features,
      incompatible: incompatible.rest,
      readonlyCompatible: readonlyCompatible.rest,
    };
  }
  const { readonlyCompatible, incompatible, version } = needs;
  const onOff = (name: string, isOn: boolean) => `${name}=${isOn ? 1 : 0}`;
  const isV5 = version >= 5;
  const metadata = isV5
    ? [
        onOff('crc', true),
        ...XFS_READONLY_COMPATIBLE.map(([bit, name]) => onOff(name, (readonlyCompatible & bit) !== 0)),
        onOff('bigtime', (incompatible & XFS_BIGTIME) !== 0),
      ]
    : [onOff('crc', false)];
  const inodes = [
    `size=${needs.inodeBytes}`,
    ...(isV5 ? [onOff('sparse', (incompatible & XFS_SPARSE_INODES) !== 0)] : []),
    ...(incompatible & XFS_NREXT64 ? [onOff('nrext64', true)] : []),
  ];
  const rest = (incompatible & ~XFS_INCOMPATIBLE_MADE) >>> 0;
  return {
    argv: [
      ...(['mkfs.xfs', '-q', '-f', '-K', '-m', metadata.join(','), '-i', inodes.join(',')] as const),
      ...['-b', `size=${needs.blockBytes}`, '-s', `size=${needs.sectorBytes}`, path],
    ],
    features: [...metadata, ...inodes].filter((feature) => !feature.endsWith('=0')),
    incompatible: rest,
    readonlyCompatible: (readonlyCompatible & ~0xf) >>> 0,
  };
}

/** Asks the kernel of this host, and keeps what it said. */
export class MountProof {
  readonly #dir: string;
  readonly #tools: Tools;
  readonly #clock: Clock;
  readonly #answers = new Map<string, { answer: Promise<string | null>; untilMs: number }>();
  #count = 0;

  /**
   * `dir`: there must be room for 64 MiB, sparse; what an earlier process left in it is taken away by
   * `sweep`.
   */
  constructor(options: { dir: string; tools?: Tools; clock?: Clock }) {
    this.#dir = options.dir;
    this.#tools = options.tools ?? systemTools();
    this.#clock = options.clock ?? systemClock;
  }

  /**
   * Why this host cannot mount such a filesystem, as the end of a sentence; null: it can. Rejects
   * `HOST_MOUNT_UNPROVED` when it could not be tried, which says nothing about the kernel.
   */
  refusal(needs: MountNeeds): Promise<string | null> {
    const key = JSON.stringify(needs);
    const known = this.#answers.get(key);
    if (known && known.untilMs > this.#clock.monotonicMs()) return known.answer;
    const answer = this.#try(needs);
    this.#answers.set(key, { answer, untilMs: Number.POSITIVE_INFINITY });
    const forget = (keepMs: number) =>
      this.#answers.set(key, { answer, untilMs: this.#clock.monotonicMs() + keepMs });
    answer.then(
      (said) => said !== null && forget(REFUSED_KEEP_MS),
      () => this.#answers.delete(key),
    );
    return answer;
  }

  async #try(needs: MountNeeds): Promise<string | null> {
    const { filesystem, blockBytes } = needs;
    try {
      const said = await this.#mounts(needs);
      if (said === null) return null;
      // Programs, loop devices or rights may be what is missing: then what every kernel mounts is not mounted
      // either.
      const other = await this.#mounts(CONTROL);
      if (other !== null) throw new Error(`a plain ext4 is not mounted either: ${other}`);
      const { features, incompatible, readonlyCompatible } = proofRecipe(needs, '');
      const unknown = incompatible | readonlyCompatible;
      const bits = unknown === 0 ? '' : ` and unknown bits 0x${(unknown >>> 0).toString(16)}`;
      return `its kernel does not mount ${filesystem} with blocks of ${blockBytes} and ${features.join(',')}${bits} (${said})`;
    } catch (error) {
      throw new GodwitError(
        'HOST_MOUNT_UNPROVED',
        `it could not be tried whether this host mounts such a filesystem: ${messageOf(error)}`,
        {
          values: { filesystem },
          nextAction:
            'Nothing: a machine may come all the same. Install what is missing to have it found out before.',
          cause: error,
        },
      );
    }
  }

  /**
   * What mount says when it fails; null: it is mounted, and gone again. Throws where there is nothing to
   * mount.
   */
  async #mounts(needs: MountNeeds): Promise<string | null> {
    const { filesystem } = needs;
    const path = join(this.#dir, `mount-proof-${process.pid}-${this.#count++}`);
    const recipe = proofRecipe(needs, path);
    try {
      const file = await open(path, 'wx', 0o600);
      await file.close();
      await truncate(path, FILE_BYTES[filesystem]);
      const made = await this.#tools.run(recipe.argv, { deadlineMs: PATIENCE.makeFilesystem.ms });
      if (made.exitCode !== 0)
        throw new Error(`${recipe.argv[0]}: ${made.stderr.trim() || made.stdout.trim()}`);
      await addBits(path, needs, recipe);
      const { exitCode, stderr } = await this.#tools.run([
        ...(['unshare', '--mount', '--propagation', 'private'] as const),
        ...['mount', '-t', filesystem, '-o', filesystem === 'xfs' ? 'loop,nodev,nouuid' : 'loop,nodev'],
        ...[path, this.#dir],
      ]);
      return exitCode === 0 ? null : (stderr.trim().split('\n')[0] ?? '');
    } finally {
      await rm(path, { force: true }).catch(() => {});
    }
  }
}

/** Sets the feature bits that mkfs has no name for, and the checksum of the superblock. */
async function addBits(path: string, needs: MountNeeds, recipe: Recipe): Promise<void> {
  if (recipe.incompatible === 0 && recipe.readonlyCompatible === 0) return;
  const file = await open(path, 'r+');
  try {
    if (needs.filesystem === 'ext4') {
      const block = Buffer.alloc(EXT4_SUPERBLOCK_BYTES);
      await file.read(block, 0, block.length, EXT4_SUPERBLOCK_BYTES);
      block.writeUInt32LE((block.readUInt32LE(0x60) | recipe.incompatible) >>> 0, 0x60);
      block.writeUInt32LE((block.readUInt32LE(0x64) | recipe.readonlyCompatible) >>> 0, 0x64);
      if (needs.readonlyCompatible & EXT4_METADATA_CSUM)
        block.writeUInt32LE(~crc32c(block.subarray(0, 0x3fc)) >>> 0, 0x3fc);
      await file.write(block, 0, block.length, EXT4_SUPERBLOCK_BYTES);
      return;
    }
    const block = Buffer.alloc(needs.sectorBytes);
    await file.read(block, 0, block.length, 0);
    block.writeUInt32BE((block.readUInt32BE(212) | recipe.readonlyCompatible) >>> 0, 212);
    block.writeUInt32BE((block.readUInt32BE(216) | recipe.incompatible) >>> 0, 216);
    block.writeUInt32LE(0, 224);
    block.writeUInt32LE(crc32c(block) >>> 0, 224);
    await file.write(block, 0, block.length, 0);
  } finally {
    await file.close();
  }
}
