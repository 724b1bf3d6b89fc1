import { callError, libc } from './libc.ts';

const prctl = libc.func('prctl', 'int', ['int', 'uint64_t', 'uint64_t', 'uint64_t', 'uint64_t']);

/** include/uapi/linux/prctl.h */
const PR_SET_DUMPABLE = 4;

/**
 * No core dump of this process is written, on whichever signal, and only a process with CAP_SYS_PTRACE may
 * look into its memory (prctl(2), PR_SET_DUMPABLE). For the whole process, until it executes another program.
 *
 * Memory that is swapped out is not covered. Locking all of it (mlockall(2)) is no way: V8 gives pages back
 * with madvise(MADV_DONTNEED), which the kernel refuses for locked ones, and V8 takes that for fatal.
 */
export function keepOutOfDumps(): void {
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) !== 0) throw callError('prctl', { option: PR_SET_DUMPABLE });
}
