/** What is known of a host, as it was found (host-facts.ts). */
export type HostFacts = {
  kernelRelease: string;
  isRoot: boolean;
  hasFuse: boolean;
  hasLoop: boolean;
  /** Programs that were found. */
  programs: ReadonlySet<string>;
  /** Kernel modules that are loaded or built in, by the name that /proc/modules has (`dm_clone`). */
  modulesPresent: ReadonlySet<string>;
  /** Modules that modprobe would find for the running kernel. */
  modulesLoadable: ReadonlySet<string>;
  hasConfigfs: boolean;
  iscsidRuns: boolean;
};

export type Plane = 'userspace' | 'kernel';

export type Capability = {
  what: string;
  /** Planes that cannot do without it. */
  planes: readonly Plane[];
  ok: boolean;
  /** How it is, or why not. */
  detail: string;
  /** What would make it a yes; null where it is one. */
  remedy: string | null;
};

const BOTH: readonly Plane[] = ['userspace', 'kernel'];

/** Debian's packages. */
const PROGRAMS: readonly { program: string; package: string; planes: readonly Plane[] }[] = [
  { program: 'losetup', package: 'mount', planes: BOTH },
  { program: 'mount', package: 'mount', planes: BOTH },
  { program: 'unshare', package: 'util-linux', planes: BOTH },
  { program: 'setpriv', package: 'util-linux', planes: BOTH },
  { program: 'mkfs.ext4', package: 'e2fsprogs', planes: BOTH },
  { program: 'dmsetup', package: 'dmsetup', planes: ['kernel'] },
  { program: 'iscsiadm', package: 'open-iscsi', planes: ['kernel'] },
  { program: 'fstrim', package: 'util-linux', planes: ['kernel'] },
];

/** Of the kernel plane, with the option that builds them. */
export const KERNEL_PLANE_MODULES: readonly { module: string; option: string; why: string }[] = [
  { module: 'dm_mod', option: 'CONFIG_BLK_DEV_DM', why: 'device-mapper' },
  { module: 'dm_clone', option: 'CONFIG_DM_CLONE', why: 'clones of volumes' },
  { module: 'dm_crypt', option: 'CONFIG_DM_CRYPT', why: 'encrypted volumes' },
  { module: 'iscsi_tcp', option: 'CONFIG_ISCSI_TCP', why: 'the iSCSI initiator' },
  { module: 'sd_mod', option: 'CONFIG_BLK_DEV_SD', why: 'disks of the iSCSI initiator' },
  { module: 'target_core_mod', option: 'CONFIG_TARGET_CORE', why: 'LIO' },
  { module: 'target_core_iblock', option: 'CONFIG_TCM_IBLOCK', why: 'exports of LIO' },
  { module: 'iscsi_target_mod', option: 'CONFIG_ISCSI_TARGET', why: 'the iSCSI target' },
];

/** FUSE_NOTIFY_RESEND. */
const RESEND_SINCE = [6, 9] as const;

/** Every capability with the reason of each no. Pure. */
export function assessHost(facts: HostFacts): Capability[] {
  const capabilities: Capability[] = [];
  const add = (
    what: string,
    planes: readonly Plane[],
    ok: boolean,
    yes: string,
    no: string,
    remedy: string,
  ) => capabilities.push({ what, planes, ok, detail: ok ? yes : no, remedy: ok ? null : remedy });

  add('root', BOTH, facts.isRoot, 'yes', 'this is not root', 'run it as root');
  for (const { program, package: name, planes } of PROGRAMS) {
    add(program, planes, facts.programs.has(program), 'there', 'no such program', `apt-get install ${name}`);
  }
  add(
    '/dev/loop-control',
    BOTH,
    facts.hasLoop,
    'there',
    'no loop devices',
    'modprobe loop (CONFIG_BLK_DEV_LOOP)',
  );
  add('/dev/fuse', ['userspace'], facts.hasFuse, 'there', 'no FUSE', 'modprobe fuse (CONFIG_FUSE_FS)');
  const resend = isAtLeast(facts.kernelRelease, RESEND_SINCE);
  add(
    'FUSE resend',
    ['userspace'],
    resend,
    `Linux ${facts.kernelRelease}`,
    `Linux ${facts.kernelRelease} forgets what a volume server had in hand when it dies`,
    `a kernel from Linux ${RESEND_SINCE.join('.')} on`,
  );
  for (const { module, option, why } of KERNEL_PLANE_MODULES) {
    const present = facts.modulesPresent.has(module);
    const loadable = facts.modulesLoadable.has(module);
    add(
      module,
      ['kernel'],
      present || loadable,
      present ? 'in the kernel' : 'as a module, loaded when it is needed',
      `this kernel has no ${module} (${why})`,
      module === 'dm_clone'
        ? `a kernel with ${option}; Debian's own has none: build the module from the package linux-source`
        : `a kernel with ${option}`,
    );
  }
  add(
    'configfs',
    ['kernel'],
    facts.hasConfigfs,
    'mounted',
    'not at /sys/kernel/config',
    'mount -t configfs configfs /sys/kernel/config',
  );
  add(
    'iscsid',
    ['kernel'],
    facts.iscsidRuns,
    'runs',
    'does not run',
    'systemctl start iscsid (package open-iscsi)',
  );
  return capabilities;
}

/** What keeps a host from a plane; empty: nothing. */
export function missingFor(plane: Plane, capabilities: readonly Capability[]): Capability[] {
  return capabilities.filter(({ planes, ok }) => !ok && planes.includes(plane));
}

function isAtLeast(release: string, [major, minor]: readonly [number, number]): boolean {
  const match = /^(\d+)\.(\d+)/.exec(release);
  if (!match) return false;
  const [found, foundMinor] = [Number(match[1]), Number(match[2])];
  return found > major || (found === major && foundMinor >= minor);
}
