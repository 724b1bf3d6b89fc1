import { closeSync, constants, openSync } from 'node:fs';
import { callError, libc } from '../sys/libc.ts';
import { checkName } from './device-mapper.ts';
import { unknownOutputError } from './tools.ts';

/**
 * The requests to device-mapper that are made many times a second, or while a guest is held for them: the
 * same as dmsetup's, without a process for each. Everything else goes by dmsetup (device-mapper.ts), also
 * what may wait without an end: a process can be killed, a call of ours cannot.
 *
 *   struct dm_ioctl (312, include/uapi/linux/dm-ioctl.h)
 *     0 u32 version[3]            28 u32 flags
 *    12 u32 data_size             32 u32 event_nr, 36 u32 padding
 *    16 u32 data_start            40 u64 dev
 *    20 u32 target_count          48 char name[128]
 *    24 i32 open_count           176 char uuid[129], 7 more
 *
 *   struct dm_target_spec (40), followed by its text     struct dm_target_msg (8), followed by its text
 *     0 u64 sector_start, 8 u64 length                     0 u64 sector
 *    16 i32 status, 20 u32 next
 *    24 char target_type[16]
 */
const HEADER_BYTES = 312;
const NAME_AT = 48;
const TARGET_SPEC_BYTES = 40;
const TARGET_TYPE_AT = 24;
/** Of a status of one target. */
const ANSWER_BYTES = 4096;

const REQUEST = { suspend: 6, info: 7, status: 12, message: 14 } as const;
const FLAG = { suspend: 1 << 1, bufferFull: 1 << 8, noFlush: 1 << 11 } as const;
/** _IOWR(0xfd, number, struct dm_ioctl) */
const requestNumber = (number: number) => 0xc000_0000 + (HEADER_BYTES << 16) + 0xfd00 + number;

const CONTROL = '/dev/mapper/control';
const ioctl = libc.func('ioctl', 'int', ['int', 'uint64_t', 'void *']);

/** All methods reject `SYS_CALL_FAILED`, with ENXIO where there is no such device. */
export class MapperControl {
  /** The status of a device with one target, as `DeviceMapper.status`. */
  async status(name: string): Promise<{ sectors: number; target: string; text: string }> {
    const answer = await call(
      'status',
      encodeMapperRequest(name, { flags: FLAG.noFlush, dataBytes: ANSWER_BYTES }),
    );
    return decodeMapperStatus(answer);
  }

  async suspended(name: string): Promise<boolean> {
    const answer = await call('info', encodeMapperRequest(name, {}));
    return (answer.readUInt32LE(28) & FLAG.suspend) !== 0;
  }

  async message(name: string, words: readonly string[]): Promise<void> {
    // The sector of the target, and the text with its final zero.
    const data = Buffer.concat([Buffer.alloc(8), Buffer.from(`${words.join(' ')}\0`)]);
    await call('message', encodeMapperRequest(name, { data }));
  }

  async resume(name: string): Promise<void> {
    await call('suspend', encodeMapperRequest(name, {}));
  }
}

/** The answer comes in the same buffer. */
export function encodeMapperRequest(
  name: string,
  { flags = 0, data, dataBytes = 0 }: { flags?: number; data?: Uint8Array; dataBytes?: number },
): Buffer {
  const request = Buffer.alloc(HEADER_BYTES + Math.max(dataBytes, data?.length ?? 0));
  request.writeUInt32LE(4, 0);
  request.writeUInt32LE(request.length, 12);
  request.writeUInt32LE(HEADER_BYTES, 16);
  request.writeUInt32LE(flags, 28);
  request.write(checkName(name), NAME_AT);
  if (data) request.set(data, HEADER_BYTES);
  return request;
}

/** Throws `HOST_UNKNOWN_OUTPUT` unless the device has one target, whose status is whole. */
export function decodeMapperStatus(answer: Buffer): { sectors: number; target: string; text: string } {
  const start = answer.readUInt32LE(16);
  const targets = answer.readUInt32LE(20);
  const full = (answer.readUInt32LE(28) & FLAG.bufferFull) !== 0;
  if (targets !== 1 || full || start + TARGET_SPEC_BYTES > answer.length) {
    throw unknownOutputError('device-mapper', 'the status of a device', `${targets} targets instead of one`);
  }
  const spec = answer.subarray(start);
  return {
    sectors: Number(spec.readBigUInt64LE(8)),
    target: textOf(spec.subarray(TARGET_TYPE_AT, TARGET_SPEC_BYTES)),
    text: textOf(spec.subarray(TARGET_SPEC_BYTES)),
  };
}

function textOf(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end === -1 ? bytes.length : end).trim();
}

/** In the thread pool: a status waits while the metadata is written. */
function call(what: keyof typeof REQUEST, request: Buffer): Promise<Buffer> {
  const fd = openSync(CONTROL, constants.O_RDWR);
  return new Promise<Buffer>((resolve, reject) => {
    ioctl.async(fd, requestNumber(REQUEST[what]), request, (error: Error | null, result: number) => {
      const failure = error ?? (result === 0 ? null : callError('ioctl', { device: CONTROL, request: what }));
      closeSync(fd);
      if (failure) reject(failure);
      else resolve(request);
    });
  });
}
