import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import { Nullable, OneOf } from '../base/schema.ts';
import { MachineConfig } from '../contract/machine-config.ts';
import { runOf } from '../contract/machine-run.ts';
import { removeFile, replaceFile, syncFolder } from '../sys/durable-file.ts';
import { ownPath } from '../sys/named-path.ts';

/** What a worker knows of one of its machines: `<dataDir>/machines/<id>.json`. */
export const MachineRecord = Type.Object({
  formatVersion: Type.Literal(1),
  /** `m_` and a ULID in lower case; stays the same over moves. */
  id: Type.String({ pattern: '^m_[0-9a-z]{26}$' }),
  name: Type.String({ minLength: 1, maxLength: 200 }),
  config: MachineConfig,
  /**
   * What its owner wants. The shim restarts a workload by its policy; the worker a machine whose shim is
   * gone.
   */
  desired: OneOf('running', 'stopped'),
  createdAtMs: Type.Integer(),
  /** Run of the move that has the machine in its hands: nobody else starts, stops or destroys it. */
  claimedBy: Nullable(Type.String()),
});
export type MachineRecord = Static<typeof MachineRecord>;

const compiled = Compile(MachineRecord);

/**
 * The records of a worker's machines, a file each, written by rename and fsync. The worker is the only
 * writer.
 */
export class MachineStore {
  readonly directory: string;

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** Makes the folder where there is none and removes files that a crash left half written. */
  static async open(dataDir: string): Promise<MachineStore> {
    const store = new MachineStore(join(dataDir, 'machines'));
    await mkdir(store.directory, { recursive: true, mode: 0o700 });
    // Else a power cut may take the folder, and all that is made in it.
    await syncFolder(dataDir);
    for (const name of await readdir(store.directory)) {
      if (name.endsWith('.new')) await rm(join(store.directory, name), { force: true });
    }
    return store;
  }

  /**
   * Every record that can be read, oldest id first, and every file that cannot, as `MACHINE_RECORD_CORRUPT`.
   */
  async load(): Promise<{ machines: MachineRecord[]; broken: { file: string; error: GodwitError }[] }> {
    const machines: MachineRecord[] = [];
    const broken: { file: string; error: GodwitError }[] = [];
    for (const name of (await readdir(this.directory)).sort()) {
      if (!name.endsWith('.json')) continue;
      const file = join(this.directory, name);
      try {
        machines.push(await readRecord(file));
      } catch (error) {
        if (!(error instanceof GodwitError)) throw error;
        broken.push({ file, error });
      }
    }
    return { machines, broken };
  }

  /**
   * Durable when it resolves. Rejects `MACHINE_NO_SPACE` when the disk is full; the former record is then
   * still there.
   */
  async write(record: MachineRecord): Promise<void> {
    const path = this.#path(record.id);
    try {
      await replaceFile(path, `${JSON.stringify(record, null, 2)}\n`);
    } catch (cause) {
      if (systemErrorCode(cause) !== 'ENOSPC') throw cause;
      throw new GodwitError('MACHINE_NO_SPACE', `no space to write the record of machine ${record.id}`, {
        values: { path },
        nextAction: 'Free space on the disk of the data folder.',
        cause,
      });
    }
  }

  /** Idempotent; durable when it resolves. */
  remove(id: string): Promise<void> {
    return removeFile(this.#path(id));
  }

  #path(id: string): string {
    return ownPath(this.directory, `${id}.json`);
  }
}

async function readRecord(file: string): Promise<MachineRecord> {
  const corrupt = (why: string, cause?: unknown) =>
    new GodwitError('MACHINE_RECORD_CORRUPT', `the record ${file} cannot be read: ${why}`, {
      values: { file },
      nextAction:
        'Restore the file from a backup, or remove it to forget the machine; its volume stays as it is.',
      cause,
    });
  let value: unknown;
  try {
    value = JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw corrupt(messageOf(error), error);
  }
  if (!compiled.Check(value)) {
    const [first] = compiled.Errors(value);
    throw corrupt(first === undefined ? 'wrong shape' : `${first.instancePath || '/'} ${first.message}`);
  }
  try {
    runOf(value.config);
  } catch (error) {
    throw corrupt(messageOf(error), error);
  }
  if (basename(file) !== `${value.id}.json`) throw corrupt(`it is the record of ${value.id}`);
  return value;
}
