import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { diskLetter, type GuestKind } from './guest-kind.ts';
import { mustRunHere } from './host-program.ts';

/** User-mode-linux: a kernel that is a program. Debian's package has every module. */
export const umlKind: GuestKind = {
  patience: 1,
  bootMs: 2_500,
  card: 'vec0',
  modulesDir: '/usr/lib/uml/modules',
  disk: (index) => `/dev/ubd${diskLetter(index)}`,

  /** A preload for processors that this user-mode-linux does not know (ptrace-xstate.c). */
  async prepare(folder) {
    if (!/\bamx_tile\b/.test(readFileSync('/proc/cpuinfo', 'utf8'))) return;
    const source = fileURLToPath(new URL('ptrace-xstate.c', import.meta.url));
    await mustRunHere(['gcc', '-O2', '-shared', '-fPIC', '-o', preloadIn(folder), source]);
  },

  command: (spec) => ({
    argv: [
      'linux.uml',
      `mem=${spec.memoryMib}M`,
      `umid=${spec.name}`,
      `uml_dir=${join(spec.folder, 'uml')}`,
      ...spec.disks.map((path, index) => `ubd${index}=${path}`),
      `vec0:transport=tap,ifname=${spec.tap},mac=${spec.mac},depth=128,gro=1`,
      ...['root=/dev/root', 'rootfstype=hostfs', 'rootflags=/', 'ro', `init=${spec.init}`],
      ...['con=null', 'con0=null,fd:1', 'ssl=null', 'quiet', 'panic=-1'],
      ...spec.environment,
    ],
    env: {
      HOME: spec.folder,
      // Its memory is a file there, mapped executable.
      TMPDIR: '/dev/shm',
      ...(existsSync(preloadIn(spec.folder)) ? { LD_PRELOAD: preloadIn(spec.folder) } : {}),
    },
  }),
};

function preloadIn(folder: string): string {
  return join(folder, 'ptrace-xstate.so');
}
