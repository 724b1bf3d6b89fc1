import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';

/** One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), as far as it is used here. */
export type MountEntry = {
  /** Of the filesystem's device, `major:minor`. */
  device: string;
  mountPoint: string;
  /** What is mounted on it appears in its copies in other mount namespaces. */
  shared: boolean;
  filesystem: string;
  source: string;
  /** Options of the superblock, comma separated. */
  superOptions: string;
};

/**
 * `<id> <parent> <major:minor> <root> <mount point> <options> [<optional>…] - <filesystem> <source> <super
 * options>` Lines that do not look so are left out.
 */
export function parseMountTable(text: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split('\n')) {
    const separator = line.indexOf(' - ');
    if (separator === -1) continue;
    const [, , device, , mountPoint, , ...optional] = line.slice(0, separator).split(' ');
    const [filesystem, source, superOptions] = line.slice(separator + 3).split(' ');
    if (!device || !mountPoint || !filesystem) continue;
    entries.push({
      device,
      mountPoint: unescapeOctal(mountPoint),
      shared: optional.some((field) => field.startsWith('shared:')),
      filesystem,
      source: unescapeOctal(source ?? ''),
      superOptions: superOptions ?? '',
    });
  }
  return entries;
}

/** Reading the table touches no mounted filesystem. */
export function readMountTable(): MountEntry[] {
  return parseMountTable(readFileSync('/proc/self/mountinfo', 'utf8'));
}

/** What is mounted at exactly that place, the topmost one, else undefined. */
export function mountAt(
  place: string,
  table: readonly MountEntry[] = readMountTable(),
): MountEntry | undefined {
  return table.findLast((entry) => entry.mountPoint === place);
}

/** The filesystem that a path is on, by its name alone; the path has no symbolic links. */
export function mountOf(
  path: string,
  table: readonly MountEntry[] = readMountTable(),
): MountEntry | undefined {
  for (let place = path; ; place = dirname(place)) {
    const found = mountAt(place, table);
    if (found !== undefined || place === dirname(place)) return found;
  }
}

/**
 * The kernel takes no write there: a filesystem that has met an error is read-only from then on (`ro`, and
 * `emergency_ro` of ext4 since Linux 6.14).
 */
export function isReadOnly({ superOptions }: MountEntry): boolean {
  return superOptions.split(',').some((option) => option === 'ro' || option === 'emergency_ro');
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
