import type { Clock } from '../base/clock.ts';
import { GodwitError, messageOf, toWireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PATIENCE } from '../base/patience.ts';
import { BLOCK_BYTES } from '../block/block-device.ts';
import { type BlockStatistics, blockStatistics, kernelNameOf } from '../host/block-statistics.ts';
import { fstrim } from '../host/fstrim.ts';
import type { IscsiSession } from '../host/iscsiadm.ts';
import { type CloneStatus, parseCloneStatus } from '../host/mapper-table.ts';
import type { HydrationSettings } from '../opening/spec.ts';
import type { HydrationStatus } from '../opening/status.ts';
import { cloneHydration } from './clone-hydration.ts';
import type { KernelHost } from './host.ts';
import {
  decideHydration,
  decidePace,
  firstControl,
  firstPace,
  type HydrationControl,
  type HydrationLimits,
  type HydrationPace,
  limitsAtRate,
} from './hydration-control.ts';
import { mapperNames } from './names.ts';
import { kernelNode, mountPlaceOf } from './nodes.ts';

export type CloneCopyOptions = {
  host: KernelHost;
  clock: Clock;
  logger: Logger;
  limits: HydrationLimits;
  volumeId: string;
  lengthBytes: number;
  /** What the source is here, `/dev/sda`. */
  disk: string;
  session: IscsiSession;
  settings: HydrationSettings;
};

const TICK_MS = 250;
const RATE_SPAN_MS = 5_000;
/** A pulse that waits longer has met a source that does not answer just now; the guest comes first. */
const PULSE_DEADLINE_MS = PATIENCE.pulse.ms;
/** What a guest waits at most for the copy to have begun; it takes a few milliseconds. */
const PULSE_BEGIN_MS = 20;
/** sysfs of a session that can carry I/O. */
const SESSION_UP = 'LOGGED_IN';

/**
 * The copy of one dm-clone device while its guest runs: looks at it four times a second, tells it to copy as
 * much as the guest's reads allow (hydration-control.ts), and knows how far it is.
 */
export class CloneCopy {
  readonly #options: CloneCopyOptions;
  readonly #host: KernelHost;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #names: ReturnType<typeof mapperNames>;
  readonly #session: IscsiSession;
  #settings: HydrationSettings;
  #control: HydrationControl | null = null;
  #pace: HydrationPace | null = null;
  /** Not paused, and trimmed. */
  #enabled = false;
  /** What dm-clone was told last. */
  #copies = false;
  /** In the last tick. */
  #ranMs = 0;
  #trimmed = true;
  #top: string | null = null;
  #status: CloneStatus | null = null;
  #samples: { atMs: number; regions: number }[] = [];
  #guest: BlockStatistics | null = null;
  #wireBytes = 0;
  #lostSinceMs: number | null = null;
  #lastError: string | null = null;
  #stop: (() => void) | null = null;

  constructor(options: CloneCopyOptions) {
    this.#options = options;
    this.#host = options.host;
    this.#clock = options.clock;
    this.#logger = options.logger;
    this.#session = options.session;
    this.#names = mapperNames(options.volumeId);
    this.#settings = options.settings;
  }

  /** Of the guest's device, as of the last look; null: none yet. */
  get guest(): BlockStatistics | null {
    return this.#guest;
  }

  /** In force at the next tick: the trim that comes before the copy may take long. */
  configure(settings: HydrationSettings): void {
    this.#settings = settings;
  }

  /**
   * Begins to look, and to copy when the settings allow it. `top`: the guest's device. `trim`: what its
   * filesystem does not use is told by an fstrim before the copy. `exclusively`: runs a tick while nobody
   * changes the stack.
   */
  start(options: {
    top: string;
    trim: boolean;
    exclusively: (tick: () => Promise<void>) => Promise<void>;
  }): void {
    this.#top = options.top;
    this.#trimmed = !options.trim;
    let stopped = false;
    let cancel = () => {};
    const next = () => {
      cancel = this.#clock.timer(TICK_MS, () => {
        void options
          .exclusively(async () => {
            if (!stopped) await this.#tick();
          })
          .catch((error: unknown) => this.noteError(error))
          .finally(() => {
            if (!stopped) next();
          });
      });
    };
    this.#stop = () => {
      stopped = true;
      cancel();
    };
    next();
  }

  /** No tick begins any more. Idempotent. */
  stop(): void {
    this.#stop?.();
  }

  hydration(): HydrationStatus {
    return cloneHydration({
      status: this.#status,
      lengthBytes: this.#options.lengthBytes,
      samples: this.#samples,
      copies: this.#enabled && !this.#settings.paused,
      lostForMs:
        this.#lostSinceMs === null ? null : Math.round(this.#clock.monotonicMs() - this.#lostSinceMs),
      wireBytes: this.#wireBytes,
      lastError: this.#lastError,
    });
  }

  /** Throws `CLONE_NOT_COMPLETE` unless all was here at the last look. */
  requireWhole(): void {
    const status = this.#status;
    if (status !== null && status.regionsHydrated >= status.regionsTotal && status.regionsHydrating === 0)
      return;
    throw new GodwitError('CLONE_NOT_COMPLETE', 'some blocks of the volume are still only at the source', {
      values: { regionsMissing: (status?.regionsTotal ?? 0) - (status?.regionsHydrated ?? 0) },
      nextAction: 'Wait for hydration; resume it if it is paused.',
    });
  }

  /** Told in the status until the next look that goes well. */
  noteError(error: unknown): void {
    const { code, message } = toWireError(error);
    this.#lastError = `${code}: ${message}`;
  }

  /** Asks the kernel how far it is. Rejects `HOST_UNKNOWN_OUTPUT`, `SYS_CALL_FAILED`. */
  async look(): Promise<void> {
    const status = parseCloneStatus((await this.#host.control.status(this.#names.clone)).text);
    if (status.mode === 'failed' || status.mode === 'readonly') {
      this.#lastError = `PLANE_METADATA_FAILED: the metadata of the clone is ${status.mode}`;
      if (status.mode === 'failed') return;
    }
    this.#status = status;
    await this.#notePresent();
  }

  async #tick(): Promise<void> {
    const nowMs = this.#clock.monotonicMs();
    const guestBefore = this.#guest;
    const statusBefore = this.#status;
    const wireBytesBefore = this.#wireBytes;
    this.#lastError = null;
    await this.look().catch(async (error: unknown) => {
      // Nobody would see how the guest fares beside the copy.
      await this.#pause().catch(() => {});
      throw error;
    });
    const state = await this.#host.iscsi.state(this.#session);
    if (state === SESSION_UP) this.#lostSinceMs = null;
    else this.#lostSinceMs ??= nowMs;
    await this.#applySettings();
    const status = this.#status;
    if (!this.#enabled || this.#settings.paused || status === null || this.#lostSinceMs !== null) return;
    if (status.regionsHydrated >= status.regionsTotal) return;
    // What the guest writes or discards becomes local too, and what it misses comes over the wire too: the
    // copy is in both.
    const localBytes = (status.regionsHydrated - (statusBefore?.regionsHydrated ?? 0)) * BLOCK_BYTES;
    const runMs = this.#runMs(nowMs, Math.min(localBytes, this.#wireBytes - wireBytesBefore));
    if (runMs === 0) return this.#setCopies(false);
    const limits = this.#limits();
    this.#control ??= firstControl(status.regionsHydrated, nowMs, limits);
    const guest = this.#guest;
    const { control, pulse } = decideHydration(
      this.#control,
      {
        atMs: nowMs,
        regionsHydrated: status.regionsHydrated,
        reads: (guest?.reads ?? 0) - (guestBefore?.reads ?? 0),
        readTimeMs: (guest?.readTimeMs ?? 0) - (guestBefore?.readTimeMs ?? 0),
      },
      limits,
    );
    this.#control = control;
    if (control.threshold !== status.hydrationThreshold)
      await this.#host.control.message(this.#names.clone, ['hydration_threshold', String(control.threshold)]);
    const runsFromMs = this.#clock.monotonicMs();
    if (pulse) await this.#pulse(limits);
    else await this.#setCopies(true);
    if (runMs < TICK_MS) {
      await this.#clock.sleep(runMs);
      await this.#setCopies(false);
      this.#ranMs = this.#clock.monotonicMs() - runsFromMs;
    } else this.#ranMs = TICK_MS;
  }

  /** For how long of the next tick the copy runs. */
  #runMs(nowMs: number, copiedBytes: number): number {
    const pace = this.#pace;
    const ranMs = this.#ranMs;
    this.#ranMs = 0;
    if (this.#settings.rateBytesPerSecondMax === 0) {
      this.#pace = null;
      return TICK_MS;
    }
    const decided = decidePace(
      pace ?? firstPace(nowMs - TICK_MS),
      { atMs: nowMs, copiedBytes: pace === null ? 0 : copiedBytes, ranMs },
      this.#settings.rateBytesPerSecondMax,
      TICK_MS,
    );
    this.#pace = decided.pace;
    return decided.runMs;
  }

  async #setCopies(copies: boolean): Promise<void> {
    if (this.#copies === copies) return;
    await this.#host.control.message(this.#names.clone, [copies ? 'enable_hydration' : 'disable_hydration']);
    this.#copies = copies;
  }

  /**
   * Holds the guest until none of its I/O is in flight, and lets dm-clone begin to copy as many regions as
   * the floor wants.
   */
  async #pulse(limits: HydrationLimits): Promise<void> {
    const { mapper, control } = this.#host;
    const { gate, clone } = this.#names;
    const threshold = Math.max(limits.floorRegions, this.#control?.threshold ?? 0);
    await control.message(clone, ['hydration_threshold', String(threshold)]);
    // Changing the flag is what wakes its worker; it would look by itself once a second. Half of that can be
    // done before the guest is held.
    await this.#setCopies(false);
    try {
      // A process, which can be killed when the source does not answer.
      await mapper.suspend(gate, { flush: false, deadlineMs: PULSE_DEADLINE_MS });
      await this.#setCopies(true);
      await this.#begun(limits.floorRegions);
    } finally {
      await control.resume(gate);
    }
  }

  /** Its worker stops at the first I/O of the guest, and is not there at once. */
  async #begun(regions: number): Promise<void> {
    const deadlineMs = this.#clock.monotonicMs() + PULSE_BEGIN_MS;
    const hydratedBefore = this.#status?.regionsHydrated ?? 0;
    const wanted = Math.min(regions, (this.#status?.regionsTotal ?? 0) - hydratedBefore);
    while (this.#clock.monotonicMs() < deadlineMs) {
      const { regionsHydrated, regionsHydrating } = parseCloneStatus(
        (await this.#host.control.status(this.#names.clone)).text,
      );
      if (regionsHydrated - hydratedBefore + regionsHydrating >= wanted) return;
      await this.#clock.sleep(1);
    }
  }

  /**
   * Brings dm-clone to what was asked for. The first time it may copy, what the filesystem does not use is
   * trimmed away before.
   */
  async #applySettings(): Promise<void> {
    const { paused } = this.#settings;
    if (paused) await this.#pause();
    if (!paused && !this.#enabled) {
      await this.#trim();
      this.#enabled = true;
      this.#control = null;
      this.#pace = null;
    }
  }

  async #pause(): Promise<void> {
    if (!this.#enabled) return;
    await this.#setCopies(false);
    this.#enabled = false;
  }

  /**
   * Discards of a mounted filesystem mark what it does not use as local: holes of the source, and what the
   * free map left out.
   */
  async #trim(): Promise<void> {
    if (this.#trimmed || this.#top === null) return;
    this.#trimmed = true;
    try {
      const place = await mountPlaceOf(this.#top);
      if (place === null) return;
      const trimmedBytes = await fstrim(this.#host.tools, place);
      this.#logger.info({ trimmedBytes }, 'trimmed');
    } catch (error) {
      this.#logger.warn({ reason: messageOf(error) }, 'not trimmed; unused blocks are fetched too');
    }
  }

  #limits(): HydrationLimits {
    return limitsAtRate(this.#options.limits, this.#settings.rateBytesPerSecondMax);
  }

  async #notePresent(): Promise<void> {
    const nowMs = this.#clock.monotonicMs();
    if (this.#status) this.#samples.push({ atMs: nowMs, regions: this.#status.regionsHydrated });
    while (this.#samples.length > 1 && this.#samples[0]!.atMs < nowMs - RATE_SPAN_MS) this.#samples.shift();
    const disk = await blockStatistics(kernelNameOf(this.#options.disk)).catch(() => null);
    if (disk) this.#wireBytes = disk.readBytes;
    if (this.#top) this.#guest = await blockStatistics(await kernelNode(this.#top)).catch(() => this.#guest);
  }
}
