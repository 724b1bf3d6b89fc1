import { randomBytes } from 'node:crypto';
import { closeSync, fstatSync, readSync } from 'node:fs';
import { access } from 'node:fs/promises';
import { GodwitError, isGodwitError, systemErrorCode } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import { createFile } from '../sys/durable-file.ts';
import { openNamedFile } from '../sys/named-path.ts';
import { startError, startProgram } from '../sys/start-program.ts';
import { Secret } from './secret.ts';

/** For which volume a key is wanted. */
export type KeyRequest = {
  /** Letters, digits, `.`, `_` and `-`. */
  volumeId: string;
  /** The generation that is about to be opened: a provider can refuse one that is not this worker's. */
  generation: number;
  /**
   * Which key of the volume: the generation that it was made for. 1 is the first one; a move with another key
   * makes the next.
   */
  keyGeneration: number;
};

/**
 * Where the keys of volumes come from. The bytes are a passphrase of LUKS2, taken as they are, a final
 * newline too.
 */
export interface KeyProvider {
  /** The caller disposes of the key. Rejects with `CRYPT_KEY_UNAVAILABLE` and `CRYPT_KEY_EXPOSED`. */
  keyOf(request: KeyRequest): Promise<Secret>;
  /**
   * A key that is durable where the provider keeps its keys when this resolves; the same one when it is asked
   * again. Rejects as `keyOf` does.
   */
  newKeyOf(request: KeyRequest): Promise<Secret>;
}

/** A passphrase of cryptsetup is 512 characters at most when typed; a key file is this at most here. */
export const MAX_KEY_BYTES = 8192;

const VOLUME_ID = /^(?!\.)[A-Za-z0-9._-]{1,128}$/;
/** Of a key that is made here: 43 characters of 6 random bits each. */
const NEW_KEY_CHARACTERS = 43;
const BASE64URL = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_');

/**
 * Keys in files, for development and for hosts that unseal a folder at boot. `{volume}` in the path stands
 * for the id of the volume; without it all volumes share their first key. A later key of a volume is beside
 * its first one, in `PATH.gN`, or `PATH.VOLUME.gN` where that is shared. A file that others can read is
 * refused (`CRYPT_KEY_EXPOSED`).
 *
 * New keys are 43 random characters of base64url, 258 bits. A first key that is shared is never made here.
 */
export class FileKeyProvider implements KeyProvider {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  async newKeyOf(request: KeyRequest): Promise<Secret> {
    checkVolumeId(request);
    if (request.keyGeneration > 1 || this.#path.includes('{volume}')) {
      try {
        await makeKeyFile(this.#pathOf(request));
      } catch (error) {
        throw unavailableError(
          request,
          `its key file cannot be made (${systemErrorCode(error) ?? 'unknown'})`,
        );
      }
    }
    return this.keyOf(request);
  }

  #pathOf({ volumeId, keyGeneration }: KeyRequest): string {
    const first = this.#path.replaceAll('{volume}', volumeId);
    if (keyGeneration === 1) return first;
    return this.#path === first ? `${first}.${volumeId}.g${keyGeneration}` : `${first}.g${keyGeneration}`;
  }

  async keyOf(request: KeyRequest): Promise<Secret> {
    checkVolumeId(request);
    const path = this.#pathOf(request);
    let fd: number;
    try {
      ({ fd } = openNamedFile(path, { own: true }));
    } catch (error) {
      const reason = isGodwitError(error) ? 'it is not a file' : (systemErrorCode(error) ?? 'unknown');
      throw unavailableError(request, `its key file cannot be opened (${reason})`);
    }
    try {
      const { mode } = fstatSync(fd);
      if ((mode & 0o077) !== 0) {
        throw new GodwitError(
          'CRYPT_KEY_EXPOSED',
          `the key file of volume ${request.volumeId} is open to others`,
          {
            values: { volumeId: request.volumeId, mode: (mode & 0o777).toString(8) },
            retry: 'never',
            nextAction: 'Take the key for known to others: change it, and `chmod 600` the file.',
          },
        );
      }
      const collector = new KeyCollector();
      const piece = Buffer.allocUnsafeSlow(MAX_KEY_BYTES + 1);
      for (;;) {
        const bytesRead = readSync(fd, piece, 0, piece.length, null);
        if (bytesRead === 0 || !collector.add(piece.subarray(0, bytesRead))) break;
      }
      return collector.finish(request);
    } finally {
      closeSync(fd);
    }
  }
}

export type ExecKeyProviderOptions = {
  /** Program and arguments; no shell. */
  argv: readonly [string, ...string[]];
  /** The program is killed with all it started after this time. Default: `keyProgram` of base/patience.ts. */
  deadlineMs?: number;
  /** Default: that of this process. */
  environment?: NodeJS.ProcessEnv;
};

/**
 * Keys from a program: a client of Vault or a KMS, a TPM tool. It is told the volume in GODWIT_VOLUME_ID and
 * GODWIT_VOLUME_GENERATION, which key of it in GODWIT_KEY_GENERATION, and what to do in GODWIT_KEY_ACTION:
 * `get` that key, or `create` it where it is not there yet. It prints the key, and nothing else, to its
 * standard output. What it prints elsewhere is thrown away, since it could hold the key (`sh -x`).
 */
export class ExecKeyProvider implements KeyProvider {
  readonly #options: ExecKeyProviderOptions;

  constructor(options: ExecKeyProviderOptions) {
    this.#options = options;
  }

  keyOf(request: KeyRequest): Promise<Secret> {
    return this.#ask('get', request);
  }

  newKeyOf(request: KeyRequest): Promise<Secret> {
    return this.#ask('create', request);
  }

  async #ask(action: 'get' | 'create', request: KeyRequest): Promise<Secret> {
    checkVolumeId(request);
    const [program, ...args] = this.#options.argv;
    const deadlineMs = this.#options.deadlineMs ?? PATIENCE.keyProgram.ms;
    const collector = new KeyCollector();
    return new Promise<Secret>((resolve, reject) => {
      // A group of its own, so that what a script started goes with it.
      const child = startProgram(program, args, {
        stdio: ['ignore', 'pipe', 'ignore'],
        detached: true,
        env: {
          ...(this.#options.environment ?? process.env),
          GODWIT_VOLUME_ID: request.volumeId,
          GODWIT_VOLUME_GENERATION: `${request.generation}`,
          GODWIT_KEY_ACTION: action,
          GODWIT_KEY_GENERATION: `${request.keyGeneration}`,
        },
      });
      const end = (error: GodwitError) => {
        clearTimeout(timer);
        killGroup(child.pid);
        child.stdout.destroy();
        collector.dispose();
        reject(error);
      };
      const fail = (problem: string) => end(unavailableError(request, problem));
      const timer = setTimeout(() => fail(`its key program gave none within ${deadlineMs} ms`), deadlineMs);
      child.on('error', (error) => {
        const problem = `its key program does not start (${systemErrorCode(error) ?? 'unknown'})`;
        end(startError(error) ?? unavailableError(request, problem));
      });
      child.stdout.on('data', (piece: Buffer) => {
        if (!collector.add(piece)) fail(`its key program printed more than ${MAX_KEY_BYTES} bytes`);
      });
      child.on('close', (exitCode, signal) => {
        clearTimeout(timer);
        if (exitCode !== 0) return fail(`its key program ended with ${signal ?? `exit code ${exitCode}`}`);
        try {
          resolve(collector.finish(request));
        } catch (error) {
          reject(error);
        }
      });
    });
  }
}

/** Gathers bytes in one place and overwrites where they came from. */
class KeyCollector {
  readonly #bytes = Buffer.allocUnsafeSlow(MAX_KEY_BYTES);
  #length = 0;
  #tooLong = false;

  /** False: too many. */
  add(piece: Buffer): boolean {
    this.#tooLong ||= this.#length + piece.length > MAX_KEY_BYTES;
    if (!this.#tooLong) this.#length += piece.copy(this.#bytes, this.#length);
    piece.fill(0);
    return !this.#tooLong;
  }

  /** Throws `CRYPT_KEY_UNAVAILABLE` when there is no key, or too much of it. */
  finish(request: KeyRequest): Secret {
    const length = this.#length;
    try {
      if (this.#tooLong) throw unavailableError(request, `its key is longer than ${MAX_KEY_BYTES} bytes`);
      if (length === 0) throw unavailableError(request, 'its key is empty');
      return Secret.take(this.#bytes.subarray(0, length));
    } finally {
      this.dispose();
    }
  }

  dispose(): void {
    this.#bytes.fill(0);
  }
}

/** Whole and durable, or not there; one that is there already stays. */
async function makeKeyFile(path: string): Promise<void> {
  if (
    await access(path).then(
      () => true,
      () => false,
    )
  )
    return;
  // Never a string, which could not be overwritten.
  const text = randomBytes(NEW_KEY_CHARACTERS);
  for (const [index, byte] of text.entries()) text[index] = BASE64URL[byte % 64]!;
  try {
    await createFile(path, text, { token: randomBytes(6).toString('hex') });
  } finally {
    text.fill(0);
  }
}

/** The id becomes part of a path. */
function checkVolumeId(request: KeyRequest): void {
  if (!VOLUME_ID.test(request.volumeId)) throw unavailableError(request, 'that is not the id of a volume');
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended.
  }
}

function unavailableError(request: KeyRequest, problem: string): GodwitError {
  return new GodwitError('CRYPT_KEY_UNAVAILABLE', `no key for volume ${request.volumeId}: ${problem}`, {
    values: { volumeId: request.volumeId, generation: request.generation, problem },
    retry: 'never',
    nextAction:
      'Run what gives the keys by hand on this worker (`--key-file`, `--key-exec`) and see what it says.',
  });
}
