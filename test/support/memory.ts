import { existsSync, readFileSync } from 'node:fs';

/**
 * Folder of a memory controller in which a group can be made, and the name of its limit: version 1, or 2.
 * Null: none.
 */
export function memoryController(): { dir: string; limit: string } | null {
  if (existsSync('/sys/fs/cgroup/memory/memory.limit_in_bytes')) {
    return { dir: '/sys/fs/cgroup/memory', limit: 'memory.limit_in_bytes' };
  }
  const subtree = '/sys/fs/cgroup/cgroup.subtree_control';
  if (existsSync(subtree) && readFileSync(subtree, 'utf8').includes('memory')) {
    return { dir: '/sys/fs/cgroup', limit: 'memory.max' };
  }
  return null;
}

/** CAP_SYS_RESOURCE, bit 24 (include/uapi/linux/capability.h): root has it, except in some containers. */
export function hasSysResource(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${effective}`) & (1n << 24n)) !== 0n;
}

/** /proc/<pid>/oom_score_adj: -1000 is out of the reach of the OOM killer. */
export function outOfMemoryAdjustment(pid: number): number {
  return Number(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8'));
}

/** PF_MEMALLOC_NOIO, one of the two marks of an I/O flusher (include/linux/sched.h, prctl(2)). */
export function isIoFlusher(pid: number): boolean {
  const flags = Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[6]);
  return (flags & 0x80000) !== 0;
}
