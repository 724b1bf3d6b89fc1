import type { TargetStatus } from '../contract/peer.ts';
import type { RunView } from '../journal/run.ts';
import { stepOf } from './move-watch.ts';

/**
 * Another text whenever a move has come further. Answers say that somebody lives, and not that what he was
 * asked for comes any nearer: they count only in steps that end by themselves. Pure.
 */
function paceMark(run: RunView, live: TargetStatus | null): string {
  const { step, state, progress, pastPointOfNoReturn } = run;
  const counts =
    progress && (progress.unit !== 'answers' || stepOf(run)?.answersAdvance)
      ? `${progress.what} ${progress.count}`
      : '';
  const arrived = live?.hydration ? `${live.hydration.presentBytes} ${live.hydration.wireBytes}` : '';
  const undoing = state === 'undoing';
  return JSON.stringify([step, undoing, pastPointOfNoReturn, counts, live?.phase ?? null, arrived]);
}

/**
 * Which moves have come no further for `heldAfterMs`: a stop that takes its time, a target in doubt, a
 * machine that does not get healthy, blocks that do not come. By the monotonic clock, and from when this
 * process looked first: what a move did before that is not known.
 */
export class MovePace {
  readonly #heldAfterMs: number;
  readonly #marks = new Map<string, { mark: string; sinceMs: number }>();

  constructor(heldAfterMs: number) {
    this.#heldAfterMs = heldAfterMs;
  }

  /** Ids of the unfinished `runs` that are held up at `nowMs`. */
  look(
    runs: readonly RunView[],
    live: (runId: string) => TargetStatus | null,
    nowMs: number,
  ): ReadonlySet<string> {
    const held = new Set<string>();
    const open = runs.filter((run) => run.endedAtMs === null);
    for (const run of open) {
      const mark = paceMark(run, live(run.id));
      const known = this.#marks.get(run.id);
      if (known?.mark !== mark) this.#marks.set(run.id, { mark, sinceMs: nowMs });
      else if (nowMs - known.sinceMs >= this.#heldAfterMs) held.add(run.id);
    }
    const ids = new Set(open.map(({ id }) => id));
    for (const id of this.#marks.keys()) if (!ids.has(id)) this.#marks.delete(id);
    return held;
  }
}
