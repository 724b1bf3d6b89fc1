import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { NbdSocketSpec, SourceSpec } from '../../src/attach/server-spec.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type BlockRange, blockWrites } from './block-writer.ts';
import { type Move, moveVolume, tool, type VolumeLab } from './volume-lab.ts';

const MIB = 2 ** 20;
const writerPath = fileURLToPath(new URL('./block-writer.ts', import.meta.url));
const WAIT_MS = 120_000;

/**
 * A clone without a filesystem: random bytes at the source at a known place, and beside it a plain file that is kept as the device has
 * to be, to compare the two at the end.
 */
export async function moveRawVolume(
  lab: VolumeLab,
  options: {
    lengthBytes: number;
    /** In whole MiB. */
    content: BlockRange;
    paused?: boolean;
    targetDir?: string;
    nbd?: NbdSocketSpec['client'];
    via?: (source: SourceSpec) => Promise<{ host: string; port: number }>;
  },
): Promise<{ move: Move; expectedPath: string }> {
  const { content, ...rest } = options;
  const expectedPath = join(lab.dir, 'expected.raw');
  const move = await moveVolume(lab, {
    ...rest,
    write: async (path) => {
      await tool(
        'dd',
        ...['if=/dev/urandom', `of=${path}`, 'bs=1M', 'conv=notrunc', 'status=none'],
        ...[`seek=${content.offsetBytes / MIB}`, `count=${content.lengthBytes / MIB}`],
      );
      await tool('cp', '--sparse=always', path, expectedPath);
    },
  });
  return { move, expectedPath };
}

/** Every byte of the device is that of the file. */
export async function assertSameContent(device: string, expectedPath: string): Promise<void> {
  await patiently('cmp', device, expectedPath);
}

/** Like `tool`, for what may take its time on a busy machine. Rejects with what the program said. */
export async function patiently(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(program, args, {
    timeout: WAIT_MS,
    killSignal: 'SIGKILL',
    maxBuffer: 64 * MIB,
    env: { ...process.env, LC_ALL: 'C' },
  });
  return stdout;
}

/** A running program whose end can be asked for. Killed when the lab closes. */
export class Running {
  readonly #child: ChildProcess;
  readonly #program: string;
  readonly ended: Promise<void>;
  over = false;
  #stdout = '';
  #stderr = '';

  constructor(lab: VolumeLab, program: string, ...args: string[]) {
    this.#program = program;
    this.#child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C' },
    });
    this.#child.stdout!.on('data', (chunk: Buffer) => {
      this.#stdout += chunk.toString('latin1');
    });
    this.#child.stderr!.on('data', (chunk: Buffer) => {
      this.#stderr += chunk.toString('latin1');
    });
    this.ended = this.#watch();
    this.ended.catch(() => {});
    lab.onClose(async () => {
      if (this.over) return;
      this.#child.kill('SIGKILL');
      const late = new AbortController();
      // One that waits in the kernel for a volume server does not die; closing the lab frees it.
      await Promise.race([this.ended.catch(() => {}), systemClock.sleep(2_000, late.signal).catch(() => {})]);
      late.abort();
      if (!this.over) throw new Error(`${program} ${args.join(' ')} does not end`);
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  endInput(): void {
    this.#child.stdin!.end();
  }

  async #watch(): Promise<void> {
    const [code, signal] = (await once(this.#child, 'close')) as [number | null, string | null];
    this.over = true;
    if (code !== 0) throw new Error(`${this.#program} ended with ${code ?? signal}: ${this.#stderr}`);
  }
}

/** block-writer.ts on a device. */
export class BlockWriter {
  readonly #running: Running;
  readonly #seed: number;
  readonly #range: BlockRange;

  constructor(lab: VolumeLab, device: string, range: BlockRange, seed: number) {
    this.#seed = seed;
    this.#range = range;
    this.#running = new Running(
      lab,
      process.execPath,
      ...[writerPath, device, String(seed), String(range.offsetBytes), String(range.lengthBytes)],
    );
  }

  /** Writes that were told to be done. */
  get acknowledged(): number {
    return this.#running.stdout.split('\n').length - 1;
  }

  /** Waits for so many more writes. */
  async more(count: number): Promise<void> {
    const goal = this.acknowledged + count;
    const deadlineMs = performance.now() + WAIT_MS;
    while (this.acknowledged < goal) {
      if (this.#running.over) await this.#running.ended;
      assert.ok(!this.#running.over, 'the writer goes on');
      assert.ok(performance.now() < deadlineMs, `waited for write ${goal}, have ${this.acknowledged}`);
      await systemClock.sleep(10);
    }
  }

  /** Ends it, and does to the file what it has done to the device. */
  async stop(expectedPath: string): Promise<void> {
    this.#running.endInput();
    await this.#running.ended;
    const file = openSync(expectedPath, 'r+');
    let left = this.acknowledged;
    for (const { offsetBytes, bytes } of blockWrites(this.#seed, this.#range)) {
      if (left-- === 0) break;
      writeSync(file, bytes, 0, bytes.length, offsetBytes);
    }
    closeSync(file);
  }
}
