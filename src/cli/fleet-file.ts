import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { GodwitError, messageOf } from '../base/errors.ts';
import { replaceFileNow } from '../sys/durable-file.ts';

/**
 * `fleet.json`: which workers there are and where the token is. Written by `godwit dev`, or by hand:
 *
 *   {"tokenFile": "token", "caFile": "ca.pem", "workers": [{"name": "worker-1", "url": "https://10.0.0.1:4680"}]}
 */
export type FleetFile = {
  workers: { name: string; url: string; pid?: number }[];
  /** Relative to the folder of the fleet file. */
  tokenFile?: string;
  /**
   * Of the authority that signed the certificates of workers with https URLs; relative like the other.
   * Without it those count that Node knows.
   */
  caFile?: string;
  /** Process of the `godwit dev` that looks after the workers, when there is one. */
  devPid?: number;
};

export type Fleet = {
  path: string | null;
  workers: FleetFile['workers'];
  token: string;
  caFile: string | null;
};

export type FleetOptions = {
  fleet?: string | undefined;
  url?: string | undefined;
  token?: string | undefined;
  tokenFile?: string | undefined;
  ca?: string | undefined;
};

/**
 * Finds the fleet: `--url`, `--fleet`, GODWIT_FLEET, ./.godwit/fleet.json, ~/.config/godwit/fleet.json; the
 * first that there is.
 */
export function findFleet(options: FleetOptions, env: NodeJS.ProcessEnv, cwd: string): Fleet {
  const givenToken =
    options.token ??
    (options.tokenFile !== undefined ? readToken(resolve(cwd, options.tokenFile)) : undefined) ??
    env.GODWIT_TOKEN ??
    (env.GODWIT_TOKEN_FILE !== undefined ? readToken(resolve(cwd, env.GODWIT_TOKEN_FILE)) : undefined);

  const givenCa = options.ca ?? env.GODWIT_CA_FILE;
  const caFile = givenCa === undefined ? null : resolve(cwd, givenCa);

  const url = options.url ?? (options.fleet === undefined ? env.GODWIT_URL : undefined);
  if (url !== undefined) {
    if (givenToken !== undefined)
      return { path: null, workers: [{ name: url, url }], token: givenToken, caFile };
    throw new GodwitError('CLI_INVALID_OPTIONS', '--url needs a token', {
      nextAction: 'Give --token-file FILE, --token TOKEN or set GODWIT_TOKEN.',
    });
  }

  const candidates = [options.fleet, env.GODWIT_FLEET].filter((path) => path !== undefined);
  const path =
    candidates.length > 0
      ? resolve(cwd, candidates[0]!)
      : [
          join(cwd, '.godwit', 'fleet.json'),
          join(env.XDG_CONFIG_HOME ?? join(homedir(), '.config'), 'godwit', 'fleet.json'),
        ].find((candidate) => existsSync(candidate));
  if (path === undefined || !existsSync(path)) {
    throw new GodwitError('CLI_FLEET_NOT_FOUND', path ? `no fleet file ${path}` : 'no fleet is known here', {
      values: { path: path ?? null },
      nextAction:
        'Start one on this machine with: godwit dev --workers 3; or name one with --fleet FILE, or --url and --token-file.',
    });
  }
  const file = readFleetFile(path);
  const token =
    givenToken ??
    (file.tokenFile !== undefined ? readToken(resolve(dirname(path), file.tokenFile)) : undefined);
  if (token === undefined) {
    throw invalidFleet(path, 'it names no tokenFile');
  }
  const named = file.caFile === undefined ? null : resolve(dirname(path), file.caFile);
  return { path, workers: file.workers, token, caFile: caFile ?? named };
}

/** Throws `CLI_INVALID_FLEET` when the file is not what it should be. */
export function readFleetFile(path: string): FleetFile {
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw invalidFleet(path, messageOf(error));
  }
  if (typeof content !== 'object' || content === null) throw invalidFleet(path, 'it is not an object');
  const { workers, tokenFile, caFile, devPid } = content as Record<string, unknown>;
  if (!Array.isArray(workers) || workers.length === 0) throw invalidFleet(path, 'it has no list of workers');
  const names = new Set<string>();
  for (const worker of workers as unknown[]) {
    const { name, url, pid } = (worker ?? {}) as Record<string, unknown>;
    if (
      typeof name !== 'string' ||
      typeof url !== 'string' ||
      (pid !== undefined && typeof pid !== 'number')
    ) {
      throw invalidFleet(path, 'a worker needs a name and a url');
    }
    if (names.has(name)) throw invalidFleet(path, `two workers are called ${name}`);
    names.add(name);
  }
  return {
    workers: workers as FleetFile['workers'],
    ...(typeof tokenFile === 'string' ? { tokenFile } : {}),
    ...(typeof caFile === 'string' ? { caFile } : {}),
    ...(typeof devPid === 'number' ? { devPid } : {}),
  };
}

/** Replaces the file in one step: a reader never sees half of it. */
export function writeFleetFile(path: string, file: FleetFile): void {
  replaceFileNow(path, `${JSON.stringify(file, null, 2)}\n`);
}

/** First line of a token file. Throws `CLI_INVALID_TOKEN_FILE`. */
export function readToken(path: string): string {
  let token: string;
  try {
    token = readFileSync(path, 'utf8').split('\n')[0]!.trim();
  } catch (error) {
    throw invalidToken(path, messageOf(error));
  }
  if (/^[\x21-\x7e]{16,}$/.test(token)) return token;
  throw invalidToken(path, 'a token is at least 16 printable characters without spaces');
}

function invalidFleet(path: string, why: string): GodwitError {
  return new GodwitError('CLI_INVALID_FLEET', `the fleet file ${path} cannot be used: ${why}`, {
    values: { path },
    nextAction:
      'Write it as {"tokenFile": "token", "workers": [{"name": "worker-1", "url": "http://HOST:PORT"}]}; with "caFile" where the URLs are https.',
  });
}

function invalidToken(path: string, why: string): GodwitError {
  return new GodwitError('CLI_INVALID_TOKEN_FILE', `the token file ${path} cannot be used: ${why}`, {
    values: { path },
    nextAction: 'Make one with: head -c 24 /dev/urandom | base64 > FILE; chmod 600 FILE',
  });
}
