import type { Clock } from '../base/clock.ts';
import { isGodwitError, toWireError, type WireError } from '../base/errors.ts';
import { PATIENCE } from '../base/patience.ts';
import type { Condition } from './condition.ts';

/** A volume server that does not answer, or that there is not any more. */
export type ServerTrouble = {
  error: WireError;
  /** Wall clock, of when somebody looked and found it first. */
  sinceMs: number;
  /** Null: none runs. */
  serverPid: number | null;
};

/** What is asked of a shim, beside its own state, about the volume that it holds. */
export type ShimVoice = {
  volume(
    op: 'status',
    args: Record<string, never>,
    options: { volumeTimeoutMs: number; timeoutMs: number },
  ): Promise<unknown>;
};

const TROUBLES = ['RPC_TIMEOUT', 'ATTACH_SERVER_NOT_READY', 'ATTACH_SERVER_DIED', 'ATTACH_SERVER_FAILED'];

/**
 * Whether volume servers answer, for people who ask why. A shim that is well says nothing of a server that
 * hangs (it was stopped, or a disk below it hangs), under which its machine waits without an error. Nobody
 * looks for it all the time: with many machines that would cost more than it tells.
 */
export class VolumeServerLooks {
  readonly #clock: Clock;
  readonly #sinceMs = new Map<string, number>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Null: it answers. `serverPid`: as its shim says. Never rejects, and takes a bounded time. */
  async look(shimId: string, shim: ShimVoice, serverPid: number | null): Promise<ServerTrouble | null> {
    const { ms } = PATIENCE.serverWhy;
    try {
      // The shim has its own word for what its server does not do, when the server's time is up.
      await shim.volume('status', {}, { volumeTimeoutMs: ms, timeoutMs: 1.5 * ms });
    } catch (error) {
      if (isGodwitError(error) && TROUBLES.includes(error.code)) {
        const sinceMs = this.#sinceMs.get(shimId) ?? this.#clock.wallMs();
        this.#sinceMs.set(shimId, sinceMs);
        return { error: toWireError(error), sinceMs, serverPid };
      }
      // Its shim has gone, or it is of a kind that does not know the question.
    }
    this.#sinceMs.delete(shimId);
    return null;
  }
}

/**
 * Nobody answers what it reads and writes: it waits, without an error. `runtimeDir`: of the shim. `who`:
 * the machine, or the served volume.
 */
export function serverConditions(
  trouble: ServerTrouble | null,
  runtimeDir: string,
  who: string,
): Condition[] {
  if (trouble === null) return [];
  const { error, sinceMs, serverPid } = trouble;
  const base = { holdsUp: who, sinceMs, whoCanClearIt: 'an operator of the worker' };
  if (error.code === 'RPC_TIMEOUT') {
    const process = serverPid === null ? 'its process' : `its process (pid ${serverPid})`;
    return [
      {
        ...base,
        code: 'volume-server-silent',
        message: `the volume server of ${who} does not answer: what is read and written waits, and nothing of it is lost`,
        nextAction: `Look whether ${process} is stopped, or waits for a disk, and at ${runtimeDir}/volume-server.log. It may be killed (SIGKILL): another one is started, and goes on with what waits.`,
      },
    ];
  }
  const { lastError } = error.values;
  return [
    {
      ...base,
      code: 'volume-server-ended',
      message: `the volume server of ${who} has ended, and does not come back${lastError ? `: ${lastError}` : ''}; what is read and written waits`,
      nextAction: `It is tried again by itself; ${runtimeDir}/volume-server.log says why it ended.`,
    },
  ];
}
