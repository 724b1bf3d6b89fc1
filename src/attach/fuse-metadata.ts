import { constants } from 'node:os';
import {
  FILE_NAME,
  FILE_NODE,
  FOPEN_DIRECT_IO,
  FOPEN_PARALLEL_DIRECT_WRITES,
  type FuseSlot,
  OPCODE,
  ROOT_NODE,
} from './fuse-protocol.ts';

const { EACCES, ENOENT, ENOSYS, EPERM } = constants.errno;

/**
 * Answers every request that is not about data, from the length of the file alone. The bytes of the reply; 0
 * where none may be sent; null for requests that move or change data.
 */
export function answerMetadata(slot: FuseSlot, lengthBytes: number): number | null {
  switch (slot.opcode) {
    case OPCODE.read:
    case OPCODE.write:
    case OPCODE.fsync:
    case OPCODE.fallocate:
      return null;
    case OPCODE.forget:
    case OPCODE.batchForget:
      return 0;
    case OPCODE.lookup:
      if (slot.node !== ROOT_NODE || slot.lookupName !== FILE_NAME) return slot.replyError(ENOENT);
      return slot.replyEntry(lengthBytes);
    case OPCODE.getattr:
      return slot.replyAttributes(slot.node, lengthBytes);
    case OPCODE.setattr:
      return slot.replyError(EPERM);
    case OPCODE.open:
      if (slot.node !== FILE_NODE) return slot.replyError(EACCES);
      return slot.replyOpen(FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES);
    case OPCODE.opendir:
      return slot.replyOpen(0);
    case OPCODE.statfs:
      return slot.replyStatfs(lengthBytes);
    case OPCODE.readdir:
    case OPCODE.release:
    case OPCODE.releasedir:
    case OPCODE.destroy:
      return slot.replyEmpty();
    default:
      // The kernel takes ENOSYS as a lasting answer and stops asking (flush, access, interrupt, xattr, ioctl,
      // lseek…).
      return slot.replyError(ENOSYS);
  }
}
