import { readFileSync } from 'node:fs';
import { createRequire, flushCompileCache } from 'node:module';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { entryPoint } from '../../base/entry-point.ts';
import { GodwitError, messageOf } from '../../base/errors.ts';
import { descriptorsMax } from '../../sys/descriptor-limit.ts';
import { DEFAULT_HEADER_FILE_BYTES, HEADER_BYTES_MAX } from '../../volume/header-size.ts';
import { keyFolder, type WorkerOptions } from '../../worker/options.ts';
import type { Context } from '../context.ts';
import { readToken } from '../fleet-file.ts';
import { parseDuration, parseSize } from '../units.ts';

/** Below that a worker without a machine already fails here and there. */
const DESCRIPTORS_MIN = 64;

/** What flags, environment and configuration file say, before it is checked; all as text. */
export type WorkerFlags = {
  config?: string;
  name?: string;
  data?: string;
  listen?: string;
  advertise?: string;
  peer?: string[];
  token?: string;
  tokenFile?: string;
  iscsiHost?: string;
  plane?: string;
  tlsCert?: string;
  tlsKey?: string;
  tlsCa?: string;
  tlsOptional?: string | boolean;
  memory?: string;
  cpus?: string;
  disk?: string;
  whenFull?: string;
  hydrationRate?: string;
  retain?: string;
  keyFile?: string;
  keyExec?: string;
  headerSize?: string;
  logLevel?: string;
};

/**
 * Keys of the configuration file (JSON): the long names of the flags in camelCase, `peer` as a list of
 * NAME=URL.
 */
const FILE_KEYS = [
  'name',
  'data',
  'listen',
  'advertise',
  'peer',
  'tokenFile',
  'iscsiHost',
  'plane',
  'tlsCert',
  'tlsKey',
  'tlsCa',
  'tlsOptional',
  'memory',
  'cpus',
  'disk',
  'whenFull',
  'hydrationRate',
  'retain',
  'keyFile',
  'keyExec',
  'headerSize',
  'logLevel',
] as const;

/** GODWIT_WORKER_NAME and so on; GODWIT_WORKER_PEERS has them separated by commas. */
const ENVIRONMENT: Readonly<Record<string, keyof WorkerFlags>> = {
  GODWIT_WORKER_NAME: 'name',
  GODWIT_WORKER_DATA: 'data',
  GODWIT_WORKER_LISTEN: 'listen',
  GODWIT_WORKER_ADVERTISE: 'advertise',
  GODWIT_WORKER_ISCSI_HOST: 'iscsiHost',
  GODWIT_WORKER_PLANE: 'plane',
  GODWIT_WORKER_TLS_CERT: 'tlsCert',
  GODWIT_WORKER_TLS_KEY: 'tlsKey',
  GODWIT_WORKER_TLS_CA: 'tlsCa',
  GODWIT_WORKER_TLS_OPTIONAL: 'tlsOptional',
  GODWIT_WORKER_MEMORY: 'memory',
  GODWIT_WORKER_CPUS: 'cpus',
  GODWIT_WORKER_DISK: 'disk',
  GODWIT_WORKER_WHEN_FULL: 'whenFull',
  GODWIT_WORKER_HYDRATION_RATE: 'hydrationRate',
  GODWIT_WORKER_RETAIN: 'retain',
  GODWIT_WORKER_KEY_FILE: 'keyFile',
  GODWIT_WORKER_KEY_EXEC: 'keyExec',
  GODWIT_WORKER_HEADER_SIZE: 'headerSize',
  GODWIT_WORKER_LOG_LEVEL: 'logLevel',
  GODWIT_TOKEN: 'token',
  GODWIT_TOKEN_FILE: 'tokenFile',
};

/** Flags before environment before file. Throws `CLI_INVALID_OPTIONS` with what is wrong or missing. */
export function workerOptions(flags: WorkerFlags, env: NodeJS.ProcessEnv, cwd: string): WorkerOptions {
  const file: WorkerFlags = flags.config === undefined ? {} : readConfig(resolve(cwd, flags.config));
  const fromEnv: WorkerFlags = {};
  for (const [variable, key] of Object.entries(ENVIRONMENT)) {
    const value = env[variable];
    if (value !== undefined && value !== '') (fromEnv as Record<string, string>)[key] = value;
  }
  if (env.GODWIT_WORKER_PEERS)
    fromEnv.peer = env.GODWIT_WORKER_PEERS.split(',').filter((peer) => peer !== '');
  const given = Object.fromEntries(Object.entries(flags).filter(([, value]) => value !== undefined));
  const all: WorkerFlags = { ...file, ...fromEnv, ...given };

  const name = all.name ?? missing('--name');
  if (!/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name)) {
    throw invalid(`--name is lower case letters, digits and hyphens, at most 63, not ${name}`);
  }
  const listen = /^(?:\[(.+)\]|([^:]+)):(\d+)$/.exec(all.listen ?? '127.0.0.1:4680');
  if (!listen || Number(listen[3]) > 65535) throw invalid(`--listen is HOST:PORT, not ${all.listen}`);
  const listenHost = (listen[1] ?? listen[2])!;
  // A token or a file of one; whichever the most specific place names.
  const tokenOf = ({ token: text, tokenFile }: WorkerFlags) =>
    text ?? (tokenFile === undefined ? undefined : readToken(resolve(cwd, tokenFile)));
  const token = tokenOf(flags) ?? tokenOf(fromEnv) ?? tokenOf(file) ?? missing('--token-file');
  if (token.length < 16) throw invalid('a token is at least 16 characters long');
  const peers = (all.peer ?? []).map(parsePeer);
  const names = new Set([name, ...peers.map((peer) => peer.name)]);
  if (names.size !== peers.length + 1) throw invalid('two workers of the fleet have the same name');
  const tls = tlsFiles(all, cwd);
  const tlsOptional = isSet('--tls-optional', all.tlsOptional);
  if (tlsOptional && tls === null) throw invalid('--tls-optional is for a worker with --tls-cert');
  for (const peer of peers) checkPeer(peer, tls !== null, tlsOptional);
  const logLevel = all.logLevel ?? 'info';
  if (logLevel !== 'debug' && logLevel !== 'info' && logLevel !== 'warn' && logLevel !== 'error') {
    throw invalid(`--log-level is debug, info, warn or error, not ${logLevel}`);
  }
  const plane = all.plane ?? 'userspace';
  if (plane !== 'userspace' && plane !== 'kernel')
    throw invalid(`--plane is userspace or kernel, not ${plane}`);
  const whenFull = all.whenFull ?? 'pause';
  if (whenFull !== 'pause' && whenFull !== 'error')
    throw invalid(`--when-full is pause or error, not ${whenFull}`);
  const cpus = all.cpus === undefined ? null : Number(all.cpus);
  if (cpus !== null && !(cpus > 0)) throw invalid(`--cpus is a number, not ${all.cpus}`);
  return {
    name,
    dataDir: resolve(cwd, all.data ?? missing('--data')),
    listenHost,
    listenPort: Number(listen[3]),
    advertiseUrl: all.advertise === undefined ? null : parseUrl('--advertise', all.advertise),
    peers,
    token,
    iscsiHost:
      all.iscsiHost ??
      (listenHost === '0.0.0.0' || listenHost === '::' ? missing('--iscsi-host') : listenHost),
    tls,
    tlsOptional,
    plane,
    capacity: {
      memoryBytes: all.memory === undefined ? null : parseSize(all.memory),
      cpus,
      diskBytes: all.disk === undefined ? null : parseSize(all.disk),
    },
    whenFull,
    keys: keySource(all, cwd),
    headerFileBytes: headerFileBytes(all.headerSize),
    hydrationRateBytesPerSecondMax: all.hydrationRate === undefined ? 0 : parseSize(all.hydrationRate),
    retainMs: parseDuration(all.retain ?? '7d'),
    logLevel,
  };
}

function isSet(option: string, value: string | boolean | undefined): boolean {
  const text = String(value ?? false);
  if (text === 'true' || text === '1') return true;
  if (text === 'false' || text === '0') return false;
  throw invalid(`${option} is true or false, not ${text}`);
}

/**
 * A fleet is under TLS or it is not: a peer that is asked in the clear by mistake would be told the secrets
 * of moves.
 */
function checkPeer(
  { name, url }: { name: string; url: string },
  hasTls: boolean,
  tlsOptional: boolean,
): void {
  const isPlain = url.startsWith('http:');
  if (isPlain !== hasTls || (isPlain && tlsOptional)) return;
  throw new GodwitError(
    'CLI_INVALID_PEER',
    isPlain
      ? `${name} would be asked in the clear (${url}), and this worker has certificates`
      : `${name} is asked over TLS (${url}), and this worker has no certificate to show it`,
    {
      values: { name, url },
      nextAction: isPlain
        ? `Give --peer ${name}=https://…; or --tls-optional while the fleet gets its certificates.`
        : 'Give --tls-cert, --tls-key and --tls-ca.',
    },
  );
}

/** All three, or none: half of a set would mean moves in the clear where somebody meant TLS. */
function tlsFiles({ tlsCert, tlsKey, tlsCa }: WorkerFlags, cwd: string): WorkerOptions['tls'] {
  if (tlsCert === undefined && tlsKey === undefined && tlsCa === undefined) return null;
  const keyFile = resolve(cwd, tlsKey ?? missing('--tls-key'));
  checkKeyFolder('--tls-key', keyFile);
  return {
    certFile: resolve(cwd, tlsCert ?? missing('--tls-cert')),
    keyFile,
    caFile: resolve(cwd, tlsCa ?? missing('--tls-ca')),
  };
}

function readConfig(path: string): WorkerFlags {
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw invalid(`the configuration file ${path} cannot be read: ${messageOf(error)}`);
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw invalid(`the configuration file ${path} is not an object`);
  }
  const flags: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(content)) {
    if (!(FILE_KEYS as readonly string[]).includes(key)) {
      throw invalid(`${path}: unknown key ${key}; there are ${FILE_KEYS.join(', ')}`);
    }
    const isList = Array.isArray(value) && value.every((item) => typeof item === 'string');
    if (key === 'peer' ? !isList : !['string', 'number', 'boolean'].includes(typeof value)) {
      throw invalid(`${path}: ${key} must be ${key === 'peer' ? 'a list of NAME=URL' : 'a string'}`);
    }
    flags[key] = key === 'peer' ? value : String(value);
  }
  return flags as WorkerFlags;
}

/** The command of `--key-exec` is split at blanks; whoever needs more writes a script. */
function keySource({ keyFile, keyExec }: WorkerFlags, cwd: string): WorkerOptions['keys'] {
  if (keyFile !== undefined && keyExec !== undefined)
    throw invalid('--key-file and --key-exec exclude each other');
  if (keyFile !== undefined) {
    const path = resolve(cwd, keyFile);
    checkKeyFolder('--key-file', path);
    return { kind: 'file', path };
  }
  const argv = (keyExec ?? '').split(' ').filter((word) => word !== '');
  return argv.length === 0 ? null : { kind: 'exec', argv };
}

function headerFileBytes(text: string | undefined): number {
  if (text === undefined) return DEFAULT_HEADER_FILE_BYTES;
  const bytes = parseSize(text);
  if (bytes >= DEFAULT_HEADER_FILE_BYTES && bytes <= HEADER_BYTES_MAX && bytes % 4096 === 0) return bytes;
  throw invalid(
    `--header-size is ${DEFAULT_HEADER_FILE_BYTES} to ${HEADER_BYTES_MAX} bytes, a multiple of 4096, not ${text}`,
  );
}

/** It is hidden from machines, and they need /etc and the like. */
function checkKeyFolder(option: string, path: string): void {
  if (keyFolder(path).split('/').filter(Boolean).length >= 2) return;
  throw invalid(`${option} is in a folder of its own, such as /etc/godwit-keys, not in ${keyFolder(path)}`);
}

function parsePeer(text: string): { name: string; url: string } {
  const match = /^([a-z0-9-]+)=(.+)$/.exec(text);
  if (!match) throw invalid(`--peer is NAME=URL, not ${text}`);
  return { name: match[1]!, url: parseUrl('--peer', match[2]!) };
}

function parseUrl(option: string, text: string): string {
  if (!/^https?:$/.test(URL.parse(text)?.protocol ?? ''))
    throw invalid(`${option} needs https://HOST:PORT or http://HOST:PORT, not ${text}`);
  return text.replace(/\/+$/, '');
}

function missing(option: string): never {
  throw invalid(`${option} is missing`);
}

function invalid(message: string): GodwitError {
  return new GodwitError('CLI_INVALID_OPTIONS', message, { nextAction: 'See godwit worker --help.' });
}

/**
 * With fewer the first thing that fails may be anything, such as SQLite, which says that the disk is broken.
 * Throws `HOST_NO_DESCRIPTORS`.
 */
export function requireDescriptors(descriptors: number): void {
  if (descriptors >= DESCRIPTORS_MIN) return;
  throw new GodwitError(
    'HOST_NO_DESCRIPTORS',
    `this process may open ${descriptors} files, and a worker needs ${DESCRIPTORS_MIN} to begin with, and some for each machine and each connection`,
    {
      values: { descriptors, descriptorsMin: DESCRIPTORS_MIN },
      nextAction:
        'Raise the limit (LimitNOFILE of the service, ulimit -n): 4096 is enough for hundreds of machines.',
    },
  );
}

/** Runs until SIGTERM or SIGINT. Machines go on running afterwards. */
export async function worker(
  context: Pick<Context, 'env' | 'cwd' | 'note'>,
  flags: WorkerFlags,
): Promise<void> {
  const options = workerOptions(flags, context.env, context.cwd);
  requireDescriptors(descriptorsMax());
  // A file of its own, read only now: the rest of the command line does not wait for the server to load.
  const program = fileURLToPath(entryPoint('worker/main.ts'));
  const { startWorker } = createRequire(import.meta.url)(program) as typeof import('../../worker/main.ts');
  const ended = new Promise<void>((resolve) => {
    process.once('SIGTERM', resolve);
    process.once('SIGINT', resolve);
  });
  const running = await startWorker(options);
  context.note(`${options.name} listens on ${running.url}`);
  // Now, because a worker that is killed would not: the next one starts in half the time.
  flushCompileCache();
  await ended;
  await running.close();
}
