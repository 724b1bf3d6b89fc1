import { GodwitError } from '../../base/errors.ts';
import { questionText } from '../../base/progress.ts';
import type { ForceRunRequest } from '../../contract/schemas.ts';
import { goesBack, type RunView, stepText } from '../../journal/run.ts';
import type { Context } from '../context.ts';
import { EXIT, ExitWith } from '../exit.ts';
import { printable, table } from '../table.ts';
import { formatDuration } from '../units.ts';

export async function list(context: Context, options: { all?: boolean }): Promise<void> {
  const { items, unreachable } = await context.fleet().gather(async ({ name, client }) => {
    const runs = await client.listRuns({ state: options.all ? 'all' : 'unfinished' });
    return runs.map((run) => ({ worker: name, run }));
  });
  items.sort((left, right) => right.run.createdAtMs - left.run.createdAtMs);
  context.result(
    {
      runs: items.map(({ worker, run }) => ({ worker, ...run })),
      unreachable: unreachable.map(({ worker, url, error }) => ({ worker, url, error: error.toWire() })),
    },
    () => {
      if (items.length === 0) return options.all ? 'No runs.' : 'No unfinished runs.';
      const rows = items.map(({ worker, run }) => [
        run.id,
        worker,
        run.kind,
        run.resource,
        run.state,
        run.step ?? '-',
        formatDuration(Math.max(0, (run.endedAtMs ?? Date.now()) - run.createdAtMs)),
        printable(reasonOf(run)),
      ]);
      return table(['RUN', 'WORKER', 'KIND', 'RESOURCE', 'STATE', 'STEP', 'TIME', 'REASON'], rows);
    },
  );
  context.noteUnreachable(unreachable);
  if (unreachable.length > 0) throw new ExitWith(EXIT.unreachable);
}

export async function show(context: Context, id: string): Promise<void> {
  const { worker, run } = await context.fleet().run(id);
  context.result({ worker: worker.name, ...run }, () => runText(run, worker.name));
}

function reasonOf(run: RunView): string {
  const back = goesBack(run);
  const reason = run.reason?.message ?? '';
  if (back === null) return run.reason?.message ?? run.error?.message ?? '';
  return `goes back (${back.why})${reason === '' ? '' : `: ${reason}`}`;
}

/** A run with its steps, as `runs show` and `why` print it. */
export function runText(run: RunView, worker: string): string {
  const head = `run ${run.id}: ${run.kind} of ${run.resource} on ${worker}, ${run.state}${run.cancelRequested ? ', cancel requested' : ''}${run.pastPointOfNoReturn ? ', past the point of no return' : ''}`;
  const rows = run.steps.map((step) => [
    `  ${step.name}`,
    step.state,
    step.attempts > 1 ? `${step.attempts} attempts` : '',
    step.startedAtMs !== null && step.endedAtMs !== null
      ? formatDuration(Math.max(0, step.endedAtMs - step.startedAtMs))
      : '',
  ]);
  const lines = [head, table(['  STEP', 'STATE', '', 'TIME'], rows)];
  if (goesBack(run)) lines.push(`  ${printable(stepText(run))}`);
  if (run.reason)
    lines.push(`  waits: ${printable(run.reason.message)}\n  next: ${printable(run.reason.nextAction)}`);
  if (run.asks) {
    const forMs = Math.max(0, Date.now() - run.asks.sinceMs);
    lines.push(`  ${printable(questionText(run.asks))}, for ${formatDuration(forMs)}`);
  }
  if (run.error) {
    lines.push(
      `  error ${run.error.code}: ${printable(run.error.message)}\n  next: ${printable(run.error.nextAction)}`,
    );
  }
  return lines.join('\n');
}

export async function act(context: Context, verb: 'cancel' | 'nudge', id: string): Promise<void> {
  const { worker, run } = await context.fleet().run(id);
  const after =
    verb === 'cancel' ? await worker.client.cancelRun(run.id) : await worker.client.nudgeRun(run.id);
  context.result({ worker: worker.name, ...after }, () => runText(after, worker.name));
}

export async function force(
  context: Context,
  id: string,
  how: ForceRunRequest['how'],
  options: { yes?: boolean; targetIsDestroyed?: boolean },
): Promise<void> {
  if (!options.yes) {
    throw new GodwitError(
      'CLI_INVALID_OPTIONS',
      how === 'unproven'
        ? 'without a receipt nobody can show that what arrived is what left'
        : 'forcing a run may leave what it was doing half done',
      {
        values: { id },
        nextAction: `Look at it first (godwit why ${id}), then: godwit runs force ${id} ${how}${options.targetIsDestroyed ? ' --target-is-destroyed' : ''} --yes`,
      },
    );
  }
  const { worker, run } = await context.fleet().run(id);
  const after = await worker.client.forceRun(run.id, {
    how,
    ...(options.targetIsDestroyed && { targetIsDestroyed: true }),
  });
  context.result({ worker: worker.name, ...after }, () => runText(after, worker.name));
}
