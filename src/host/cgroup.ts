import { existsSync, readFileSync } from 'node:fs';
import { mkdir, rmdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pauses } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { GodwitError, systemErrorCode } from '../base/errors.ts';
import { parseMountTable } from './mount-table.ts';

/**
 * The control groups of one machine: they limit it, count it and, before all, know every process of it, so
 * that a stop can promise that none is left.
 *
 * Version 2 is one folder (Documentation/admin-guide/cgroup-v2.rst). Version 1 is one folder a controller
 * (Documentation/admin-guide/cgroup-v1/), and where the version 2 hierarchy is mounted beside it (`unified`,
 * without controllers) that one does the killing: `cgroup.kill` is atomic, while the freezer of version 1
 * needs a loop.
 *
 *   v2   <root>/godwit/<name>/{memory.max,cpu.max,pids.max,cgroup.kill,cgroup.events}
 *   v1   <memory>/godwit/<name>/memory.limit_in_bytes   <cpu>/godwit/<name>/cpu.cfs_quota_us
 *        <pids>/godwit/<name>/pids.max                  <freezer>/godwit/<name>/freezer.state   <unified>/godwit/<name>/cgroup.kill
 */
export type CgroupLayout = {
  version: 1 | 2;
  /** Mount point of a controller's hierarchy; null where there is none. The same for all on version 2. */
  memory: string | null;
  cpu: string | null;
  pids: string | null;
  /** Version 1 only. */
  freezer: string | null;
  /** Mount point of the version 2 hierarchy, which has cgroup.kill (kernel 5.14). */
  unified: string | null;
};

export type CgroupLimits = {
  memoryBytes?: number | undefined;
  cpus?: number | undefined;
  processesMax?: number | undefined;
};

/** Parent of the groups of all machines. */
const PARENT = 'godwit';
const LOOK_AGAIN = { firstMs: 1, maxMs: 50 };
const CPU_PERIOD_US = 100_000;

/** Which hierarchies a host has, from its mount table and the version 2 root's `cgroup.controllers`. */
export function cgroupLayout(mountinfo: string, unifiedControllers: string): CgroupLayout {
  const table = parseMountTable(mountinfo);
  const unified = table.find((entry) => entry.filesystem === 'cgroup2')?.mountPoint ?? null;
  const v1 = (controller: string): string | null =>
    table.find((entry) => entry.filesystem === 'cgroup' && entry.superOptions.split(',').includes(controller))
      ?.mountPoint ?? null;
  const onV1 = { memory: v1('memory'), cpu: v1('cpu'), pids: v1('pids'), freezer: v1('freezer') };
  if (Object.values(onV1).some((place) => place !== null)) return { version: 1, ...onV1, unified };
  const controllers = unifiedControllers.trim().split(/\s+/);
  const on = (controller: string): string | null => (controllers.includes(controller) ? unified : null);
  return { version: 2, memory: on('memory'), cpu: on('cpu'), pids: on('pids'), freezer: null, unified };
}

export function readCgroupLayout(): CgroupLayout {
  const mountinfo = readFileSync('/proc/self/mountinfo', 'utf8');
  const unified = cgroupLayout(mountinfo, '').unified;
  let controllers = '';
  try {
    if (unified !== null) controllers = readFileSync(join(unified, 'cgroup.controllers'), 'utf8');
  } catch {
    // the hierarchy is there without the file only when it is not cgroup2 after all: no controllers then
  }
  return cgroupLayout(mountinfo, controllers);
}

export type CgroupPlan = {
  /** Every folder of the group, to be made and removed. */
  folders: string[];
  /**
   * Written after the folders are there; absent limits are lifted, so that an old folder does not keep them.
   */
  settings: {
    file: string;
    value: string;
    limit: 'memoryBytes' | 'cpus' | 'processesMax';
    wanted: boolean;
  }[];
  /** Limits that were asked for and whose controller is missing. */
  missing: string[];
  /** Folder with `cgroup.kill`, when the kernel has it. */
  unifiedFolder: string | null;
  freezerFolder: string | null;
  memoryUsageFile: string | null;
  /** File with a line `oom_kill <n>`. */
  outOfMemoryFile: string | null;
};

/**
 * What to make and write for a group of that name; decides, touches nothing. `name` is one path component.
 */
export function planCgroup(layout: CgroupLayout, name: string, limits: CgroupLimits): CgroupPlan {
  const folderOf = (root: string | null): string | null => (root === null ? null : join(root, PARENT, name));
  const memory = folderOf(layout.memory);
  const cpu = folderOf(layout.cpu);
  const pids = folderOf(layout.pids);
  const v2 = layout.version === 2;
  const quotaUs = limits.cpus === undefined ? null : Math.max(1_000, Math.round(limits.cpus * CPU_PERIOD_US));
  const settings: CgroupPlan['settings'] = [];
  if (memory !== null) {
    settings.push({
      file: join(memory, v2 ? 'memory.max' : 'memory.limit_in_bytes'),
      value: limits.memoryBytes?.toString() ?? (v2 ? 'max' : '-1'),
      limit: 'memoryBytes',
      wanted: limits.memoryBytes !== undefined,
    });
  }
  if (cpu !== null) {
    settings.push({
      file: join(cpu, v2 ? 'cpu.max' : 'cpu.cfs_quota_us'),
      value: v2 ? `${quotaUs ?? 'max'} ${CPU_PERIOD_US}` : (quotaUs?.toString() ?? '-1'),
      limit: 'cpus',
      wanted: quotaUs !== null,
    });
  }
  if (pids !== null) {
    settings.push({
      file: join(pids, 'pids.max'),
      // One more for the init process of the machine, which is ours.
      value: limits.processesMax === undefined ? 'max' : String(limits.processesMax + 1),
      limit: 'processesMax',
      wanted: limits.processesMax !== undefined,
    });
  }
  const missing: string[] = [];
  if (limits.memoryBytes !== undefined && memory === null) missing.push('memory');
  if (limits.cpus !== undefined && cpu === null) missing.push('cpu');
  if (limits.processesMax !== undefined && pids === null) missing.push('pids');
  const freezerFolder = folderOf(layout.freezer);
  const unifiedFolder = folderOf(layout.unified);
  const folders = [memory, cpu, pids, freezerFolder, unifiedFolder].filter((folder) => folder !== null);
  return {
    folders: [...new Set(folders)],
    settings,
    missing,
    unifiedFolder,
    freezerFolder,
    memoryUsageFile: memory === null ? null : join(memory, v2 ? 'memory.current' : 'memory.usage_in_bytes'),
    outOfMemoryFile: memory === null ? null : join(memory, v2 ? 'memory.events' : 'memory.oom_control'),
  };
}

/**
 * Throws `MACHINE_CGROUP_MISSING` when the host has no hierarchy at all, or lacks the controller of a limit
 * that was asked for.
 */
export function checkLimits({ missing, folders }: CgroupPlan): void {
  if (missing.length === 0 && folders.length > 0) return;
  throw new GodwitError(
    'MACHINE_CGROUP_MISSING',
    folders.length === 0
      ? 'this host has no cgroup hierarchy mounted'
      : `this host has no cgroup controller for: ${missing.join(', ')}`,
    {
      values: { controllers: missing.join(',') },
      retry: 'never',
      nextAction:
        'Mount cgroup2 at /sys/fs/cgroup, or leave the limit out of the configuration of the machine.',
    },
  );
}

/** The group of one machine on this host. */
export class Cgroup {
  readonly name: string;
  readonly #layout: CgroupLayout;
  readonly #clock: Clock;
  #plan: CgroupPlan;

  /** Names a group that may or may not exist; touches nothing. */
  constructor(name: string, options: { layout: CgroupLayout; clock: Clock }) {
    this.name = name;
    this.#layout = options.layout;
    this.#clock = options.clock;
    this.#plan = planCgroup(options.layout, name, {});
  }

  /** Files into which a process writes 0 to join; to be done before the exec of anything foreign. */
  get procsFiles(): string[] {
    return this.#plan.folders.map((folder) => join(folder, 'cgroup.procs'));
  }

  get folders(): readonly string[] {
    return this.#plan.folders;
  }

  /**
   * Makes the group and sets its limits; may be repeated with others. Rejects `MACHINE_CGROUP_MISSING` when
   * the host has no hierarchy at all, or lacks the controller of a limit that was asked for;
   * `MACHINE_CGROUP_FAILED` when the kernel refuses.
   */
  async create(limits: CgroupLimits): Promise<void> {
    const plan = planCgroup(this.#layout, this.name, limits);
    checkLimits(plan);
    this.#plan = plan;
    for (const folder of plan.folders) {
      await mkdir(dirname(folder), { recursive: true });
      if (this.#layout.version === 2) await this.#enableControllers(dirname(folder));
      await mkdir(folder, { recursive: true });
    }
    for (const { file, value, limit, wanted } of plan.settings) {
      try {
        await writeFile(file, value);
      } catch (cause) {
        // A limit that nobody asked for needs no lifting where the controller could not be enabled.
        if (!wanted) continue;
        throw new GodwitError('MACHINE_CGROUP_FAILED', `cannot set the limit ${limit} to ${value}`, {
          values: { file, value, systemCode: systemErrorCode(cause) ?? null },
          retry: 'never',
          nextAction: 'Check that the controller is enabled in cgroup.subtree_control of the parent group.',
          cause,
        });
      }
    }
  }

  /** Numbers of the processes in the group, as this process sees them. */
  processes(): number[] {
    const pids = new Set<number>();
    for (const file of this.procsFiles) {
      let text = '';
      try {
        // Synchronous: a group's files are answered from memory, and stops are in a hurry.
        text = readFileSync(file, 'utf8');
      } catch (error) {
        // ENOENT: no such group; ENODEV: it is just being removed.
        if (systemErrorCode(error) !== 'ENOENT' && systemErrorCode(error) !== 'ENODEV') throw error;
      }
      for (const line of text.split('\n')) if (line !== '') pids.add(Number(line));
    }
    // 0: a process of a pid namespace that is not below ours.
    pids.delete(0);
    return [...pids];
  }

  /**
   * Kills every process of the group and resolves when none is left. Rejects `MACHINE_KILL_STUCK` with the
   * pids after `timeoutMs`: they hang in the kernel.
   */
  async killAll(timeoutMs: number): Promise<void> {
    const deadlineMs = this.#clock.monotonicMs() + timeoutMs;
    const pause = pauses(this.#clock, LOOK_AGAIN);
    for (;;) {
      const pids = this.processes();
      if (pids.length === 0) return;
      await this.#kill(pids);
      if (this.#clock.monotonicMs() >= deadlineMs) {
        throw new GodwitError('MACHINE_KILL_STUCK', `${pids.length} processes do not end after SIGKILL`, {
          values: { pids: pids.slice(0, 20).join(','), cgroup: this.name },
          retry: 'later',
          nextAction: 'They wait for a device; look at the volume of the machine, then stop it again.',
        });
      }
      await pause();
    }
  }

  /** Removes the (empty) group. Retries for a second: the kernel lets go of dead processes a little later. */
  async remove(): Promise<void> {
    for (const folder of this.#plan.folders) {
      for (let attempt = 0; ; attempt++) {
        try {
          await rmdir(folder);
          break;
        } catch (error) {
          if (systemErrorCode(error) === 'ENOENT') break;
          if (attempt === 40) throw error;
          await this.#clock.sleep(Math.min(1 + attempt, 50));
        }
      }
    }
  }

  /** Memory that is charged to the machine, page cache included; null where it cannot be told. */
  memoryBytes(): number | null {
    if (this.#plan.memoryUsageFile === null) return null;
    try {
      return Number(readFileSync(this.#plan.memoryUsageFile, 'utf8').trim());
    } catch {
      return null;
    }
  }

  /** Processes that the kernel killed because the machine had no memory left, since the group was made. */
  outOfMemoryKills(): number {
    if (this.#plan.outOfMemoryFile === null) return 0;
    try {
      return parseOutOfMemoryKills(readFileSync(this.#plan.outOfMemoryFile, 'utf8'));
    } catch {
      return 0;
    }
  }

  async #enableControllers(parent: string): Promise<void> {
    for (const group of [dirname(parent), parent]) {
      for (const controller of ['memory', 'cpu', 'pids'] as const) {
        if (this.#layout[controller] === null) continue;
        // One by one: a refused one must not take the others with it. A missing one shows when its limit is
        // set.
        await writeFile(join(group, 'cgroup.subtree_control'), `+${controller}`).catch(() => {});
      }
    }
  }

  async #kill(pids: number[]): Promise<void> {
    const { unifiedFolder, freezerFolder } = this.#plan;
    const killFile = unifiedFolder === null ? null : join(unifiedFolder, 'cgroup.kill');
    if (killFile !== null && existsSync(killFile)) await writeFile(killFile, '1').catch(() => {});
    // A frozen group cannot fork away from the loop; SIGKILL takes effect at the thaw.
    const freezer = freezerFolder === null ? null : join(freezerFolder, 'freezer.state');
    const freeze = killFile === null && freezer !== null;
    if (freeze) await writeFile(freezer, 'FROZEN').catch(() => {});
    for (const pid of freeze ? this.processes() : pids) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // gone
      }
    }
    if (freeze) await writeFile(freezer, 'THAWED').catch(() => {});
  }
}

/** The number on the line `oom_kill <n>` of memory.events (v2) or memory.oom_control (v1); 0 without one. */
export function parseOutOfMemoryKills(text: string): number {
  return Number(/^oom_kill (\d+)$/m.exec(text)?.[1] ?? 0);
}
