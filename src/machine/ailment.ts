import type { ShimStatus } from '../shim/protocol.ts';
import { STEADY_MS } from './restart-policy.ts';

/** How a machine is not what its owner wants, though it is wanted to run; null: nothing to say. */
export type Ailment = {
  /** `ended`: it is not started again. `restarting`: it ends whenever it is started. `unhealthy`: it runs. */
  kind: 'ended' | 'restarting' | 'unhealthy';
  /** The end of a sentence that begins with "it". */
  message: string;
  /** Its command says that all went well, whenever it ends: as one does that goes on in the background. */
  endsWell?: true;
};

/** To the owner of a machine whose command `endsWell`. */
export const DAEMON_HINT =
  'A program that goes into the background ends for its machine: have it stay in the foreground.';

/** For the end of a sentence, where it is so: what ends for want of memory looks like any other end. */
export function killedText(outOfMemoryKills: number | undefined): string {
  return outOfMemoryKills ? `; ${outOfMemoryKills} of its processes were killed, out of memory` : '';
}

/** `nowMs` is wall clock. Pure. */
export function ailmentOf(workload: ShimStatus['workload'], nowMs: number): Ailment | null {
  if (workload === null) return null;
  const { state, exitCode, exitSignal, restarts, startedAtMs, health } = workload;
  const how = exitSignal ?? `exit code ${exitCode ?? '?'}`;
  const killed = killedText(workload.outOfMemoryKills);
  if (state === 'failed' || (state === 'exited' && exitCode !== 0))
    return { kind: 'ended', message: `ended with ${how}, and its policy starts it no more${killed}` };
  // A start that is still to come was before the clock was set back, and nobody knows for how long.
  const forMs = startedAtMs === null ? 0 : nowMs - startedAtMs;
  const isYoung = forMs >= 0 && forMs < STEADY_MS;
  if (
    state === 'restarting' ||
    (state === 'running' && restarts > 0 && isYoung && health.state !== 'healthy')
  )
    return {
      kind: 'restarting',
      message: `ends whenever it is started (${restarts} restarts, last ${how}${killed})`,
      ...(exitCode === 0 && { endsWell: true }),
    };
  if (state === 'running' && health.state === 'unhealthy')
    return { kind: 'unhealthy', message: `runs and is not healthy: ${health.message}${killed}` };
  return null;
}
