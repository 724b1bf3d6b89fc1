import { GodwitError } from '../base/errors.ts';
import type { Plane } from '../host/capabilities.ts';
import { type Backend, type BackendEvents, type Opening, planeOf } from '../opening/backend.ts';
import type { VolumeOperation } from '../opening/operations.ts';
import { isSameOpening, roleOf, shown } from '../opening/role.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import type { ShimOps, ShimStatus } from './protocol.ts';

/** Made when a volume is opened: a machine without a volume does not load its code. */
export type MakeBackend = (plane: Plane, events: BackendEvents) => Promise<Backend>;

/** The one volume of a shim, open in whichever backend its spec is for. */
export class VolumeHolder {
  readonly #makeBackend: MakeBackend;
  readonly #events: Omit<BackendEvents, 'onLeft'>;
  #opening: Opening | null = null;

  constructor(makeBackend: MakeBackend, events: Omit<BackendEvents, 'onLeft'>) {
    this.#makeBackend = makeBackend;
    this.#events = events;
  }

  /** Answers at once where it is open. Rejects `MACHINE_VOLUME_OPEN`, and as the backend. */
  async open(spec: OpeningSpec): Promise<ShimOps['volume.open']['result']> {
    if (this.#opening && !isSameOpening(this.#opening.spec, spec)) {
      const { kind, volumeId, generation } = this.#opening.spec;
      const role = roleOf(kind);
      throw new GodwitError('MACHINE_VOLUME_OPEN', `this shim has volume ${volumeId} open (${role})`, {
        values: { volumeId, generation, role },
        nextAction: 'Close it first.',
      });
    }
    if (this.#opening === null) {
      const onLeft = (opening: Opening) => {
        this.#opening = opening;
      };
      // The next volume of a shim may be of the other plane.
      const backend = await this.#makeBackend(planeOf(spec), { ...this.#events, onLeft });
      this.#opening = await backend.open(spec);
    }
    const { device, port } = this.#opening;
    return { loopDevice: device, exportPort: port };
  }

  /** Rejects `MACHINE_NO_VOLUME`, and with what the volume answers. */
  async ask(op: VolumeOperation, args: unknown, timeoutMs?: number): Promise<unknown> {
    if (this.#opening) return this.#opening.ask(op, args, timeoutMs);
    throw new GodwitError('MACHINE_NO_VOLUME', 'this shim has no volume open', {
      nextAction: 'Open the volume first; a machine without a volume has no such operation.',
    });
  }

  async close(): Promise<void> {
    await this.#opening?.close();
    this.#opening = null;
  }

  /** Null when no volume is open. */
  status(): Omit<NonNullable<ShimStatus['volume']>, 'mounted'> | null {
    if (this.#opening === null) return null;
    const { spec, device } = this.#opening;
    const { access, ...state } = this.#opening.state();
    return { spec: { ...shown(spec), access }, loopDevice: device, ...state };
  }
}
