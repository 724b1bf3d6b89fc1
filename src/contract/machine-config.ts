import { type Static, Type } from 'typebox';
import { OWN_NAME_PATTERN } from '../base/own-name.ts';
import { OneOf } from '../base/schema.ts';

/** What a machine is, as its owner wrote it. Travels with a move unchanged. */
export const HealthCheck = Type.Intersect([
  Type.Object({
    /** Between two probes of a healthy machine. Until the first success the probe runs every 10 to 100 ms. */
    intervalMs: Type.Integer({ minimum: 10, maximum: 3_600_000, default: 2_000 }),
    timeoutMs: Type.Integer({ minimum: 10, maximum: 600_000, default: 2_000 }),
    /** Failures in a row that make a healthy machine unhealthy. */
    retries: Type.Integer({ minimum: 1, maximum: 100, default: 3 }),
    /** Failures within this time after the start do not count. */
    startPeriodMs: Type.Integer({ minimum: 0, maximum: 3_600_000, default: 60_000 }),
  }),
  Type.Union([
    /** Runs inside the machine; 0 is healthy. */
    Type.Object({ kind: Type.Literal('exec'), command: Type.Array(Type.String(), { minItems: 1 }) }),
    /** Connects inside the machine's network; a connection is healthy. */
    Type.Object({
      kind: Type.Literal('tcp'),
      host: Type.Optional(Type.String()),
      port: Type.Integer({ minimum: 1, maximum: 65535 }),
    }),
    /** GET inside the machine's network; 200 to 399 is healthy. */
    Type.Object({ kind: Type.Literal('http'), url: Type.String() }),
  ]),
]);
export type HealthCheck = Static<typeof HealthCheck>;

/** Program and arguments; found through PATH inside the machine. */
const Command = Type.Array(Type.String(), { minItems: 1, maxItems: 1024 });

const PROCESS = {
  /** User name or numeric id inside the machine; default root. */
  user: Type.Optional(Type.String()),
  workingDirectory: Type.Optional(Type.String()),
  /**
   * Folders of the host that the machine sees at the same path, read-only: programs that are installed below
   * a place which every machine has of its own (/tmp, /run), or on a filesystem that does not show in the
   * machine's root. Every host needs them.
   */
  hostFolders: Type.Optional(Type.Array(Type.String({ pattern: '^/.+' }), { maxItems: 64 })),
  /**
   * Character devices of the host that the machine sees, with the host's owner and mode: /dev/kvm. Every host
   * needs them.
   */
  devices: Type.Optional(Type.Array(Type.String({ pattern: '^/dev/.+' }), { maxItems: 16 })),
};
const Environment = Type.Record(Type.String(), Type.String(), { default: {} });

/** What runs. Each kind has a runtime (shim/runtime.ts). */
export const MachineRun = Type.Union([
  /** Programs of the host, shut in. */
  Type.Object({ kind: Type.Literal('process'), command: Command, env: Environment, ...PROCESS }),
]);
export type MachineRun = Static<typeof MachineRun>;
export type ProcessRun = Extract<MachineRun, { kind: 'process' }>;

const NetworkWord = OneOf('host', 'none');

/** How it is on the network. */
export const MachineNetwork = Type.Union([
  /** The worker's own. */
  Type.Object({ kind: Type.Literal('host') }),
  /** A network namespace with only loopback. */
  Type.Object({ kind: Type.Literal('none') }),
]);
export type MachineNetwork = Static<typeof MachineNetwork>;

/**
 * What a machine is, as it is said in requests, between workers and shims, and in records. Kinds had no names
 * at first: a process is what stands at the top, beside what every machine has, and a network is a word. It
 * is written so still (machine-run.ts), because workers and command lines of earlier versions read nothing
 * else. Who asks what runs asks machine-run.ts.
 */
export const MachineConfig = Type.Object({
  /** Instead of `command` and what goes with it. */
  run: Type.Optional(MachineRun),
  command: Type.Optional(Command),
  env: Environment,
  ...PROCESS,
  volume: Type.Optional(
    Type.Object({
      volumeId: Type.String({ pattern: OWN_NAME_PATTERN }),
      /**
       * Absolute path at which the machine sees the volume's filesystem. Absent: it is not mounted, and `nbd`
       * is true.
       */
      mountPath: Type.Optional(Type.String({ pattern: '^/.+' })),
      /**
       * The machine sees the volume as an NBD export at /run/godwit/disk.sock: for reading and writing where
       * it is not mounted, as a virtual machine wants its disk, and for reading where it is.
       */
      nbd: Type.Optional(Type.Boolean()),
    }),
  ),
  restart: Type.Object(
    {
      policy: OneOf('no', 'on-failure', 'always'),
      /** on-failure gives up after so many in a row. */
      retriesMax: Type.Integer({ minimum: 0, maximum: 1000 }),
    },
    { default: { policy: 'always', retriesMax: 10 } },
  ),
  stop: Type.Object(
    {
      signal: Type.String({ pattern: '^SIG[A-Z0-9]+$' }),
      timeoutMs: Type.Integer({ minimum: 0, maximum: 3_600_000 }),
    },
    { default: { signal: 'SIGTERM', timeoutMs: 10_000 } },
  ),
  health: Type.Optional(HealthCheck),
  resources: Type.Object(
    {
      memoryBytes: Type.Optional(Type.Integer({ minimum: 8 * 1024 * 1024 })),
      /** CPUs' worth of time, 0.01 to 1024. */
      cpus: Type.Optional(Type.Number({ minimum: 0.01, maximum: 1024 })),
      processesMax: Type.Optional(Type.Integer({ minimum: 1 })),
    },
    { default: {} },
  ),
  /** Or its word alone. */
  network: Type.Union([NetworkWord, MachineNetwork], { default: 'host' }),
  /** Anti-affinity: two machines of one group are never placed on one worker while another has room. */
  group: Type.Optional(Type.String()),
  metadata: Type.Record(Type.String(), Type.String(), { default: {} }),
});
export type MachineConfig = Static<typeof MachineConfig>;
