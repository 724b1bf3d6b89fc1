import { type Static, Type } from 'typebox';
import { NODE_NAME_PATTERN, OWN_NAME_PATTERN } from '../base/own-name.ts';
import { OneOf } from '../base/schema.ts';

/**
 * What it is to open a volume, as data: `OpeningSpec`, one kind for each way. A shim is told it, and gives it
 * to a volume server as the first line of its standard input; it holds secrets, so it never appears in argv,
 * in the environment or in a status (`shown`).
 *
 * | kind     | role     | what is opened                                            |
 * |----------|----------|-----------------------------------------------------------|
 * | `own`    | `attach` | the local file alone, for a machine (FUSE file, NBD socket) |
 * | `clone`  | `attach` | the same, whose blocks still come from another worker     |
 * | `import` | `attach` | the same, whose blocks come from a disk of another system |
 * | `export` | `export` | the sealed file, read-only, for those who have a grant    |
 * | `serve`  | `serve`  | a whole volume, for clients of other systems              |
 *
 * Whoever serves it may be killed at any moment, and another one is started with the same spec (access as
 * last commanded); what was acknowledged survives because the validity map lives in shared memory and the
 * data in the page cache.
 */

/** One grant: who may read an export. Dies with the move. */
export const Grant = Type.Object({
  initiatorIqn: Type.String(),
  chapUser: Type.String(),
  chapSecret: Type.String({ minLength: 12 }),
  /** The sealed generation that the grant is for; a login for another one is refused. */
  generation: Type.Integer({ minimum: 1 }),
});
export type Grant = Static<typeof Grant>;

/** Paths of PEM files on the host of the server that is given them (sys/tls-identity.ts). */
const TlsFilesSpec = Type.Object({
  certFile: Type.String(),
  keyFile: Type.String(),
  caFile: Type.String(),
});

/** Where a clone finds its source. */
export const SourceSpec = Type.Object({
  host: Type.String(),
  port: Type.Integer({ minimum: 1, maximum: 65535 }),
  targetIqn: Type.String({ pattern: NODE_NAME_PATTERN }),
  lun: Type.Integer({ minimum: 0, maximum: 255 }),
  initiatorIqn: Type.String({ pattern: NODE_NAME_PATTERN }),
  chapUser: Type.String(),
  chapSecret: Type.String(),
  /** The port takes TLS and nothing else. */
  tls: Type.Optional(Type.Boolean()),
});
export type SourceSpec = Static<typeof SourceSpec>;

/**
 * What tells a logical unit from another: its serial number, and its designators in hexadecimal (VPD pages 80
 * and 83). Empty where it has none.
 */
export const ImportedUnit = Type.Object({ serial: Type.String(), designators: Type.String() });
export type ImportedUnit = Static<typeof ImportedUnit>;

/**
 * What tells an NBD export from another beside its length, as far as its server says anything (NBD_INFO_NAME,
 * NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE).
 */
export const ImportedExport = Type.Object({
  name: Type.String(),
  description: Type.String(),
  minimumBlockBytes: Type.Integer({ minimum: 1 }),
});
export type ImportedExport = Static<typeof ImportedExport>;

/** A disk of another system that a clone is made of (volume/import-source.ts). */
export const ImportedSourceSpec = Type.Object({
  /** NBD or iSCSI URI, which may hold a secret, or the path of a file on this host. */
  location: Type.String({ minLength: 1 }),
  /** What it was when it was looked at first; the clone is longer by less than a block. */
  sourceLengthBytes: Type.Integer({ minimum: 512 }),
  /** There where the source said which unit it is. */
  unit: Type.Optional(ImportedUnit),
  /** Of NBD, of volumes that were imported since it is kept. */
  nbdExport: Type.Optional(ImportedExport),
});
export type ImportedSourceSpec = Static<typeof ImportedSourceSpec>;

export const HydrationSettings = Type.Object({
  paused: Type.Boolean({ default: false }),
  /** Upper bound of the background copy in bytes per second; 0 is none. */
  rateBytesPerSecondMax: Type.Integer({ minimum: 0, default: 0 }),
});
export type HydrationSettings = Static<typeof HydrationSettings>;

/** What both kinds of copies have of their own. */
const COPY = {
  /** Durable bits (clone/metadata.ts). Lives beside the data file. */
  metadataPath: Type.String(),
  /**
   * The live validity bits as a shared mapping: outlives the process, not the boot (its header has the boot
   * id). On tmpfs where there is one.
   */
  validityPath: Type.String(),
  hydration: HydrationSettings,
};

/** Where the key of an encrypted volume comes from (crypt/key-provider.ts). The key itself is in no spec. */
export const KeySource = Type.Union([
  Type.Object({ kind: Type.Literal('file'), path: Type.String({ minLength: 1 }) }),
  Type.Object({ kind: Type.Literal('exec'), argv: Type.Array(Type.String(), { minItems: 1 }) }),
]);
export type KeySource = Static<typeof KeySource>;

/** Where a volume is served to clients of other systems. */
export const ServeListen = Type.Union([
  /** A unix socket, for whoever may connect to it: root. */
  Type.Object({ kind: Type.Literal('nbd-unix'), path: Type.String({ minLength: 1 }) }),
  Type.Object({
    kind: Type.Literal('nbd'),
    host: Type.String({ minLength: 1 }),
    /** 0: the system picks. A restarted server asks for the same port again. */
    port: Type.Integer({ minimum: 0, maximum: 65535 }),
    /** TLS and nothing else, for clients with a certificate of the same authority. */
    tls: Type.Optional(TlsFilesSpec),
  }),
  Type.Object({
    kind: Type.Literal('iscsi'),
    host: Type.String({ minLength: 1 }),
    port: Type.Integer({ minimum: 0, maximum: 65535 }),
    targetIqn: Type.String(),
    /** Of every client. */
    chapUser: Type.String({ minLength: 1 }),
    chapSecret: Type.String({ minLength: 12 }),
    /** As of NBD; the login comes after it. */
    tls: Type.Optional(TlsFilesSpec),
  }),
]);
export type ServeListen = Static<typeof ServeListen>;

/** An attached volume as an NBD export on a unix socket. */
export const NbdSocketSpec = Type.Object({
  /** At most 107 bytes. */
  path: Type.String({ minLength: 1 }),
  /** Who may connect, beside root. */
  owner: Type.Object({ uid: Type.Integer({ minimum: 0 }), gid: Type.Integer({ minimum: 0 }) }),
  /**
   * `guest`: reads and writes, and there is no FUSE file. `observer`: reads what a guest writes through the
   * FUSE file.
   */
  client: OneOf('guest', 'observer'),
});
export type NbdSocketSpec = Static<typeof NbdSocketSpec>;

/**
 * `standby`: everything is open (files, login, FUSE file) and every read and write waits: the state of a
 * target before the handoff, and of an export before the seal. `writable` and `readonly`: what they say.
 */
export const Access = OneOf('standby', 'writable', 'readonly');
export type Access = Static<typeof Access>;

/** How much of a disk's reserve is open: none, half, all of it but its last part (volume/disk-room.ts). */
export type Leaving = 'no' | 'running' | 'stopped';

/** Of every opening. */
const VOLUME = {
  volumeId: Type.String({ pattern: OWN_NAME_PATTERN }),
  /**
   * The generation that this opening is for; must equal the one in the volume's record on disk when it is
   * opened for more than `standby`.
   */
  generation: Type.Integer({ minimum: 1 }),
  lengthBytes: Type.Integer({ minimum: 4096 }),
  /** Folder of the volume: `volume.json` (the record) and `data.raw`. */
  volumeDir: Type.String(),
  /** In the kernel's own devices (room kernel). Left out: by a volume server. */
  plane: Type.Optional(Type.Literal('kernel')),
};

/**
 * What becomes of writes when the disk is full but for its reserve (volume/disk-room.ts). Left out: they
 * wait.
 */
const WHEN_FULL = Type.Optional(OneOf('pause', 'error'));

/** What an earlier server told to be lost, and perhaps could not write down. */
const DATA_LOSS = Type.Optional(Type.Object({ atMs: Type.Number(), reason: Type.String() }));

/** Of an opening in role `attach`. */
const ATTACH = {
  access: Access,
  whenFull: WHEN_FULL,
  /** How much of that reserve is open, for a machine that leaves: the last `room`. Left out: none. */
  leaving: Type.Optional(OneOf('running', 'stopped')),
  /** The guest has had a server before this one, which was ready and is gone. Left out: no. */
  follows: Type.Optional(Type.Boolean()),
  /**
   * With `follows`: what that one said of the filesystem that its data is in (sys/filesystem-instance.ts).
   */
  instance: Type.Optional(Type.String()),
  dataLoss: DATA_LOSS,
  nbd: Type.Optional(NbdSocketSpec),
};

/** A LUKS2 header and its key. */
const HEADER = {
  uuid: Type.String(),
  /** Which key of the volume (crypt/key-provider.ts). */
  keyGeneration: Type.Integer({ minimum: 1 }),
  /** Left out: this one. */
  keyVolumeId: Type.Optional(Type.String({ pattern: OWN_NAME_PATTERN })),
};

const ENCRYPTION = {
  ...HEADER,
  keys: KeySource,
  /** No call leaves zeros in the ciphertext (volume/record.ts). */
  holes: Type.Optional(Type.Literal('none')),
};

/**
 * The data file is the ciphertext of a LUKS2 volume, whose header is a file beside it. `lengthBytes` is that
 * of plaintext and ciphertext.
 */
const EncryptionSpec = Type.Object(ENCRYPTION);
export type EncryptionSpec = Static<typeof EncryptionSpec>;

const OWN = Type.Object({
  kind: Type.Literal('own'),
  ...VOLUME,
  ...ATTACH,
  encryption: Type.Optional(EncryptionSpec),
});
export type OwnSpec = Static<typeof OWN>;

const CLONE = Type.Object({
  kind: Type.Literal('clone'),
  ...VOLUME,
  ...ATTACH,
  encryption: Type.Optional(
    Type.Object({
      ...ENCRYPTION,
      /** The export is ciphertext under another header and key, which come from the same place. */
      source: Type.Optional(Type.Object(HEADER)),
    }),
  ),
  clone: Type.Object({
    ...COPY,
    source: SourceSpec,
    /** Certificate files of this host: there where the source is reached over TLS. */
    tls: Type.Optional(TlsFilesSpec),
  }),
});
export type CloneSpec = Static<typeof CLONE>;

const IMPORT = Type.Object({
  kind: Type.Literal('import'),
  ...VOLUME,
  ...ATTACH,
  encryption: Type.Optional(EncryptionSpec),
  clone: Type.Object({ ...COPY, source: ImportedSourceSpec }),
});
export type ImportSpec = Static<typeof IMPORT>;

const EXPORT = Type.Object({
  kind: Type.Literal('export'),
  ...VOLUME,
  access: OneOf('standby', 'readonly'),
  export: Type.Object({
    listenHost: Type.String(),
    /**
     * 0: the system picks; the `ready` event says which. A restarted export asks for the same port again.
     */
    listenPort: Type.Integer({ minimum: 0, maximum: 65535 }),
    targetIqn: Type.String(),
    grants: Type.Array(Grant),
    /** Certificate files of this host: the port takes TLS and nothing else. */
    tls: Type.Optional(TlsFilesSpec),
  }),
});
export type ExportSpec = Static<typeof EXPORT>;

const SERVE = Type.Object({
  kind: Type.Literal('serve'),
  ...VOLUME,
  /** With either the lock of a writer is held, so that nothing changes under a reader. */
  access: OneOf('readonly', 'writable'),
  whenFull: WHEN_FULL,
  dataLoss: DATA_LOSS,
  encryption: Type.Optional(EncryptionSpec),
  serve: Type.Object({
    /** What NBD clients ask for. */
    exportName: Type.String(),
    listen: ServeListen,
  }),
});
export type ServeSpec = Static<typeof SERVE>;

/** An opening in role `attach`. */
export type AttachSpec = OwnSpec | CloneSpec | ImportSpec;
export const OpeningSpec = Type.Union([OWN, CLONE, IMPORT, EXPORT, SERVE]);
export type OpeningSpec = AttachSpec | ExportSpec | ServeSpec;

/**
 * What a guest touched at its last boot and latest, most wanted first, in regions of 64 KiB
 * (`HEAT_REGION_BYTES` of heat.ts).
 */
export const HeatHint = Type.Object({
  regions: Type.Array(Type.Integer({ minimum: 0 }), { maxItems: 1024 }),
});
export type HeatHint = Static<typeof HeatHint>;
