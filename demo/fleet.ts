import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../src/api/client.ts';
import { findFleet } from '../src/cli/fleet-file.ts';
import { NotWorthWaiting, until } from '../test/support/patience.ts';
import { reservePorts } from '../test/support/ports.ts';

const GODWIT = join(dirname(fileURLToPath(import.meta.url)), '../bin/godwit');

/**
 * A fleet on this machine, started with the same command that a person would use, and taken down without a
 * trace.
 */
export class DemoFleet {
  readonly dir: string;
  readonly #dev: ChildProcess;
  readonly #clients = new Map<string, ApiClient>();

  private constructor(dir: string, dev: ChildProcess) {
    this.dir = dir;
    this.#dev = dev;
  }

  static async start(workers: number): Promise<DemoFleet> {
    const dir = mkdtempSync(join(tmpdir(), 'godwit-demo-'));
    const log = openSync(join(dir, 'dev.log'), 'a');
    const dev = spawn(GODWIT, ['dev', '--workers', String(workers), '--data', dir], {
      stdio: ['ignore', log, log],
    });
    const fleet = new DemoFleet(dir, dev);
    let exited = false;
    dev.on('exit', () => {
      exited = true;
    });
    const said = () => readFileSync(join(dir, 'dev.log'), 'utf8');
    await until(
      'the fleet to start',
      () => {
        if (exited) throw new NotWorthWaiting(`the fleet did not start:\n${said()}`);
        return fleet.#ready(workers);
      },
      { state: said },
    );
    return fleet;
  }

  get fleetFile(): string {
    return join(this.dir, 'fleet.json');
  }

  client(worker: string): ApiClient {
    const known = this.#clients.get(worker);
    if (known) return known;
    const fleet = findFleet({ fleet: this.fleetFile }, {}, this.dir);
    const entry = fleet.workers.find(({ name }) => name === worker);
    if (!entry) throw new Error(`no worker ${worker}`);
    const client = new ApiClient({ url: entry.url, token: fleet.token });
    this.#clients.set(worker, client);
    return client;
  }

  /**
   * Runs a godwit command; its output goes to this terminal unless `quiet`. Resolves to the exit code and,
   * when quiet, the output.
   */
  run(args: string[], options: { quiet?: boolean } = {}): Promise<{ exitCode: number; output: string }> {
    return this.#run(['--fleet', this.fleetFile, ...args], options);
  }

  /** The same, quiet, without a fleet: nobody can be asked. */
  offline(args: string[]): Promise<{ exitCode: number; output: string }> {
    return this.#run(['--fleet', '/dev/null', ...args], { quiet: true });
  }

  #run(args: string[], options: { quiet?: boolean }): Promise<{ exitCode: number; output: string }> {
    return new Promise((resolve, reject) => {
      const child = spawn(GODWIT, args, {
        stdio: options.quiet ? ['ignore', 'pipe', 'pipe'] : ['ignore', 'inherit', 'inherit'],
      });
      let output = '';
      child.stdout?.on('data', (chunk) => (output += chunk));
      child.stderr?.on('data', (chunk) => (output += chunk));
      child.on('error', reject);
      child.on('exit', (code, signal) => resolve({ exitCode: code ?? (signal ? 130 : 1), output }));
    });
  }

  /** Destroys machines, volumes, workers and the folder. */
  async down(options: { keep: boolean }): Promise<void> {
    for (const client of this.#clients.values()) client.close();
    if (options.keep) return;
    await this.run(['dev', 'down', '--data', this.dir], { quiet: true });
    if (this.#dev.exitCode === null) this.#dev.kill('SIGTERM');
    rmSync(this.dir, { recursive: true, force: true });
  }

  async #ready(workers: number): Promise<boolean> {
    try {
      const fleet = findFleet({ fleet: this.fleetFile }, {}, this.dir);
      if (fleet.workers.length < workers) return false;
      await Promise.all(fleet.workers.map(({ name }) => this.client(name).healthz({ timeoutMs: 2_000 })));
      return true;
    } catch {
      return false;
    }
  }
}

/** Ports that nobody else takes until this process ends, also while nobody listens there. */
export function freePorts(count: number): Promise<number[]> {
  return reservePorts({ after: () => {} }, count);
}
