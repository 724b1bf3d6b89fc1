import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { type Clock, systemClock } from '../base/clock.ts';
import { GodwitError, messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { systemTools } from '../host/tools.ts';
import { errnoName } from '../sys/libc.ts';
import { addressOf, ReadablePoll, rawRead, rawWrite } from '../sys/raw-io.ts';
import { unmount } from '../sys/unmount.ts';
import {
  FILE_NAME,
  FuseSlot,
  INIT_FLAG,
  MINOR_MIN,
  OPCODE,
  REPLY_AT,
  REQUEST_AT,
  REQUEST_BYTES_MAX,
  SLOT_BYTES,
} from './fuse-protocol.ts';
import { BACKGROUND_REQUESTS_MAX } from './slots.ts';

export type FuseMount = {
  /** The open /dev/fuse. Whoever holds it keeps the connection alive, server or no server. */
  fd: number;
  dir: string;
  /** The one file, what a loop device is put on. */
  filePath: string;
  /** Number of the connection under /sys/fs/fuse/connections. */
  connectionId: number;
  kernelMinor: number;
  /** False: the death of the server loses the requests that it had in hand (kernel before 6.9). */
  canResend: boolean;
};

const FUSECTL = '/sys/fs/fuse/connections';
const TOOL_TIMEOUT_MS = PATIENCE.fuseUnmount.ms;

/**
 * Mounts a FUSE directory with one file (`FILE_NAME`) at `dir`, which must exist, and answers the INIT
 * handshake. After that a server can be started, and started again, on the descriptor: each begins with the
 * resend notification.
 *
 * From the mount on this process must not touch `dir` in any way: it would wait for a server that it may have
 * to start itself.
 *
 * Throws `ATTACH_NO_FUSE` when the kernel or its modules or rights are missing, `ATTACH_NO_RESEND` on a
 * kernel before 6.9 unless `resendRequired` is false, `ATTACH_MOUNT_FAILED` for the rest.
 */
export async function mountFuse(options: {
  dir: string;
  /** What /proc/mounts shows as the source. No comma, no white space. */
  name: string;
  resendRequired?: boolean;
}): Promise<FuseMount> {
  const { dir, name } = options;
  const fd = openFuseDevice();
  let mounted = false;
  try {
    const result = await systemTools().run(
      [
        'mount',
        ...['-i', '-t', 'fuse'],
        ...['-o', `fd=3,rootmode=40000,user_id=0,group_id=0,max_read=${1024 * 1024},nosuid,nodev,noexec`],
        ...[name, dir],
      ],
      { deadlineMs: TOOL_TIMEOUT_MS, inheritedFd: fd },
    );
    if (result.exitCode !== 0) {
      const missing = /unknown filesystem type|No such device/.test(result.stderr);
      throw new GodwitError(
        missing ? 'ATTACH_NO_FUSE' : 'ATTACH_MOUNT_FAILED',
        `mount of the FUSE directory failed: ${result.stderr.trim()}`,
        {
          values: { dir, exitCode: result.exitCode },
          nextAction: missing
            ? 'Load the fuse module (modprobe fuse) or use a kernel with CONFIG_FUSE_FS.'
            : 'The message of mount says why; check that the directory exists and that this process is root.',
        },
      );
    }
    mounted = true;
    const { kernelMinor, canResend } = answerInit(fd);
    if (!canResend && options.resendRequired !== false) {
      throw new GodwitError(
        'ATTACH_NO_RESEND',
        `this kernel speaks FUSE 7.${kernelMinor} without resend: the death of a volume server would lose requests in flight`,
        {
          values: { kernelMinor },
          nextAction:
            'Use Linux 6.9 or newer; or, where the kernel has dm-clone, a worker of the kernel plane. `godwit doctor` says what this host can do.',
        },
      );
    }
    const connectionId = connectionIdOf(dir);
    return { fd, dir, filePath: `${dir}/${FILE_NAME}`, connectionId, kernelMinor, canResend };
  } catch (error) {
    if (mounted) await unmount(dir, { lazy: true });
    closeSync(fd);
    throw error;
  }
}

/**
 * Takes the directory away and closes the descriptor; the server may be there or not. When that is refused or
 * takes too long, the directory is detached from the tree and the connection aborted, which ends every
 * request in it with an error and frees whoever waits. Loop devices on the file must be gone before. Throws
 * `ATTACH_UNMOUNT_FAILED` only when even that left the mount there.
 */
export async function unmountFuse(
  mount: FuseMount,
  logger: Logger,
  clock: Clock = systemClock,
): Promise<void> {
  const { dir, connectionId } = mount;
  const late = new AbortController();
  const unmounted = await Promise.race([
    unmount(dir, { lazy: false }),
    clock.sleep(TOOL_TIMEOUT_MS, late.signal).then(
      () => false,
      () => false,
    ),
  ]);
  late.abort();
  if (!unmounted && isMounted(dir)) {
    logger.warn(
      { dir, connectionId },
      'the FUSE directory is busy; detaching it and aborting the connection',
    );
    await unmount(dir, { lazy: true });
    await abortFuseConnection(connectionId);
  }
  closeSync(mount.fd);
  if (isMounted(dir)) {
    throw new GodwitError('ATTACH_UNMOUNT_FAILED', 'the FUSE directory cannot be unmounted', {
      values: { dir, connectionId },
      nextAction: `Look for its users in /proc/*/mountinfo, then: umount -l ${dir}`,
    });
  }
}

/**
 * Ends a connection by force, through fusectl. Everything that waits in it gets an error. False when it is
 * gone already.
 */
export async function abortFuseConnection(connectionId: number): Promise<boolean> {
  if (!existsSync(`${FUSECTL}/${connectionId}`)) {
    await systemTools().run(['mount', '-t', 'fusectl', 'none', FUSECTL], { deadlineMs: TOOL_TIMEOUT_MS });
  }
  try {
    writeFileSync(`${FUSECTL}/${connectionId}/abort`, '1');
    return true;
  } catch {
    return false;
  }
}

function openFuseDevice(): number {
  try {
    return openSync('/dev/fuse', 'r+');
  } catch (error) {
    throw new GodwitError('ATTACH_NO_FUSE', `/dev/fuse cannot be opened: ${messageOf(error)}`, {
      nextAction:
        'A volume needs FUSE in the kernel (modprobe fuse), the node /dev/fuse (mknod /dev/fuse c 10 229) and root.',
      cause: error,
    });
  }
}

/** The kernel has queued INIT when mount(2) returns, so this does not wait for anyone. */
function answerInit(fd: number): { kernelMinor: number; canResend: boolean } {
  const buffer = new ArrayBuffer(SLOT_BYTES);
  const address = addressOf(new Uint8Array(buffer));
  const slot = new FuseSlot(buffer, 0);
  const failed = (what: string) =>
    new GodwitError('ATTACH_MOUNT_FAILED', `the FUSE handshake failed: ${what}`, {
      nextAction: 'This is unexpected; the kernel log (dmesg) may say more.',
    });
  if (new ReadablePoll(fd).wait(TOOL_TIMEOUT_MS) !== 1) throw failed('no request came');
  const count = rawRead(fd, address + REQUEST_AT, REQUEST_BYTES_MAX);
  if (count < 0) throw failed(`read: ${errnoName(-count)}`);
  if (slot.opcode !== OPCODE.init) throw failed(`the first request is ${slot.opcode}`);
  const offered = slot.initRequest();
  if (offered.major !== 7 || offered.minor < MINOR_MIN) {
    throw new GodwitError('ATTACH_NO_FUSE', `this kernel speaks FUSE ${offered.major}.${offered.minor}`, {
      values: { major: offered.major, minor: offered.minor },
      nextAction: 'Use Linux 5.4 or newer; 6.9 or newer for volumes that survive the death of their server.',
    });
  }
  const canResend = (offered.flags & INIT_FLAG.hasResend) !== 0n;
  const wanted =
    INIT_FLAG.asyncRead | INIT_FLAG.bigWrites | INIT_FLAG.asyncDio | INIT_FLAG.maxPages | INIT_FLAG.initExt;
  const replyBytes = slot.replyInit({
    flags: (wanted | INIT_FLAG.hasResend) & offered.flags,
    maxReadahead: offered.maxReadahead,
    maxBackground: BACKGROUND_REQUESTS_MAX,
  });
  const written = rawWrite(fd, address + REPLY_AT, replyBytes);
  if (written < 0) throw failed(`reply: ${errnoName(-written)}`);
  return { kernelMinor: offered.minor, canResend };
}

/**
 * proc(5) mountinfo: id, parent, major:minor, root, mount point. The minor number of a FUSE mount is its
 * connection.
 */
function mountInfoOf(dir: string): { minor: number } | null {
  const lines = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  for (const line of lines.reverse()) {
    const fields = line.split(' ');
    if (fields[4] === escaped(dir)) return { minor: Number(fields[2]?.split(':')[1]) };
  }
  return null;
}

/** The kernel writes white space and backslashes of a path as octal (seq_path). */
function escaped(path: string): string {
  return path.replace(
    /[ \t\n\\]/g,
    (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
}

function isMounted(dir: string): boolean {
  return mountInfoOf(dir) !== null;
}

function connectionIdOf(dir: string): number {
  const info = mountInfoOf(dir);
  if (info === null) {
    throw new GodwitError('ATTACH_MOUNT_FAILED', 'the FUSE directory is not in the mount table', {
      values: { dir },
      nextAction: 'Give the path without symbolic links.',
    });
  }
  return info.minor;
}
