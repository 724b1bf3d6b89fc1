import { PATIENCE } from '../../src/base/patience.ts';
import {
  failedError,
  mustRun,
  type ToolOutput,
  type Tools,
  unknownOutputError,
} from '../../src/host/tools.ts';

/** argon2id takes seconds by design, and longer on a slow machine. */
const UNLOCK_DEADLINE_MS = PATIENCE.unlock.ms;
/** cryptsetup(8), RETURN CODES: wrong device, which `status` ends with for a name that is not active. */
const EXIT_NO_DEVICE = 4;

export type CryptsetupOpen = {
  /** Of the device below /dev/mapper. */
  name: string;
  /** What has the ciphertext. */
  device: string;
  /** A detached header; left out: it is at the beginning of the device. */
  header?: string;
  keyFile: string;
};

/** An active device of dm-crypt. */
export type CryptStatus = {
  type: string;
  cipher: string;
  keyBits: number;
  device: string;
  sectorBytes: number;
  /** Where the ciphertext begins on `device`. */
  offsetBytes: number;
  lengthBytes: number;
  readonly: boolean;
  flags: string[];
};

/**
 * cryptsetup(8). The planes open volumes with their own key slots and tables (docs/encryption.md,
 * docs/kernel-plane.md); this is the other implementation, which a volume must open with as well: labs and
 * tests hold ours against it, and so may an operator.
 *
 * Rejects `HOST_TOOL_FAILED` with what cryptsetup said (a wrong key, a device in use), `HOST_UNKNOWN_OUTPUT`,
 * and as `Tools.run` does.
 */
export class Cryptsetup {
  readonly #tools: Tools;

  constructor(tools: Tools) {
    this.#tools = tools;
  }

  /** The path of the decrypted device. */
  async open({ name, device, header, keyFile }: CryptsetupOpen): Promise<string> {
    const headerWords = header === undefined ? [] : ['--header', header];
    await this.#run(
      ['open', '--type', 'luks2', '--key-file', keyFile, ...headerWords, device, name],
      UNLOCK_DEADLINE_MS,
    );
    return `/dev/mapper/${name}`;
  }

  async close(name: string): Promise<void> {
    await this.#run(['close', name]);
  }

  /** Null: no such device is active. */
  async status(name: string): Promise<CryptStatus | null> {
    const output = await this.#tools.run(['cryptsetup', 'status', name]);
    if (output.exitCode === EXIT_NO_DEVICE && / is inactive\.\s*$/.test(output.stdout)) return null;
    if (output.exitCode !== 0) throw failedError(['cryptsetup', 'status', name], output);
    return parseCryptStatus(output);
  }

  /** The JSON metadata of a LUKS2 header, as it is (LUKS2 On-Disk Format, section 3). */
  async dump(device: string): Promise<unknown> {
    const text = await this.#run(['luksDump', '--dump-json-metadata', device]);
    try {
      return JSON.parse(text);
    } catch {
      throw unknownOutputError('cryptsetup', 'the metadata of a header', text);
    }
  }

  #run(words: readonly string[], deadlineMs?: number): Promise<string> {
    return mustRun(
      this.#tools,
      ['cryptsetup', '--batch-mode', ...words],
      deadlineMs === undefined ? {} : { deadlineMs },
    );
  }
}

/**
 * `  name:  value` lines after one that says what it is about (cryptsetup 2.x, src/cryptsetup.c,
 * action_status). Throws `HOST_UNKNOWN_OUTPUT`.
 */
export function parseCryptStatus({ stdout }: Pick<ToolOutput, 'stdout'>): CryptStatus {
  const [title = '', ...lines] = stdout.trimEnd().split('\n');
  const fields = new Map<string, string>();
  for (const line of lines) {
    const match = /^ {2}([a-z ]+): +(.*)$/.exec(line);
    if (!match) throw unknownOutputError('cryptsetup', 'the status of a device', line);
    fields.set(match[1]!, match[2]!);
  }
  const field = (name: string, pattern: RegExp): string => {
    const match = pattern.exec(fields.get(name) ?? '');
    if (!match) throw unknownOutputError('cryptsetup', `${name} of a device`, fields.get(name) ?? stdout);
    return match[1]!;
  };
  if (!/ is active( and is in use)?\.$/.test(title))
    throw unknownOutputError('cryptsetup', 'the status of a device', title);
  return {
    type: field('type', /^(\S+)$/),
    cipher: field('cipher', /^(\S+)$/),
    keyBits: Number(field('keysize', /^(\d+) bits$/)),
    device: field('device', /^(\S.*)$/),
    sectorBytes: Number(field('sector size', /^(\d+)$/)),
    offsetBytes: Number(field('offset', /^(\d+) sectors$/)) * 512,
    lengthBytes: Number(field('size', /^(\d+) sectors$/)) * 512,
    readonly: field('mode', /^(readonly|read\/write)$/) === 'readonly',
    flags: fields.get('flags')?.trim().split(/\s+/) ?? [],
  };
}
