import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PATIENCE } from '../base/patience.ts';
import { networkOf, runOf } from '../contract/machine-run.ts';
import { readMountTable } from '../host/mount-table.ts';
import { SHIM_FILES } from '../shim/protocol.ts';
import type { Instance, Place, Run, Subject } from '../shim/runtime.ts';
import {
  type Account,
  hostnameOf,
  type JailPlan,
  type JailTools,
  jailArguments,
  jailFstab,
  machineEnvironment,
  ownFilesystems,
  readAccount,
  resolveDevices,
  resolveHostFolders,
  resolveMountPath,
  resolverFolder,
} from './jail.ts';
import { JailProcess } from './jail-process.ts';
import { JailRun } from './run.ts';
import { within } from './within.ts';

/** All that makes a jail what it is. */
type Recipe = {
  jailDir: string;
  network: JailPlan['network'];
  account: Account;
  environment: Record<string, string>;
  fstab: { overlay: string; bind: string };
  /** Of `unshare`. */
  args: string[];
};

/** The process tree of one machine, in its jail. */
export class JailInstance implements Instance {
  readonly #place: Place;
  readonly #tools: JailTools;
  /** A jail that waits for its command. `key`: what it was made for. */
  #prepared: { key: string; jail: JailProcess } | undefined;

  constructor(place: Place, tools: JailTools) {
    this.#place = place;
    this.#tools = tools;
  }

  async prepare(subject: Subject): Promise<void> {
    const recipe = this.#recipe(subject);
    const key = keyOf(subject, recipe);
    if (this.#prepared?.key === key && this.#prepared.jail.running) return;
    await this.clear();
    try {
      const jail = await this.#makeJail(subject, recipe);
      this.#prepared = { key, jail };
      await this.#inTime(jail, jail.built());
    } catch (error) {
      await this.clear();
      await this.remove();
      throw error;
    }
  }

  async start(subject: Subject): Promise<Run> {
    const recipe = this.#recipe(subject);
    const prepared = this.#takePrepared(keyOf(subject, recipe));
    // A jail that stood by may be dying just now: then, too, another one is made.
    const run = prepared && (await this.#launch(recipe, prepared).catch(() => null));
    if (run) return run;
    await this.clear();
    return this.#launch(recipe, await this.#makeJail(subject, recipe));
  }

  async startAgain(subject: Subject): Promise<Run> {
    const recipe = this.#recipe(subject);
    return this.#launch(recipe, await this.#spawnJail(recipe));
  }

  statistics(): { memoryBytes: number | null; outOfMemoryKills: number } {
    const { cgroup } = this.#place;
    return { memoryBytes: cgroup.memoryBytes(), outOfMemoryKills: cgroup.outOfMemoryKills() };
  }

  async clear(): Promise<void> {
    const jail = this.#prepared?.jail;
    this.#prepared = undefined;
    jail?.killOuter();
    await this.#place.cgroup.killAll(PATIENCE.kill.ms);
    await jail?.exited;
  }

  remove(): Promise<void> {
    return this.#place.cgroup.remove();
  }

  #recipe({ name, config }: Subject): Recipe {
    const { runtimeDir, hidden, cgroup } = this.#place;
    const run = runOf(config);
    const { kind: network } = networkOf(config);
    const hostname = hostnameOf(name);
    const account = readAccount(run.user);
    const environment = machineEnvironment(run, hostname, account);
    const plan: JailPlan = {
      jailDir: join(runtimeDir, 'jail'),
      hostname,
      network,
      workingDirectory: run.workingDirectory ?? '/',
      hostFolders: resolveHostFolders(run.hostFolders ?? []),
      devices: resolveDevices(run.devices ?? []),
      hidden,
      ownFilesystems: ownFilesystems(readMountTable()),
      resolverFolder: network === 'host' ? resolverFolder() : null,
      volume:
        config.volume?.mountPath === undefined
          ? null
          : {
              source: join(runtimeDir, SHIM_FILES.filesystem),
              place: resolveMountPath(config.volume.mountPath),
            },
      nbdFolder: config.volume?.nbd === true ? join(runtimeDir, SHIM_FILES.nbd) : null,
      cgroupProcs: cgroup.procsFiles,
    };
    return {
      jailDir: plan.jailDir,
      network,
      account,
      environment,
      fstab: { overlay: jailFstab(plan, 'overlay'), bind: jailFstab(plan, 'bind') },
      args: jailArguments(plan, this.#tools, account, environment, run.command),
    };
  }

  /** Begins a jail in a cgroup of its own. */
  async #makeJail(subject: Subject, recipe: Recipe): Promise<JailProcess> {
    const { cgroup } = this.#place;
    await cgroup.killAll(PATIENCE.kill.ms);
    await cgroup.remove();
    await cgroup.create(subject.config.resources);
    return this.#spawnJail(recipe);
  }

  async #spawnJail({ jailDir, fstab, args }: Recipe): Promise<JailProcess> {
    await mkdir(jailDir, { recursive: true });
    await writeFile(`${jailDir}.fstab.overlay`, fstab.overlay);
    await writeFile(`${jailDir}.fstab.bind`, fstab.bind);
    return new JailProcess(this.#tools.unshare, args, this.#place.log);
  }

  #takePrepared(key: string): JailProcess | undefined {
    const prepared = this.#prepared;
    if (prepared?.key !== key || !prepared.jail.running) return undefined;
    this.#prepared = undefined;
    return prepared.jail;
  }

  /** Kills a jail that a device holds up; the promise then rejects. */
  async #inTime<T>(jail: JailProcess, promise: Promise<T>): Promise<T> {
    if (!(await within(this.#place.clock, PATIENCE.launch.ms, promise))) jail.killOuter();
    return promise;
  }

  /** Executes the command in its jail. */
  async #launch({ account, environment, network }: Recipe, jail: JailProcess): Promise<Run> {
    const { note, cgroup, clock } = this.#place;
    const tools = this.#tools;
    jail.go();
    for (const line of await this.#inTime(jail, jail.started())) note(line);
    if (tools.tini === null)
      note('tini is not installed: the command is PID 1 and ignores unhandled signals');
    return new JailRun({ jail, tools, account, environment, network, cgroup, clock, note });
  }
}

/** The same for two starts that a jail made for one of them serves as well for the other. */
function keyOf(subject: Subject, recipe: Recipe): string {
  return JSON.stringify([subject.machineId, subject.config.resources, recipe.args, recipe.fstab]);
}
