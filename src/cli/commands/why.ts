import { GodwitError, isGodwitError } from '../../base/errors.ts';
import type { Context } from '../context.ts';
import { EXIT, ExitWith } from '../exit.ts';
import { printable } from '../table.ts';
import { formatDuration } from '../units.ts';
import { runText } from './runs.ts';

/** Everybody is asked: of a machine on the move the source and the target each know a part. */
export async function why(context: Context, ref: string): Promise<void> {
  const { items, unreachable } = await context.fleet().gather(async ({ name, client }) => {
    try {
      return [{ worker: name, why: await client.why(ref) }];
    } catch (error) {
      if (isGodwitError(error) && /NOT_FOUND|UNKNOWN/.test(error.code)) return [];
      throw error;
    }
  });
  if (items.length === 0) {
    context.noteUnreachable(unreachable);
    if (unreachable[0]) throw unreachable[0].error;
    throw new GodwitError('CLI_REF_NOT_FOUND', `no machine, volume, run or worker ${ref} in this fleet`, {
      values: { ref },
      nextAction: 'godwit machine list',
    });
  }
  // Who has something to say goes before those that only had it once.
  items.sort(
    (left, right) => Number(right.why.conditions.length > 0) - Number(left.why.conditions.length > 0),
  );
  context.result(
    {
      answers: items.map(({ worker, why: answer }) => ({ worker, ...answer })),
      unreachable: unreachable.map(({ worker, url, error }) => ({ worker, url, error: error.toWire() })),
    },
    () =>
      items
        .map(({ worker, why: answer }) => {
          const lines = [`${printable(answer.subject)} on ${worker}: ${printable(answer.state)}`];
          if (answer.conditions.length === 0) lines.push('  waits for nothing');
          for (const condition of answer.conditions) {
            const since =
              condition.sinceMs === null
                ? ''
                : ` (for ${formatDuration(Math.max(0, Date.now() - condition.sinceMs))})`;
            lines.push(`  - ${printable(condition.message)}${since}`);
            lines.push(`    who can clear it: ${printable(condition.whoCanClearIt)}`);
            lines.push(`    next: ${printable(condition.nextAction)}`);
          }
          for (const run of answer.runs) lines.push('', runText(run, worker));
          return lines.join('\n');
        })
        .join('\n\n'),
  );
  context.noteUnreachable(unreachable);
  // It may be with one of those who did not answer.
  if (unreachable.length > 0 && items.every(({ why: { gone } }) => gone))
    throw new ExitWith(EXIT.unreachable);
}
