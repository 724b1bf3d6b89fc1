import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import type { HostFacts } from './capabilities.ts';
import { mustRun, type Tools } from './tools.ts';

const FOLDERS = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
const PROGRAMS = ['losetup', 'mount', 'unshare', 'setpriv', 'mkfs.ext4', 'dmsetup', 'iscsiadm', 'fstrim'];
/**
 * Abstract socket on which iscsid listens, or systemd for it until somebody asks (open-iscsi,
 * usr/mgmt_ipc.h).
 */
const ISCSID_SOCKET = '@ISCSIADM_ABSTRACT_NAMESPACE';

/** Looks at this host. Changes nothing; what cannot be read counts as not there. */
export function readHostFacts(): HostFacts {
  const kernelRelease = release();
  const moduleDir = join('/lib/modules', kernelRelease);
  const namesOf = (file: string, line: (text: string) => string | undefined) =>
    text(join(moduleDir, file))
      .split('\n')
      .map(line)
      .filter((name) => name !== undefined)
      .map(moduleName);
  return {
    kernelRelease,
    isRoot: process.getuid?.() === 0,
    hasFuse: existsSync('/dev/fuse'),
    hasLoop: existsSync('/dev/loop-control'),
    programs: new Set(PROGRAMS.filter((name) => FOLDERS.some((folder) => isProgram(join(folder, name))))),
    modulesPresent: new Set([
      ...text('/proc/modules')
        .split('\n')
        .map((line) => line.split(' ')[0]!),
      ...namesOf('modules.builtin', (line) => line.split('/').at(-1)),
      // Parts that were built in leave a folder only where they have parameters; these are the ones that do.
      ...['dm_mod', 'sd_mod', 'target_core_mod'].filter((name) => existsSync(`/sys/module/${name}`)),
    ]),
    modulesLoadable: new Set(namesOf('modules.dep', (line) => line.split(':')[0]?.split('/').at(-1))),
    hasConfigfs: /^\S+ \/sys\/kernel\/config configfs /m.test(text('/proc/mounts')),
    iscsidRuns: text('/proc/net/unix').includes(ISCSID_SOCKET),
  };
}

/** Loads what the kernel does not have yet. Modules that are not there are for `assessHost` to name. */
export async function loadModules(tools: Tools, facts: HostFacts, modules: readonly string[]): Promise<void> {
  const missing = modules.filter(
    (name) => !facts.modulesPresent.has(name) && facts.modulesLoadable.has(name),
  );
  if (missing.length > 0) await mustRun(tools, ['modprobe', '-a', ...missing]);
}

/** `dm_clone` of `dm-clone.ko.xz`: the kernel itself writes hyphens as underscores. */
function moduleName(file: string): string {
  return file.replace(/\.ko(\.\w+)?$/, '').replaceAll('-', '_');
}

function text(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
