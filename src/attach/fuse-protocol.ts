/**
 * The FUSE wire protocol as far as a directory with one regular file needs it (include/uapi/linux/fuse.h,
 * protocol 7.40; all fields little-endian on the machines that we run on). A request is read whole with one
 * read(2) from /dev/fuse, a reply is written whole with one write(2).
 *
 *   struct fuse_in_header (40)          struct fuse_out_header (16)
 *     0 u32 len                           0 u32 len
 *     4 u32 opcode                        4 i32 error (0, negative errno; a notify code where unique is 0)
 *     8 u64 unique                        8 u64 unique
 *    16 u64 nodeid
 *    24 u32 uid, 28 u32 gid, 32 u32 pid
 *    36 u16 total_extlen, 38 u16 padding
 *
 * A request lies in a slot (slots.ts) so that what follows the 80 bytes of header and fuse_write_in is
 * page-aligned:
 *
 *   REQUEST_AT            PAYLOAD_AT (a page border)
 *   | in_header | write_in | payload of a WRITE … |
 *                   | out_header | reply body or data of a READ … |
 *                   REPLY_AT = PAYLOAD_AT - 16
 *
 * So the reply of a READ is header and data in one piece, and a WRITE is written to the file from where it
 * arrived. A reply overwrites the end of the request's arguments: read them before.
 */

const IN_HEADER_BYTES = 40;
const WRITE_IN_BYTES = 40;
const OUT_HEADER_BYTES = 16;
/** Largest data of one READ or WRITE: 256 pages, what max_pages allows. */
export const PAYLOAD_BYTES_MAX = 1024 * 1024;
/** What a reader of /dev/fuse must offer, else the kernel answers EINVAL. */
export const REQUEST_BYTES_MAX = IN_HEADER_BYTES + WRITE_IN_BYTES + PAYLOAD_BYTES_MAX;

export const PAYLOAD_AT = 4096;
export const REQUEST_AT = PAYLOAD_AT - IN_HEADER_BYTES - WRITE_IN_BYTES;
export const REPLY_AT = PAYLOAD_AT - OUT_HEADER_BYTES;
export const SLOT_BYTES = PAYLOAD_AT + PAYLOAD_BYTES_MAX;

/** enum fuse_opcode */
export const OPCODE = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  fsync: 20,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  access: 34,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
  fallocate: 43,
} as const;

/**
 * Bits of `flags` in fuse_init_in and fuse_init_out; those of `flags2` are bits 32 and up of one 64-bit
 * number.
 */
export const INIT_FLAG = {
  asyncRead: 1n << 0n,
  bigWrites: 1n << 5n,
  asyncDio: 1n << 15n,
  maxPages: 1n << 22n,
  initExt: 1n << 30n,
  hasResend: 1n << 39n,
} as const;

/** fuse_open_out.open_flags */
export const FOPEN_DIRECT_IO = 1 << 0;
export const FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6;

/** enum fuse_notify_code: queue again what was read and not answered. */
const NOTIFY_RESEND = 7;

export const ROOT_NODE = 1;
export const FILE_NODE = 2;
/** The name of the one file. */
export const FILE_NAME = 'disk';

/** Oldest protocol that is spoken: 7.31, Linux 5.4 (max_pages needs 7.28). */
export const MINOR_MIN = 31;
/**
 * The one that replies say: 7.40, Linux 6.9 (FUSE_HAS_RESEND). The kernel speaks the lower of its own and
 * this.
 */
export const MINOR = 40;

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
/** Names and attributes never change, so the kernel may keep them for ever. */
const VALID_SECONDS = 0x7fffffff;

/** The fields of requests and replies of one slot. Offsets in bytes are into the slot. */
export class FuseSlot {
  readonly #view: DataView;
  readonly #bytes: Uint8Array;

  /** `buffer` from `offsetBytes` on, SLOT_BYTES long. */
  constructor(buffer: ArrayBufferLike, offsetBytes: number, lengthBytes: number = SLOT_BYTES) {
    this.#view = new DataView(buffer, offsetBytes, lengthBytes);
    this.#bytes = new Uint8Array(buffer, offsetBytes, lengthBytes);
  }

  get lengthBytes(): number {
    return this.#view.getUint32(REQUEST_AT, true);
  }

  get opcode(): number {
    return this.#view.getUint32(REQUEST_AT + 4, true);
  }

  /**
   * For logs; a reply echoes the 64 bits as they are (the top one is set on a request that was sent again).
   */
  get unique(): bigint {
    return this.#view.getBigUint64(REQUEST_AT + 8, true);
  }

  /** Only ROOT_NODE and FILE_NODE are ever given out, so 32 bits hold it. */
  get node(): number {
    return this.#view.getUint32(REQUEST_AT + 16, true);
  }

  /**
   *   struct fuse_read_in, fuse_write_in (40 each)     struct fuse_fallocate_in (32)
   *     0 u64 fh                                         0 u64 fh
   *     8 u64 offset                                     8 u64 offset
   *    16 u32 size                                      16 u64 length
   *    20 u32 read_flags / write_flags                  24 u32 mode
   *    24 u64 lock_owner, 32 u32 flags, 36 u32          28 u32 padding
   */
  get offsetBytes(): number {
    return this.#safeUint64(REQUEST_AT + IN_HEADER_BYTES + 8);
  }

  /** Of a READ or WRITE. */
  get sizeBytes(): number {
    return this.#view.getUint32(REQUEST_AT + IN_HEADER_BYTES + 16, true);
  }

  get fallocateLengthBytes(): number {
    return this.#safeUint64(REQUEST_AT + IN_HEADER_BYTES + 16);
  }

  /** Modes of fallocate(2): include/uapi/linux/falloc.h. */
  get fallocateMode(): number {
    return this.#view.getUint32(REQUEST_AT + IN_HEADER_BYTES + 24, true);
  }

  /** The name of a LOOKUP: zero-terminated, at most 255 bytes. */
  get lookupName(): string {
    const at = REQUEST_AT + IN_HEADER_BYTES;
    const limit = Math.min(REQUEST_AT + this.lengthBytes, at + 256);
    let end = at;
    while (end < limit && this.#bytes[end] !== 0) end++;
    // A copy: TextDecoder refuses views of shared memory.
    return new TextDecoder().decode(this.#bytes.slice(at, end));
  }

  /** The data of a WRITE, or the place for the data of a READ. A view, not a copy. */
  payload(lengthBytes: number): Uint8Array {
    return this.#bytes.subarray(PAYLOAD_AT, PAYLOAD_AT + lengthBytes);
  }

  /**
   *   struct fuse_init_in (64; 16 before 7.36)
   *     0 u32 major, 4 u32 minor, 8 u32 max_readahead, 12 u32 flags, 16 u32 flags2, 20 u32 unused[11]
   */
  initRequest(): { major: number; minor: number; maxReadahead: number; flags: bigint } {
    const at = REQUEST_AT + IN_HEADER_BYTES;
    const low = BigInt(this.#view.getUint32(at + 12, true));
    const extended = this.lengthBytes >= IN_HEADER_BYTES + 20 && (low & INIT_FLAG.initExt) !== 0n;
    const high = extended ? BigInt(this.#view.getUint32(at + 16, true)) : 0n;
    return {
      major: this.#view.getUint32(at, true),
      minor: this.#view.getUint32(at + 4, true),
      maxReadahead: this.#view.getUint32(at + 8, true),
      flags: low | (high << 32n),
    };
  }

  // Each reply encoder fills the body and the header and returns the length to write from REPLY_AT.

  replyError(errno: number): number {
    return this.#replyHeader(0, -errno);
  }

  replyEmpty(): number {
    return this.#replyHeader(0, 0);
  }

  /** The data is in `payload` already. */
  replyRead(lengthBytes: number): number {
    return this.#replyHeader(lengthBytes, 0);
  }

  /** struct fuse_write_out (8): 0 u32 size, 4 u32 padding */
  replyWrite(lengthBytes: number): number {
    this.#view.setUint32(PAYLOAD_AT, lengthBytes, true);
    this.#view.setUint32(PAYLOAD_AT + 4, 0, true);
    return this.#replyHeader(8, 0);
  }

  /**
   *   struct fuse_init_out (64)
   *     0 u32 major, 4 u32 minor, 8 u32 max_readahead, 12 u32 flags
   *    16 u16 max_background, 18 u16 congestion_threshold, 20 u32 max_write, 24 u32 time_gran
   *    28 u16 max_pages, 30 u16 map_alignment, 32 u32 flags2, 36 u32 max_stack_depth, 40 unused
   */
  replyInit(options: { flags: bigint; maxReadahead: number; maxBackground: number }): number {
    const view = this.#view;
    const at = this.#clear(64);
    view.setUint32(at, 7, true);
    view.setUint32(at + 4, MINOR, true);
    view.setUint32(at + 8, options.maxReadahead, true);
    view.setUint32(at + 12, Number(options.flags & 0xffffffffn), true);
    view.setUint16(at + 16, options.maxBackground, true);
    view.setUint16(at + 18, Math.floor((options.maxBackground * 3) / 4), true);
    view.setUint32(at + 20, PAYLOAD_BYTES_MAX, true);
    view.setUint32(at + 24, 1, true);
    view.setUint16(at + 28, PAYLOAD_BYTES_MAX / 4096, true);
    view.setUint32(at + 32, Number(options.flags >> 32n), true);
    return this.#replyHeader(64, 0);
  }

  /**
   *   struct fuse_entry_out (128)
   *     0 u64 nodeid, 8 u64 generation, 16 u64 entry_valid, 24 u64 attr_valid, 32 u32 nsec, 36 u32 nsec, 40 fuse_attr
   */
  replyEntry(lengthBytes: number): number {
    const at = this.#clear(128);
    this.#view.setUint32(at, FILE_NODE, true);
    this.#view.setUint32(at + 16, VALID_SECONDS, true);
    this.#view.setUint32(at + 24, VALID_SECONDS, true);
    this.#attributes(at + 40, FILE_NODE, lengthBytes);
    return this.#replyHeader(128, 0);
  }

  /** struct fuse_attr_out (104): 0 u64 attr_valid, 8 u32 nsec, 12 u32 dummy, 16 fuse_attr */
  replyAttributes(node: number, lengthBytes: number): number {
    const at = this.#clear(104);
    this.#view.setUint32(at, VALID_SECONDS, true);
    this.#attributes(at + 16, node, lengthBytes);
    return this.#replyHeader(104, 0);
  }

  /** struct fuse_open_out (16): 0 u64 fh, 8 u32 open_flags, 12 i32 backing_id */
  replyOpen(openFlags: number): number {
    const at = this.#clear(16);
    this.#view.setUint32(at + 8, openFlags, true);
    return this.#replyHeader(16, 0);
  }

  /**
   *   struct fuse_kstatfs (80)
   *     0 u64 blocks, 8 u64 bfree, 16 u64 bavail, 24 u64 files, 32 u64 ffree
   *    40 u32 bsize, 44 u32 namelen, 48 u32 frsize, 52 u32 padding, 56 u32 spare[6]
   * The loop driver takes `bsize` as the granularity of discards.
   */
  replyStatfs(lengthBytes: number): number {
    const at = this.#clear(80);
    this.#setUint64(at, Math.ceil(lengthBytes / 4096));
    this.#setUint64(at + 24, 2);
    this.#view.setUint32(at + 40, 4096, true);
    this.#view.setUint32(at + 44, 255, true);
    this.#view.setUint32(at + 48, 4096, true);
    return this.#replyHeader(80, 0);
  }

  /**
   *   struct fuse_attr (88)
   *     0 u64 ino, 8 u64 size, 16 u64 blocks, 24 u64 atime, 32 u64 mtime, 40 u64 ctime, 48 u32 nsec[3]
   *    60 u32 mode, 64 u32 nlink, 68 u32 uid, 72 u32 gid, 76 u32 rdev, 80 u32 blksize, 84 u32 flags
   */
  #attributes(at: number, node: number, lengthBytes: number): void {
    const isFile = node === FILE_NODE;
    this.#view.setUint32(at, node, true);
    this.#setUint64(at + 8, isFile ? lengthBytes : 4096);
    this.#setUint64(at + 16, isFile ? Math.ceil(lengthBytes / 512) : 8);
    this.#view.setUint32(at + 60, isFile ? S_IFREG | 0o600 : S_IFDIR | 0o700, true);
    this.#view.setUint32(at + 64, isFile ? 1 : 2, true);
    this.#view.setUint32(at + 80, 4096, true);
  }

  #replyHeader(bodyBytes: number, error: number): number {
    const view = this.#view;
    view.setUint32(REPLY_AT, OUT_HEADER_BYTES + bodyBytes, true);
    view.setInt32(REPLY_AT + 4, error, true);
    view.setUint32(REPLY_AT + 8, view.getUint32(REQUEST_AT + 8, true), true);
    view.setUint32(REPLY_AT + 12, view.getUint32(REQUEST_AT + 12, true), true);
    return OUT_HEADER_BYTES + bodyBytes;
  }

  #clear(lengthBytes: number): number {
    this.#bytes.fill(0, PAYLOAD_AT, PAYLOAD_AT + lengthBytes);
    return PAYLOAD_AT;
  }

  /** Numbers of 2^53 and above come as Infinity, so that every range check refuses them. */
  #safeUint64(at: number): number {
    const high = this.#view.getUint32(at + 4, true);
    return high > 0x1fffff ? Number.POSITIVE_INFINITY : high * 2 ** 32 + this.#view.getUint32(at, true);
  }

  #setUint64(at: number, value: number): void {
    this.#view.setUint32(at, value % 2 ** 32, true);
    this.#view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
  }
}

/** {len 16, error FUSE_NOTIFY_RESEND, unique 0}: what a new server writes before it reads (kernel 6.9). */
export function resendNotification(): Uint8Array {
  const bytes = new Uint8Array(OUT_HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, OUT_HEADER_BYTES, true);
  view.setInt32(4, NOTIFY_RESEND, true);
  return bytes;
}
