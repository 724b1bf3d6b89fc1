import { basename } from 'node:path';
import { backoffMs } from '../base/backoff.ts';
import type { Clock } from '../base/clock.ts';
import { toWireError, type WireError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { PAUSE } from '../base/patience.ts';
import type { RunView } from '../journal/run.ts';
import type { MachineManager, Recovery } from '../machine/manager.ts';
import type { MachineRecord } from '../machine/store.ts';
import { targetRunId } from '../migration/migrate-in.ts';
import type { MigrateOutOutput } from '../migration/migrate-out.ts';
import type { VolumeStore } from '../volume/index.ts';
import type { Condition } from './condition.ts';
import { ownerOf } from './shim-owner.ts';

/** Why a machine that should run does not, and when it is tried again. */
export type Trouble = {
  error: WireError;
  /** Wall clock, of the first failure. */
  sinceMs: number;
  attempts: number;
  /** Monotonic clock. */
  retryAtMs: number;
};

export type MachineRecoveryOptions = {
  machines: MachineManager;
  volumes: VolumeStore;
  /** Null: the journal has no such run. */
  run: (id: string) => RunView | null;
  closeExport: (runId: string) => Promise<void>;
  /** How long the sealed volume of a move that an operator had forgotten is kept. */
  retentionMs: number;
  clock: Clock;
  logger: Logger;
};

const LOOK_MS = PAUSE.recoveryLook.ms;
const RETRY = { firstMs: PAUSE.recoveryRetry.ms, maxMs: PAUSE.recoveryRetryMax.ms };

/**
 * Brings back what should be there, again and again until it is: machines that should run and could not be
 * started (a key program that is away for a moment, a disk that is full), and what runs left behind that an
 * operator had forgotten: claims, exports, volumes that never arrived.
 */
export class MachineRecovery {
  readonly #options: MachineRecoveryOptions;
  readonly #troubles = new Map<string, Trouble>();
  #cancelTimer: (() => void) | null = null;
  #closed = false;

  constructor(options: MachineRecoveryOptions) {
    this.#options = options;
  }

  /** Gives back at once what belongs to no run any more. */
  async tidy(): Promise<void> {
    await this.#tidy();
  }

  /**
   * Before anybody can make a machine: a worker that died while it made or destroyed one may have left a
   * volume that belongs to a machine that is not there, which nobody could give to another. What comes or
   * goes with a move, and the volume of a machine whose record cannot be read, stay as they are.
   */
  async freeVolumes(): Promise<void> {
    const { machines, volumes, logger } = this.#options;
    const unread = machines.broken.map(({ file }) => basename(file, '.json'));
    const owners = new Set([...machines.records().map(({ id }) => id), ...unread]);
    const { volumes: all } = await volumes.list();
    for (const { id, name, state, machineId } of all) {
      if (state !== 'ready' || machineId === null || owners.has(machineId)) continue;
      logger.warn(
        { volumeId: id, name, machineId },
        'the machine of a volume is not there: the volume is free',
      );
      await volumes.assignMachine(id, null).catch((error: unknown) => {
        logger.error({ volumeId: id, error: toWireError(error) }, 'a volume without its machine stays taken');
      });
    }
  }

  /** Looks now, and every two seconds from now on. */
  start(): void {
    void this.#turn();
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#closed = true;
    this.#cancelTimer?.();
  }

  trouble(machineId: string): Trouble | null {
    return this.#troubles.get(machineId) ?? null;
  }

  /** What a recovery came to: a failure is tried again. */
  note({ machineId, error }: Recovery): void {
    const { clock } = this.#options;
    if (error === null) {
      this.#troubles.delete(machineId);
      return;
    }
    const known = this.#troubles.get(machineId);
    const attempts = (known?.attempts ?? 0) + 1;
    const pauseMs = backoffMs(RETRY, attempts);
    this.#troubles.set(machineId, {
      error: toWireError(error),
      sinceMs: known?.sinceMs ?? clock.wallMs(),
      attempts,
      retryAtMs: clock.monotonicMs() + pauseMs,
    });
  }

  async #turn(): Promise<void> {
    const { clock, logger } = this.#options;
    try {
      await this.#tidy();
      await this.#retry();
    } catch (error) {
      logger.error(
        { error: toWireError(error) },
        'what was left behind could not be tidied; it is tried again',
      );
    }
    if (!this.#closed) this.#cancelTimer = clock.timer(LOOK_MS, () => void this.#turn());
  }

  async #retry(): Promise<void> {
    const { machines, clock, logger } = this.#options;
    const due = [...this.#troubles].filter(([, { retryAtMs }]) => retryAtMs <= clock.monotonicMs());
    const known = new Map(machines.records().map((record) => [record.id, record]));
    await Promise.all(
      due.map(async ([machineId]) => {
        const record = known.get(machineId);
        if (this.#closed || record === undefined) {
          this.#troubles.delete(machineId);
          return;
        }
        const recovery = await machines.recoverOne(machineId);
        this.note(recovery);
        if (recovery.error === null)
          logger.info({ machineId, outcome: recovery.outcome }, 'recovered at last');
      }),
    );
  }

  /** Gives back what belongs to no run that is open any more. */
  async #tidy(): Promise<void> {
    const { machines, logger, closeExport } = this.#options;
    for (const record of machines.records()) {
      const moveId = record.claimedBy;
      if (moveId === null || this.#isOpen(moveId) || this.#isOpen(targetRunId(moveId))) continue;
      logger.warn(
        { machineId: record.id, runId: moveId },
        'the run that had the machine is over: it is let go',
      );
      await this.#release(record, this.#options.run(moveId));
    }
    for (const name of await machines.shimIds().catch(() => [])) {
      const owner = ownerOf(name);
      if (owner?.kind !== 'export' || this.#isOpen(owner.runId)) continue;
      logger.warn({ shim: name }, 'the run of an export is over: it is closed');
      await closeExport(owner.runId);
    }
  }

  async #release(record: MachineRecord, source: RunView | null): Promise<void> {
    const { machines, volumes, retentionMs, clock } = this.#options;
    const volumeId = record.config.volume?.volumeId;
    const volume = volumeId === undefined ? null : await volumes.get(volumeId).catch(() => null);
    if (volume?.state === 'incoming') {
      // It never arrived, and nobody brings it any more.
      await machines.shutdownShim(record.id);
      await machines.forget(record.id);
      await volumes.destroy(volume.id, { force: true });
      return;
    }
    if (source !== null && volume?.state === 'sealed') {
      const { override } = source.output as MigrateOutOutput;
      await machines.shutdownShim(record.id);
      if (override === undefined) {
        // The target said that it has all of it. This copy is a way back.
        await machines.forget(record.id);
        await volumes.apply(volume.id, {
          kind: 'retain',
          generation: volume.generation,
          destroyAfterMs: clock.wallMs() + retentionMs,
        });
        await volumes.assignMachine(volume.id, null);
        return;
      }
      await volumes.apply(volume.id, { kind: 'unseal', generation: volume.generation });
    }
    await machines.update(record.id, { claimedBy: null });
    this.note(await machines.recoverOne(record.id));
  }

  /** Not over, or over and still holding its machine until an operator decides. */
  #isOpen(runId: string): boolean {
    const run = this.#options.run(runId);
    return run !== null && (run.endedAtMs === null || (run.state === 'failed' && run.step !== null));
  }
}

/** It should run, and could not be started. */
export function recoveryConditions(
  trouble: Trouble | null,
  { name, desired }: { name: string; desired: 'running' | 'stopped' },
): Condition[] {
  // A shim that hangs is told of by itself (`silentConditions`): its machine may well run.
  if (trouble === null || trouble.error.code === 'RPC_TIMEOUT') return [];
  const { error, sinceMs, attempts } = trouble;
  return [
    {
      code: desired === 'running' ? 'machine-not-started' : 'machine-not-stopped',
      holdsUp: `machine ${name}`,
      message: `it could not be ${desired === 'running' ? 'started' : 'stopped'} (${attempts} ${attempts === 1 ? 'try' : 'tries'}; it is tried again by itself): ${error.message}`,
      sinceMs,
      whoCanClearIt: 'an operator; it is tried again by itself',
      nextAction: error.nextAction,
    },
  ];
}
