import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { NbdSocketSpec, SourceSpec } from '../../src/opening/spec.ts';
import { type BlockRange, blockWrites } from './block-writer.ts';
import { inPatience, NotWorthWaiting, NotYet, until } from './patience.ts';
import { type Move, moveVolume, tool, type VolumeLab } from './volume-lab.ts';

const MIB = 2 ** 20;
const writerPath = fileURLToPath(new URL('./block-writer.ts', import.meta.url));

/**
 * A clone without a filesystem: random bytes at the source at a known place, and beside it a plain file that
 * is kept as the device has to be, to compare the two at the end.
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
  await tool('cmp', device, expectedPath);
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
      // One that waits in the kernel for a volume server does not die; closing the lab frees it.
      await inPatience(
        `${program} ${args.join(' ')} to end`,
        this.ended.catch(() => {}),
        { patienceMs: 2_000 },
      );
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
    await until(`write ${goal}`, async () => {
      if (this.acknowledged >= goal) return true;
      if (!this.#running.over) return new NotYet(`${this.acknowledged} are acknowledged`);
      const how = await this.#running.ended.catch((error: Error) => error.message);
      throw new NotWorthWaiting(`the writer does not go on: ${how ?? 'it ended'}`);
    });
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
