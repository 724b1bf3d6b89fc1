/**
 * Why a test may be left out, also in CI (GODWIT_NO_SKIP=1): what no package of scripts/setup brings, because
 * the kernel, the container or this build of node has it or has not. Anything else that is missing there
 * makes its tests fail. scripts/tidy.ts knows when no test needs an entry any more.
 */
export const SKIPS = {
  'memory controller': 'a container may be given none, and limits of memory cannot be tried then',
  freezer: 'without the freezer of cgroup version 1 there is only the one way of version 2 to end a group',
  'symbols of OpenSSL':
    'a node that is linked with the OpenSSL of the system need not export EVP; the slow way is used then',
  'core dumps in the working directory': 'core_pattern is of the host, and may pipe them into a program',
  PR_SET_IO_FLUSHER: 'needs CAP_SYS_RESOURCE, which root of a container may lack',
  'reads that do not wait': 'RWF_NOWAIT is of the filesystem of the temporary folder',
  'mount of the filesystem': 'features of ext4, and XFS altogether, are of the kernel',
  'history of the checkout':
    'sources of an earlier version are taken from git, and a package or a shallow clone has none',
  'guest that goes on':
    'user-mode-linux stops now and then on a busy machine, whatever it does; npm run lab counts it as unfinished',
} as const;

/** For `skip` of node:test: false when it is there, else the reason why the test may be left out. */
export function mayLack(what: keyof typeof SKIPS, isThere: boolean): string | false {
  const reason: string | undefined = SKIPS[what];
  if (reason === undefined) throw new Error(`test/support/skips.ts does not say why a test may lack ${what}`);
  return isThere ? false : `no ${what}: ${reason}`;
}
