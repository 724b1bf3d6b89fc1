import { existsSync } from 'node:fs';
import { GodwitError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { MapperTable } from './mapper-table.ts';
import { encodeMapperTable } from './mapper-table.ts';
import { failedError, mustRun, type ToolOutput, type Tools, unknownOutputError } from './tools.ts';

/** Kernel folder of the nodes; /dev/mapper/control is there when the driver is. */
export const MAPPER_FOLDER = '/dev/mapper';

/** A suspend waits for what is in flight, which may wait for a source that is away. */
const SUSPEND_DEADLINE_MS = PATIENCE.suspend.ms;

/** First number of the versions of linear, clone and crypt, since each of them is there. */
const TARGET_VERSION = 1;

/** Longest name (DM_NAME_LEN of include/uapi/linux/dm-ioctl.h, with its final zero). */
const NAME_CHARACTERS_MAX = 127;

/**
 * Devices of the kernel's device-mapper by dmsetup(8). Tables go in by standard input: that of dm-crypt has a
 * key. Where udev does not run, dmsetup makes the nodes by itself (DM_DISABLE_UDEV), else it would wait for
 * udev.
 *
 * All methods reject `HOST_MAPPER_MISSING` where the kernel has no device-mapper, `HOST_TOOL_*` else.
 */
export class DeviceMapper {
  readonly #tools: Tools;

  /** `tools` with `mapperEnvironment()`. */
  constructor(tools: Tools) {
    this.#tools = tools;
  }

  /**
   * Makes an active device and resolves with its path. Rejects `HOST_MAPPER_NAME_TAKEN`,
   * `HOST_MAPPER_NO_TARGET`.
   */
  async create(name: string, table: MapperTable, options: { readonly?: boolean } = {}): Promise<string> {
    const argv = ['dmsetup', 'create', checkName(name), ...(options.readonly ? ['--readonly'] : [])] as const;
    const output = await this.#tools.run(argv as never, { input: encodeMapperTable(table) });
    if (output.exitCode === 0) return `${MAPPER_FOLDER}/${name}`;
    if (/Device or resource busy|already exists/.test(output.stderr) && (await this.exists(name))) {
      throw new GodwitError('HOST_MAPPER_NAME_TAKEN', `there is a device-mapper device ${name} already`, {
        values: { name },
        nextAction: `Look what uses it (dmsetup info ${name}, lsblk); remove it (dmsetup remove ${name}).`,
      });
    }
    throw this.#failure(argv as never, output);
  }

  /**
   * The status line of a device with one target, without start and length: `clone 8 105/1024 …` is `{target:
   * 'clone', text: '8 105/1024 …'}`. Without --noflush a target like dm-clone would commit its metadata
   * first, and flush its disks for it, at every look.
   */
  async status(name: string): Promise<{ sectors: number; target: string; text: string }> {
    return parseLine('status', await this.#must(['dmsetup', 'status', '--noflush', checkName(name)]));
  }

  /** The active table; keys are shown as zeros. */
  async table(name: string): Promise<{ sectors: number; target: string; text: string }> {
    return parseLine('table', await this.#must(['dmsetup', 'table', checkName(name)]));
  }

  async message(name: string, words: readonly string[]): Promise<void> {
    await this.#must(['dmsetup', 'message', checkName(name), '0', ...words]);
  }

  /**
   * Holds all I/O back; what is in flight ends first, and one that does not within `deadlineMs` ends the
   * suspension (`HOST_TOOL_STUCK`). `flush`: what waits goes down first. A filesystem on top is not frozen.
   */
  async suspend(name: string, options: { flush: boolean; deadlineMs?: number }): Promise<void> {
    await mustRun(
      this.#tools,
      ['dmsetup', 'suspend', '--nolockfs', ...(options.flush ? [] : ['--noflush']), checkName(name)],
      { deadlineMs: options.deadlineMs ?? SUSPEND_DEADLINE_MS },
    );
  }

  /** A table that becomes the active one at the next `resume`. */
  async load(name: string, table: MapperTable): Promise<void> {
    const argv = ['dmsetup', 'load', checkName(name)] as const;
    const output = await this.#tools.run(argv as never, { input: encodeMapperTable(table) });
    if (output.exitCode !== 0) throw this.#failure(argv as never, output);
  }

  async resume(name: string): Promise<void> {
    await this.#must(['dmsetup', 'resume', checkName(name)]);
  }

  /** Idempotent. Rejects `HOST_MAPPER_BUSY` when something has it open. */
  async remove(name: string): Promise<void> {
    const argv = ['dmsetup', 'remove', '--retry', checkName(name)] as const;
    const output = await this.#tools.run(argv as never);
    if (output.exitCode === 0 || !(await this.exists(name))) return;
    if (/busy/i.test(output.stderr)) {
      throw new GodwitError('HOST_MAPPER_BUSY', `the device-mapper device ${name} is in use`, {
        values: { name },
        retry: 'never',
        nextAction: `Find what has it open: dmsetup info ${name}, grep ${name} /proc/*/mountinfo.`,
      });
    }
    throw this.#failure(argv as never, output);
  }

  async exists(name: string): Promise<boolean> {
    return (await this.names()).includes(name);
  }

  /**
   * That the kernel has a target (`clone`), and of the one version whose tables and status lines are known
   * here: another first number means that they are others. Rejects `HOST_MAPPER_NO_TARGET`,
   * `HOST_UNKNOWN_OUTPUT`.
   */
  async requireTarget(target: string): Promise<void> {
    let version = await this.#targetVersion(target);
    if (version === null) {
      // The kernel itself loads it for the first table; whether it can is better known before.
      await this.#tools.run(['modprobe', `dm-${target}`]);
      version = await this.#targetVersion(target);
    }
    if (version === null) {
      throw new GodwitError('HOST_MAPPER_NO_TARGET', `the device-mapper of this kernel has no ${target}`, {
        values: { target },
        retry: 'never',
        nextAction: `Load its module (modprobe dm-${target}); \`godwit doctor\` says what is missing.`,
      });
    }
    if (!version.startsWith(`${TARGET_VERSION}.`))
      throw unknownOutputError('dmsetup', `the version of ${target}`, version);
  }

  /** `1.0.0`; null: the kernel does not have it. */
  async #targetVersion(target: string): Promise<string | null> {
    // `clone            v1.0.0` a line.
    const lines = (await this.#must(['dmsetup', 'targets'])).split('\n');
    const [, version] = lines.map((line) => line.trim().split(/\s+/)).find(([name]) => name === target) ?? [];
    return version === undefined ? null : version.replace(/^v/, '');
  }

  /** Of all devices of the host. */
  async names(): Promise<string[]> {
    const text = (await this.#must(['dmsetup', 'ls'])).trim();
    if (text === '' || text === 'No devices found') return [];
    return text.split('\n').map((line) => line.split('\t')[0]!.trim());
  }

  async #must(argv: readonly [string, ...string[]]): Promise<string> {
    const output = await this.#tools.run(argv);
    if (output.exitCode !== 0) throw this.#failure(argv, output);
    return output.stdout;
  }

  #failure(argv: readonly [string, ...string[]], output: ToolOutput): GodwitError {
    if (
      /Is device-mapper driver missing|Failure to communicate with kernel device-mapper/.test(output.stderr)
    ) {
      return new GodwitError('HOST_MAPPER_MISSING', 'this kernel has no device-mapper', {
        retry: 'never',
        nextAction:
          'Load it (modprobe dm-mod), or use the userspace plane; `godwit doctor` says what is missing.',
      });
    }
    if (/unknown target type|Invalid argument.*target/i.test(output.stderr)) {
      return new GodwitError(
        'HOST_MAPPER_NO_TARGET',
        `${argv.join(' ')}: the kernel lacks the target of that table`,
        {
          values: { device: argv.at(-1) ?? '' },
          retry: 'never',
          nextAction:
            'Load its module (modprobe dm-clone, modprobe dm-crypt); `godwit doctor` says what is missing.',
        },
      );
    }
    return failedError(argv, output);
  }
}

/** Of `systemTools`: without udev, dmsetup makes the nodes itself. */
export function mapperEnvironment(): Record<string, string> {
  return existsSync('/run/udev/control') ? {} : { DM_DISABLE_UDEV: '1' };
}

/** Throws for what is no name, or would be taken for something else. */
export function checkName(name: string): string {
  if (/^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(name) && name.length <= NAME_CHARACTERS_MAX) return name;
  throw new Error(`not a name of a device-mapper device: ${name}`);
}

/** `0 2097152 clone …`: start, length, target, the rest. */
function parseLine(what: string, output: string): { sectors: number; target: string; text: string } {
  const lines = output.trim().split('\n');
  const match = lines.length === 1 ? /^0 (\d+) (\S+)(?: (.*))?$/.exec(lines[0]!.trim()) : null;
  if (!match) {
    throw new GodwitError(
      'HOST_UNKNOWN_OUTPUT',
      `dmsetup answers ${what} in a form that is not known here: ${output.slice(0, 200)}`,
      {
        values: { program: 'dmsetup', what, line: output.slice(0, 200) },
        retry: 'never',
        nextAction: 'The device is not one of ours, or dmsetup is of a version that godwit was not made for.',
      },
    );
  }
  return { sectors: Number(match[1]), target: match[2]!, text: match[3] ?? '' };
}
