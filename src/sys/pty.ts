import { closeSync, constants, fchownSync, fstatSync, openSync } from 'node:fs';
import { GodwitError } from '../base/errors.ts';
import { ioctl } from './ioctl.ts';
import { callError, libc } from './libc.ts';

const syscall = libc.func('syscall', 'int64_t', ['int64_t', 'int', 'str', 'void *', 'size_t']);

/** include/uapi/asm-generic/unistd.h, the same on x86_64. */
const SYS_OPENAT2 = 437;
/** include/uapi/linux/openat2.h: `struct open_how` is flags, mode and resolve, 8 bytes each. */
const RESOLVE_NO_SYMLINKS = 0x04;
const RESOLVE_BENEATH = 0x08;
const O_CLOEXEC = 0o2000000;
/** include/uapi/asm-generic/ioctls.h */
const TIOCSWINSZ = 0x5414;
const TIOCSPTLCK = 0x40045431;
const TIOCGPTPEER = 0x5441;
/**
 * Device number of the multiplexer of every devpts: TTYAUX_MAJOR 5, minor 2
 * (Documentation/admin-guide/devices.txt).
 */
const PTMX = (5 << 8) | 2;

/** Of a terminal, in characters; 1 to 65535. */
export type TerminalSize = { columns: number; rows: number };

/** The two ends of a pseudoterminal (pty(7)): close-on-exec; reads and writes of the master do not wait. */
export type Pty = { master: number; slave: number };

/**
 * A pseudoterminal of the devpts that is mounted at /dev/pts below `root` (which may be `/proc/<pid>/root`),
 * so that it is a terminal for who lives there, and none of the host's. The path is walked without following
 * a link, and the slave comes from the master and not by name: whoever rules that root cannot have another
 * file opened. The slave belongs to `owner`. Throws `SYS_CALL_FAILED`, `SYS_NO_PTY`. The caller closes both.
 */
export function openPty(root: string, owner: { uid: number; gid: number }, size: TerminalSize): Pty {
  const folder = openSync(root, constants.O_RDONLY | constants.O_DIRECTORY);
  let master: number | null = null;
  let slave: number | null = null;
  try {
    master = openBeneath(folder, 'dev/pts/ptmx');
    if (fstatSync(master).rdev !== PTMX) {
      throw new GodwitError('SYS_NO_PTY', 'there are no pseudoterminals: dev/pts/ptmx is something else', {
        values: { root },
        nextAction: 'Look at what is mounted at /dev/pts there.',
      });
    }
    ioctl(master, TIOCSPTLCK, new Uint8Array(4));
    slave = ioctl(master, TIOCGPTPEER, constants.O_RDWR | constants.O_NOCTTY | O_CLOEXEC);
    fchownSync(slave, owner.uid, owner.gid);
    resizeTerminal(master, size);
    return { master, slave };
  } catch (error) {
    for (const fd of [master, slave]) if (fd !== null) closeSync(fd);
    throw error;
  } finally {
    closeSync(folder);
  }
}

/** The kernel tells the foreground process group with SIGWINCH, where that is a change. */
export function resizeTerminal(master: number, { columns, rows }: TerminalSize): void {
  // struct winsize: rows, columns, and two fields in pixels that nobody uses.
  ioctl(master, TIOCSWINSZ, new Uint8Array(Uint16Array.of(rows, columns, 0, 0).buffer));
}

/** openat2(2), which Linux has since 5.6. */
function openBeneath(folder: number, path: string): number {
  const flags = constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK | O_CLOEXEC;
  const how = BigUint64Array.of(BigInt(flags), 0n, BigInt(RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH));
  const fd: number = Number(syscall(SYS_OPENAT2, folder, path, how, how.byteLength));
  if (fd < 0) throw callError('openat2', { path });
  return fd;
}
