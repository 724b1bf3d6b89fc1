import { type ChildProcess, spawn } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import type { CommandResult } from './agent-protocol.ts';
import { runHere, spawnHere } from './host-program.ts';
import { patient } from './kind.ts';
import type { Member, RunOptions } from './member.ts';
import type { Network } from './network.ts';

/**
 * A host of the lab that is this machine and its kernel, with a network of its own: where a worker with the
 * userspace plane runs.
 */
export class NamespaceMember implements Member {
  readonly name: string;
  readonly address: string;
  readonly #keeper: ChildProcess;
  readonly #enter: readonly string[];

  private constructor(name: string, address: string, keeper: ChildProcess) {
    this.name = name;
    this.address = address;
    this.#keeper = keeper;
    this.#enter = ['nsenter', '--net', '--target', String(keeper.pid), '--'];
  }

  static async create(
    network: Network,
    options: { name: string; address: string; index: number },
  ): Promise<NamespaceMember> {
    // Says a word when it is in its namespace, and holds that for as long as its standard input is open.
    const keeper = spawn('unshare', ['--net', 'sh', '-c', 'echo in; exec cat'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    await new Promise((resolve, reject) => {
      keeper.stdout.once('data', resolve);
      keeper.on('error', reject);
      keeper.on('exit', (code) => reject(new Error(`unshare ended with ${code}`)));
    });
    await network.addNamespace(options.index, keeper.pid!, options.address);
    return new NamespaceMember(options.name, options.address, keeper);
  }

  close(): void {
    this.#keeper.removeAllListeners('exit');
    this.#keeper.kill('SIGKILL');
  }

  run(argv: readonly string[], options: RunOptions = {}): Promise<CommandResult> {
    const timeoutMs = patient(options.timeoutMs ?? 60_000);
    return runHere([...this.#enter, ...argv], { ...options, timeoutMs });
  }

  async spawn(
    argv: readonly string[],
    options: { logPath: string; env?: Record<string, string> },
  ): Promise<{ pid: number }> {
    return spawnHere([...this.#enter, ...argv], options);
  }

  async kill(pid: number, signal: NodeJS.Signals): Promise<void> {
    process.kill(pid, signal);
  }

  readFile(path: string): Promise<string> {
    return readFile(path, 'utf8');
  }

  writeFile(path: string, text: string, mode = 0o644): Promise<void> {
    return writeFile(path, text, { mode });
  }
}
