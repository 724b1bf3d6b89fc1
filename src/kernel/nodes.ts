import { readFile, readlink, stat, writeFile } from 'node:fs/promises';
import { type BlockStatistics, blockStatistics, kernelNameOf } from '../host/block-statistics.ts';

/**
 * Linux counts for devices of device-mapper whatever its flag says, or goes by it (later than 6.1). So it is
 * set, and looked at when the counts are.
 */
export async function startStatistics(device: string): Promise<void> {
  await writeFile(`/sys/block/${await kernelNode(device)}/queue/iostats`, '1').catch(() => {});
}

/** Null where the kernel does not count for this device. */
export async function statisticsOf(device: string): Promise<BlockStatistics | null> {
  const name = await kernelNode(device);
  const counts = (await readFile(`/sys/block/${name}/queue/iostats`, 'utf8')).trim();
  return counts === '1' ? blockStatistics(name) : null;
}

/**
 * `dm-3` of `/dev/mapper/name`, which is a symbolic link where udev runs, and a node of its own elsewhere.
 */
export async function kernelNode(device: string): Promise<string> {
  if (!device.startsWith('/dev/mapper/')) return kernelNameOf(device);
  const target = await readlink(device).catch(() => null);
  if (target !== null) return kernelNameOf(target);
  const { rdev } = await stat(device);
  // makedev(3): the minor number is in bits 0 to 7 and 20 to 31.
  return `dm-${(rdev & 0xff) | ((rdev >>> 12) & ~0xff)}`;
}

/** Where a device is mounted; never touches what is mounted. */
export async function mountPlaceOf(device: string): Promise<string | null> {
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const [before, after] = line.split(' - ');
    if (after?.split(' ')[1] === device) return before?.split(' ')[4] ?? null;
  }
  return null;
}
