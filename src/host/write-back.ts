import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Of the kernel, for tests to replace: `/sys/class/bdi` (Documentation/ABI/testing/sysfs-class-bdi). */
const BDI_DIR = '/sys/class/bdi';
const PAGE_BYTES = 4096;

/**
 * Lets at most about so many bytes of a block device wait in the page cache, whoever wrote them; null: as
 * many as the host allows. `strict_limit` makes the kernel keep to it also while there is plenty of memory.
 * Kernels from 6.2 on. False: this one cannot, or there is no such device. Who writes more waits for the
 * device, as on any host that is short of memory.
 */
export function boundDirtyPages(device: string, bytesMax: number | null, bdiDir: string = BDI_DIR): boolean {
  try {
    const dir = bdiOf(device, bdiDir);
    if (!existsSync(join(dir, 'strict_limit')) || !existsSync(join(dir, 'max_bytes'))) return false;
    if (bytesMax === null) {
      writeFileSync(join(dir, 'strict_limit'), '0');
      writeFileSync(join(dir, 'max_ratio'), '100');
    } else {
      writeFileSync(join(dir, 'max_bytes'), String(bytesMax));
      writeFileSync(join(dir, 'strict_limit'), '1');
    }
    return true;
  } catch {
    // It went away, or this container has a sysfs that is read-only.
    return false;
  }
}

/** The bound that a device has; null: none. */
export function dirtyBoundOf(device: string, bdiDir: string = BDI_DIR): number | null {
  try {
    const dir = bdiOf(device, bdiDir);
    if (readFileSync(join(dir, 'strict_limit'), 'utf8').trim() !== '1') return null;
    return Number(readFileSync(join(dir, 'max_bytes'), 'utf8'));
  } catch {
    return null;
  }
}

/** Its folder in sysfs, by makedev(3) of Linux. Throws where there is no such device. */
function bdiOf(device: string, bdiDir: string): string {
  const { rdev } = statSync(device);
  const major = (rdev >> 8) & 0xfff;
  const minor = (rdev & 0xff) | ((rdev >> 12) & 0xfff00);
  return join(bdiDir, `${major}:${minor}`);
}

/**
 * Bytes that may wait in the page cache of this host before who writes has to wait; null: the kernel does not
 * say.
 */
export function dirtyBytesMax(): number | null {
  try {
    const pages = /^nr_dirty_threshold (\d+)$/m.exec(readFileSync('/proc/vmstat', 'utf8'))?.[1];
    return pages === undefined ? null : Number(pages) * PAGE_BYTES;
  } catch {
    return null;
  }
}
