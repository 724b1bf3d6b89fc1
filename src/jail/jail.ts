import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';
import { entryPoint } from '../base/entry-point.ts';
import { GodwitError } from '../base/errors.ts';
import type { MachineConfig, MachineNetwork, ProcessRun } from '../contract/machine-config.ts';
import { runOf } from '../contract/machine-run.ts';
import type { MountEntry } from '../host/mount-table.ts';
import { findProgram } from '../host/program.ts';

/**
 * How a machine is shut in: mount, pid, uts, ipc and (network `none`) net namespaces of its own, and as root
 * an overlay of the host's root whose upper side is a tmpfs that is gone after the stop. Only the volume, at
 * its mount path, stays.
 *
 *   /            overlay: host's / below, tmpfs above (charged to the memory of the machine)
 *   /dev         null zero full random urandom tty, pts and shm of its own, and the devices that the configuration names
 *   /proc /sys   of its own namespaces; /sys read-only
 *   /tmp /run    empty tmpfs
 *   <folders>    read-only, those that the configuration names
 *   <hidden>     empty tmpfs over the fleet's own folders
 *   <mountPath>  the filesystem of the volume
 *   /run/godwit  disk.sock, the volume as an NBD export, where the configuration asks for it
 *
 * This file decides (pure); jail-init.sh does, in as few programs as can be, because a start is part of the
 * interruption of a move.
 */
export type JailPlan = {
  /** Tmpfs of the machine is mounted here, in its own namespace only. */
  jailDir: string;
  hostname: string;
  network: MachineNetwork['kind'];
  workingDirectory: string;
  /** Folders of the host that the machine sees read-only, without symbolic links. */
  hostFolders: readonly string[];
  /** Character devices of the host that the machine sees too. */
  devices: readonly string[];
  /** Folders of the host that the machine sees empty. */
  hidden: readonly string[];
  /**
   * Folders below / that are filesystems of their own on this host, so that the overlay of / does not show
   * them.
   */
  ownFilesystems: readonly string[];
  /** Folder with the host's resolv.conf when it is not in /etc, else null. */
  resolverFolder: string | null;
  /** `place` is absolute, without symbolic links. */
  volume: { source: string; place: string } | null;
  /** Folder of the host with the NBD socket of the volume. */
  nbdFolder: string | null;
  cgroupProcs: readonly string[];
};

export type Account = {
  uid: number;
  gid: number;
  /** Name for the supplementary groups; null: it has none. */
  name: string | null;
  home: string;
};

/** Programs of the host that a jail is made of; absolute paths. */
export type JailTools = {
  sh: string;
  unshare: string;
  nsenter: string;
  setpriv: string;
  setsid: string;
  env: string;
  /**
   * Init process for PID 1; without it the command itself is PID 1, and ignores signals that it has no
   * handler for.
   */
  tini: string | null;
};

/** Rejects with `MACHINE_TOOLS_MISSING`, naming every missing program. */
export function findJailTools(): JailTools {
  const missing: string[] = [];
  const need = (name: string): string => {
    const path = findProgram(name);
    if (path === null) missing.push(name);
    return path ?? name;
  };
  const tools = {
    sh: need('sh'),
    unshare: need('unshare'),
    nsenter: need('nsenter'),
    setpriv: need('setpriv'),
    setsid: need('setsid'),
    env: need('env'),
    tini: findProgram('tini'),
  };
  for (const name of ['mount', 'umount', 'pivot_root']) need(name);
  if (missing.length > 0) {
    throw new GodwitError('MACHINE_TOOLS_MISSING', `this host lacks ${missing.join(', ')}`, {
      values: { programs: missing.join(',') },
      nextAction: 'Install the packages util-linux and mount.',
    });
  }
  return tools;
}

/** What a machine may do as root: what Docker allows, without making device nodes. capabilities(7). */
const CAPABILITIES = [
  'chown',
  'dac_override',
  'fowner',
  'fsetid',
  'kill',
  'setgid',
  'setuid',
  'setpcap',
  'net_bind_service',
  'net_raw',
  'sys_chroot',
  'sys_nice',
  'ipc_lock',
  'setfcap',
] as const;

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const SCRIPT = fileURLToPath(entryPoint('jail/jail-init.sh'));

/** Folders that distributions put on filesystems of their own. */
const PLACES_OF_OWN = ['/usr', '/usr/local', '/etc', '/opt', '/var', '/var/lib', '/var/log', '/home', '/srv'];
/** Places that a jail makes anew; a volume cannot be mounted over them. */
const NBD_PLACE = '/run/godwit';
const RESERVED_PLACES = ['/', '/proc', '/sys', '/dev', '/dev/shm', '/dev/pts', '/run', '/tmp'];

export function ownFilesystems(table: readonly MountEntry[]): string[] {
  return PLACES_OF_OWN.filter((place) => table.some((entry) => entry.mountPoint === place));
}

/**
 * Files for `mount -a -T`, which makes all mounts in one process. `bind`: for hosts without overlay.
 * fstab(5): device, mount point, type, options; spaces are `\040`.
 */
export function jailFstab(plan: JailPlan, root: 'overlay' | 'bind'): string {
  const { jailDir } = plan;
  const inside = (place: string) => join(jailDir, 'root', place);
  const lines: [string, string, string, string][] = [];
  for (const [index, place] of plan.ownFilesystems.entries()) {
    if (root === 'bind') lines.push([place, inside(place), 'none', 'bind']);
    else {
      const options = `lowerdir=${place},upperdir=${jailDir}/upper${index},workdir=${jailDir}/work${index}`;
      lines.push(['overlay', inside(place), 'overlay', options]);
    }
  }
  lines.push(
    [join(jailDir, 'dev'), inside('/dev'), 'none', 'bind'],
    ['devpts', inside('/dev/pts'), 'devpts', 'newinstance,ptmxmode=0666,mode=620,nosuid,noexec'],
    ['tmpfs', inside('/dev/shm'), 'tmpfs', 'X-mount.mkdir,mode=1777,nosuid,nodev'],
    ['proc', inside('/proc'), 'proc', 'nosuid,nodev,noexec'],
    ['sysfs', inside('/sys'), 'sysfs', 'ro,nosuid,nodev,noexec'],
    ['tmpfs', inside('/tmp'), 'tmpfs', 'mode=1777,nosuid,nodev'],
    ['tmpfs', inside('/run'), 'tmpfs', 'X-mount.mkdir,mode=755,nosuid,nodev'],
    // The old root goes here for a moment.
    ['tmpfs', inside('/run/.host'), 'tmpfs', 'X-mount.mkdir,size=4k'],
  );
  for (const folder of plan.hostFolders) {
    lines.push([folder, inside(folder), 'none', 'bind,ro,X-mount.mkdir']);
  }
  for (const hidden of plan.hidden) {
    const shown = plan.hostFolders.some((folder) => isWithin(hidden, folder));
    if (!shown && RESERVED_PLACES.some((place) => place !== '/' && isWithin(hidden, place))) continue;
    lines.push(['tmpfs', inside(hidden), 'tmpfs', 'X-mount.mkdir,mode=755,nosuid,nodev']);
  }
  if (plan.resolverFolder !== null) {
    lines.push([plan.resolverFolder, inside(plan.resolverFolder), 'none', 'bind,ro,X-mount.mkdir']);
  }
  if (plan.volume !== null) {
    lines.push([plan.volume.source, inside(plan.volume.place), 'none', 'bind,X-mount.mkdir']);
  }
  if (plan.nbdFolder !== null) {
    // The folder and not the socket, which is another one after every restart of the volume server. Read-only
    // does not keep from connecting.
    lines.push([plan.nbdFolder, inside(NBD_PLACE), 'none', 'bind,ro,nosuid,nodev,noexec,X-mount.mkdir']);
  }
  return `${lines.map((fields) => fields.map(escapeFstab).join(' ')).join('\n')}\n`;
}

/** Arguments of `unshare` that start the machine: namespaces, jail-init.sh, account, environment, command. */
export function jailArguments(
  plan: JailPlan,
  tools: JailTools,
  account: Account,
  environment: Readonly<Record<string, string>>,
  command: readonly string[],
): string[] {
  const folders = ['upper', 'work', 'root', 'dev/pts'];
  for (const index of plan.ownFilesystems.keys()) folders.push(`upper${index}`, `work${index}`);
  folders.push(...plan.devices.map((device) => dirname(device.slice(1))));
  return [
    ...['--mount', '--pid', '--uts', '--ipc', ...(plan.network === 'none' ? ['--net'] : [])],
    // slave: an unmount on the host reaches the machine where the host's mounts are shared.
    ...['--propagation', 'slave', '--fork', '--kill-child', '--', tools.sh, SCRIPT],
    ...[plan.jailDir, plan.hostname, plan.network, plan.workingDirectory],
    ...[plan.cgroupProcs.join('\n'), folders.join('\n'), plan.devices.join('\n')],
    ...asAccount(tools, account, environment),
    ...(tools.tini === null ? [] : [tools.tini, '--']),
    ...command,
  ];
}

/**
 * Program and arguments that run `command` inside a running machine: in its cgroups, all its namespaces, its
 * root and working directory, as its account. `initPid` is its PID 1 as the host counts. `hasTerminal`: the
 * command leads a session whose terminal is its standard input.
 */
export function enterCommand(
  enter: {
    initPid: number;
    network: MachineNetwork['kind'];
    cgroupProcs: readonly string[];
    tools: JailTools;
    account: Account;
    environment: Readonly<Record<string, string>>;
    hasTerminal?: boolean;
  },
  command: readonly string[],
): { file: string; args: string[] } {
  const { tools } = enter;
  // One small shell: it must join the cgroups while it still sees the host's files.
  const join = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1"; shift; n=$((n-1)); done; exec "$@"';
  const joined = ['/proc/self/oom_score_adj', ...enter.cgroupProcs];
  return {
    file: tools.sh,
    args: [
      ...['-c', join, 'enter', String(joined.length), ...joined],
      ...[tools.nsenter, '--target', String(enter.initPid), '--mount', '--pid', '--uts', '--ipc'],
      ...(enter.network === 'none' ? ['--net'] : []),
      ...['--root', '--wd', '--'],
      // Inside: a session's leader must have a number in the pid namespace, or shells do not know their own
      // terminal.
      ...(enter.hasTerminal === true ? [tools.setsid, '--ctty'] : []),
      ...asAccount(tools, enter.account, enter.environment),
      ...command,
    ],
  };
}

/**
 * Environment of everything in the machine; the configuration overrides. Rejects `MACHINE_BAD_ENVIRONMENT`.
 */
export function machineEnvironment(
  config: Pick<ProcessRun, 'env'>,
  hostname: string,
  account: Account,
): Record<string, string> {
  for (const [name, value] of Object.entries(config.env)) {
    if (name !== '' && !/[=\0]/.test(name) && !value.includes('\0')) continue;
    throw new GodwitError(
      'MACHINE_BAD_ENVIRONMENT',
      `no environment variable can be called ${JSON.stringify(name)}`,
      {
        values: { name },
        retry: 'never',
        nextAction: 'Names must not be empty or hold "=", and neither names nor values may hold a zero byte.',
      },
    );
  }
  return {
    PATH: DEFAULT_PATH,
    HOME: account.home,
    USER: account.name ?? String(account.uid),
    HOSTNAME: hostname,
    ...config.env,
  };
}

/** A machine's name as a host name: letters, digits and dashes, 1 to 63 of them (RFC 1123). */
export function hostnameOf(name: string): string {
  const cleaned = name.toLowerCase().replace(/[^a-z0-9-]+/g, '-');
  return cleaned.slice(0, 63).replace(/^-+|-+$/g, '') || 'machine';
}

/**
 * Who `user` (name, number, or undefined for root) is according to /etc/passwd (passwd(5)).
 * Rejects `MACHINE_UNKNOWN_USER` for a name that is not there; a number may be anyone.
 */
export function resolveAccount(user: string | undefined, passwd: string): Account {
  const wanted = user ?? '0';
  const numeric = /^\d{1,10}$/.test(wanted);
  for (const line of passwd.split('\n')) {
    const [name, , uid, gid, , home] = line.split(':');
    if (name === undefined || uid === undefined || gid === undefined) continue;
    if (numeric ? Number(uid) === Number(wanted) : name === wanted) {
      return { uid: Number(uid), gid: Number(gid), name, home: home || '/' };
    }
  }
  if (numeric && Number(wanted) < 2 ** 32 - 1) {
    return { uid: Number(wanted), gid: Number(wanted), name: null, home: '/' };
  }
  throw new GodwitError('MACHINE_UNKNOWN_USER', `this host has no user ${wanted}`, {
    values: { user: wanted },
    retry: 'never',
    nextAction: 'Add the user to every host of the fleet (adduser --system), or give its number.',
  });
}

export function readAccount(user: string | undefined): Account {
  return resolveAccount(user, readFileSync('/etc/passwd', 'utf8'));
}

/**
 * The mount path without symbolic links of the host (`/var/run/x` is `/run/x`): a mount would follow them out
 * of the jail. Rejects `MACHINE_BAD_MOUNT_PATH` for a place that the jail itself needs.
 */
export function resolveMountPath(mountPath: string): string {
  let existing = posix.normalize(mountPath).replace(/(.)\/+$/, '$1');
  let rest = '';
  while (!existsSync(existing)) {
    rest = join(posix.basename(existing), rest);
    existing = dirname(existing);
  }
  const place = join(realpathSync(existing), rest).replace(/(.)\/+$/, '$1');
  const reserved =
    RESERVED_PLACES.includes(place) ||
    ['/proc', '/sys', '/run/.host', NBD_PLACE].some((taken) => isWithin(place, taken));
  if (!mountPath.startsWith('/') || reserved || mountPath.includes('\0')) {
    throw new GodwitError('MACHINE_BAD_MOUNT_PATH', `a volume cannot be mounted at ${mountPath}`, {
      values: { mountPath },
      retry: 'never',
      nextAction: 'Choose a folder of its own for the volume, such as /data or /var/lib/postgresql.',
    });
  }
  return place;
}

/**
 * Everything about `config` that this host can refuse before a start. Rejects `MACHINE_UNKNOWN_USER`,
 * `MACHINE_BAD_MOUNT_PATH`, `MACHINE_BAD_HOST_FOLDER`, `MACHINE_BAD_DEVICE`, `MACHINE_VOLUME_OUT_OF_REACH`.
 */
export function checkHostCanRun(config: MachineConfig): void {
  const { user, hostFolders, devices } = runOf(config);
  readAccount(user);
  const { volume } = config;
  if (volume?.mountPath !== undefined) resolveMountPath(volume.mountPath);
  else if (volume !== undefined && volume.nbd !== true) {
    throw new GodwitError(
      'MACHINE_VOLUME_OUT_OF_REACH',
      'the machine has a volume, and no way to get at it',
      {
        values: { volumeId: volume.volumeId },
        retry: 'never',
        nextAction: 'Give `mountPath` to have its filesystem mounted, or `nbd: true` for a socket.',
      },
    );
  }
  resolveHostFolders(hostFolders ?? []);
  resolveDevices(devices ?? []);
}

/**
 * The program that a machine would run and that this host does not have; null: it has it, or nobody can know.
 * What is on the machine's own volume, relative to its folder, or in the /tmp that it gets is not looked for.
 */
export function missingProgram(config: MachineConfig): string | null {
  const { command, env } = runOf(config);
  const program = command[0] ?? '';
  const mountPath = config.volume?.mountPath;
  const isUnseen = (path: string) =>
    !path.startsWith('/') || isWithin(path, '/tmp') || (mountPath !== undefined && isWithin(path, mountPath));
  const places = program.includes('/')
    ? [program]
    : (env.PATH ?? DEFAULT_PATH).split(':').map((folder) => `${folder}/${program}`);
  return places.some((path) => isUnseen(posix.normalize(path)) || isProgram(path)) ? null : program;
}

function isProgram(path: string): boolean {
  try {
    const found = statSync(path);
    return found.isFile() && (found.mode & 0o111) !== 0;
  } catch {
    return false;
  }
}

/** Rejects `MACHINE_BAD_DEVICE` for what is not a character device of this host. */
export function resolveDevices(devices: readonly string[]): readonly string[] {
  for (const device of devices) {
    const isDevice =
      device.startsWith('/dev/') &&
      !/[\0\n]/.test(device) &&
      existsSync(device) &&
      realpathSync(device) === device &&
      statSync(device).isCharacterDevice();
    if (isDevice) continue;
    throw new GodwitError('MACHINE_BAD_DEVICE', `${device} is not a character device of this host`, {
      values: { device },
      retry: 'never',
      nextAction: 'Name devices below /dev that exist on every host of the fleet.',
    });
  }
  return devices;
}

/**
 * Rejects `MACHINE_BAD_HOST_FOLDER` for what is not a folder of this host, or a place that a machine has of
 * its own.
 */
export function resolveHostFolders(folders: readonly string[]): string[] {
  return folders.map((folder) => {
    const path = posix.normalize(folder).replace(/(.)\/+$/, '$1');
    // The machine finds it under the name that it was given, so that name must lead nowhere else.
    const isFolder =
      !folder.includes('\0') &&
      existsSync(path) &&
      realpathSync(path) === path &&
      statSync(path).isDirectory();
    if (isFolder && !RESERVED_PLACES.includes(path) && !isWithin(path, '/proc') && !isWithin(path, '/sys'))
      return path;
    throw new GodwitError(
      'MACHINE_BAD_HOST_FOLDER',
      `${folder} is not a folder that a machine can be shown`,
      {
        values: { folder },
        retry: 'never',
        nextAction: 'Name folders that exist on every host of the fleet, without symbolic links on the way.',
      },
    );
  });
}

/**
 * Folder below /run in which the host keeps its resolv.conf (systemd-resolved, NetworkManager), else null.
 */
export function resolverFolder(): string | null {
  try {
    const folder = dirname(realpathSync('/etc/resolv.conf'));
    return folder.startsWith('/run/') ? folder : null;
  } catch {
    return null;
  }
}

function asAccount(
  tools: JailTools,
  account: Account,
  environment: Readonly<Record<string, string>>,
): string[] {
  const groups = account.name === null || account.uid === 0 ? '--clear-groups' : '--init-groups';
  return [
    ...[tools.setpriv, `--reuid=${account.uid}`, `--regid=${account.gid}`, groups],
    `--bounding-set=-all,${CAPABILITIES.map((name) => `+${name}`).join(',')}`,
    '--inh-caps=-all',
    // The environment comes last: LD_PRELOAD and the like must not reach the programs that make the jail.
    ...[tools.env, '-i', '--', ...Object.entries(environment).map(([name, value]) => `${name}=${value}`)],
  ];
}

function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

function escapeFstab(field: string): string {
  return field.replace(/[\\ \t\n#]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, '0')}`);
}
