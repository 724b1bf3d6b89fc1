import type { WireError } from '../base/errors.ts';
import type { Plane } from '../host/capabilities.ts';
import type { VolumeOperation } from './operations.ts';
import { isAttach } from './role.ts';
import type { Access, OpeningSpec } from './spec.ts';
import type { VolumeServerStatus } from './status.ts';

/** Why a backend does not open something. `reason` is the end of a sentence that begins with "the volume". */
export type Refusal = { reason: string; of: 'encryption' | 'source' | 'kind' };

/** What a backend looks at before it opens: a spec, or what is known of one that is not made yet. */
export type Wanted = {
  kind: OpeningSpec['kind'];
  lengthBytes: number;
  /** Its guest comes through NBD. */
  nbd?: object | undefined;
  encryption?: { holes?: 'none'; source?: object } | undefined;
  clone?: { source: object };
  export?: { grants: readonly object[]; tls?: object };
};

/**
 * A way to have volumes open: by a volume server (volume/backend.ts), or in the kernel's own devices
 * (kernel/backend.ts).
 */
export interface Backend {
  /** Null: it opens that. Pure. */
  can(wanted: Wanted): Refusal | null;
  /** Rejects with what keeps it from that; nothing is left open then, but for what `onLeft` was given. */
  open(spec: OpeningSpec): Promise<Opening>;
}

/** One volume that a shim has open. */
export interface Opening {
  /** As last commanded. */
  readonly spec: OpeningSpec;
  /** What a filesystem is mounted from; null in standby of the kernel plane, and where there is none. */
  readonly device: string | null;
  /** Where an export listens. */
  readonly port: number | null;
  /** Asks it one operation, whose arguments it reads. `timeoutMs` left out: as long as it lives. */
  ask(op: VolumeOperation, args: unknown, timeoutMs?: number): Promise<unknown>;
  state(): OpeningState;
  /** All of it is let go, in an order that loses nothing. May be asked again after an error. */
  close(): Promise<void>;
}

export type OpeningState = {
  access: Access;
  serverPid: number | null;
  serverRestarts: number;
  /** The last one that is known. */
  status: VolumeServerStatus | null;
  lastError: WireError | null;
};

/** What a backend tells the shim that it works for. */
export type BackendEvents = {
  /** What is written down of the opening (pids, devices) has changed. */
  onChange: () => void;
  onEvent: (event: string, data: unknown) => void;
  /** Could neither be opened nor closed: to be closed later. */
  onLeft: (opening: Opening) => void;
};

/** A guest that comes through NBD needs a server, whatever the plane of its worker. */
export function planeOf(spec: OpeningSpec): Plane {
  return spec.plane === 'kernel' && !(isAttach(spec) && spec.nbd) ? 'kernel' : 'userspace';
}
