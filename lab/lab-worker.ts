import { setTimeout as sleep } from 'node:timers/promises';
import { ApiClient } from '../src/api/client.ts';
import { messageOf } from '../src/base/errors.ts';
import { programPath } from '../test/support/programs.ts';
import { patient } from './kind.ts';
import type { Member } from './member.ts';
import { mustRun } from './member.ts';

const MAIN = programPath('cli/main.ts');
const TOKEN = 'a-token-of-the-lab';
const PORT = 4680;
const START_TIMEOUT_MS = 120_000;

export type LabWorkerOptions = {
  dataDir: string;
  /** The other members that run a worker. */
  peers: readonly Member[];
  flags?: readonly string[];
  env?: Record<string, string>;
};

/** This repository's worker on a member of the lab, as it is. */
export class LabWorker {
  readonly member: Member;
  readonly name: string;
  readonly url: string;
  readonly client: ApiClient;
  readonly #options: LabWorkerOptions;
  #pid: number | null = null;

  constructor(member: Member, options: LabWorkerOptions) {
    this.member = member;
    this.name = member.name;
    this.#options = options;
    this.url = urlOf(member);
    this.client = new ApiClient({ url: this.url, token: TOKEN, timeoutMs: patient(60_000) });
  }

  get dataDir(): string {
    return this.#options.dataDir;
  }

  get logPath(): string {
    return `${this.dataDir}/worker.log`;
  }

  /** Resolves when its process runs. */
  async spawn(env: Record<string, string> = {}): Promise<void> {
    const { dataDir, peers, flags = [] } = this.#options;
    await mustRun(this.member, ['mkdir', '-p', dataDir]);
    const { pid } = await this.member.spawn(
      [
        ...[process.execPath, '--disable-warning=ExperimentalWarning', MAIN, 'worker'],
        ...['--name', this.name, '--data', dataDir, '--listen', `${this.member.address}:${PORT}`],
        ...peers.flatMap((peer) => ['--peer', `${peer.name}=${urlOf(peer)}`]),
        ...flags,
      ],
      { logPath: this.logPath, env: { GODWIT_TOKEN: TOKEN, ...this.#options.env, ...env } },
    );
    this.#pid = pid;
  }

  /** Resolves when its API answers; rejects with the end of its log. */
  async start(env: Record<string, string> = {}): Promise<void> {
    await this.spawn(env);
    const deadlineMs = Date.now() + patient(START_TIMEOUT_MS);
    for (;;) {
      try {
        await this.client.worker({ timeoutMs: patient(5_000) });
        return;
      } catch (error) {
        if (Date.now() > deadlineMs || !(await this.isRunning()))
          throw new Error(
            `worker ${this.name} does not answer: ${messageOf(error)}\n${await this.logTail()}`,
          );
      }
      await sleep(200);
    }
  }

  async isRunning(): Promise<boolean> {
    if (this.#pid === null) return false;
    const state = await this.member.run(['cat', `/proc/${this.#pid}/stat`]);
    return state.exitCode === 0 && !/\) Z /.test(state.stdout);
  }

  /** SIGKILL for the control process; machines go on. */
  async kill(): Promise<void> {
    if (this.#pid !== null && (await this.isRunning())) await this.member.kill(this.#pid, 'SIGKILL');
    while (await this.isRunning()) await sleep(50);
    this.#pid = null;
  }

  async logTail(): Promise<string> {
    return (await this.member.run(['tail', '-n', '40', this.logPath])).stdout;
  }

  /** A command of the CLI, on that member. */
  cli(...words: string[]): Promise<string> {
    return cliFrom(this.member, this, ...words);
  }
}

/** The same command on a member, about a worker elsewhere. */
export function cliFrom(member: Member, worker: LabWorker, ...words: string[]): Promise<string> {
  return mustRun(
    member,
    [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      MAIN,
      ...['--url', worker.url, '--token', TOKEN],
      ...words,
    ],
    { timeoutMs: 300_000 },
  );
}

function urlOf(member: Member): string {
  return `http://${member.address}:${PORT}`;
}
