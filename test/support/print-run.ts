import { progressText } from '../../src/base/progress.ts';
import type { RunView, StepView } from '../../src/journal/run.ts';

/*
 * A run for people: what it does, where it is, and why it waits.
 *
 *   run r_01… · migrate-out on machine:m_1 · waiting
 *     since 2026-01-01T00:00:00.000Z (12.0 s ago)
 *     why   the target does not answer (for 8.0 s)
 *     do    Look at worker-2.
 *     ✓ lock     done           0.1 s
 *     ▸ handoff  running        8.0 s  attempt 4
 *     ── point of no return ──
 *       serve    pending
 */

const MARKS: Readonly<Record<StepView['state'], string>> = {
  pending: ' ',
  running: '▸',
  done: '✓',
  failed: '✗',
  undoing: '◂',
  undone: '↶',
};

/** Several lines without a line break at the end. `nowMs` is wall clock. */
export function printRun(run: RunView, nowMs: number): string {
  const lines = [`run ${run.id} · ${run.kind} on ${run.resource} · ${run.state}`];
  const began = new Date(run.createdAtMs).toISOString();
  lines.push(
    run.endedAtMs === null
      ? `  since ${began} (${duration(nowMs - run.createdAtMs)} ago)`
      : `  from  ${began} to ${new Date(run.endedAtMs).toISOString()} (${duration(run.endedAtMs - run.createdAtMs)})`,
  );
  if (run.reason) {
    lines.push(`  why   ${run.reason.message} (for ${duration(nowMs - run.reason.sinceMs)})`);
    lines.push(`  do    ${run.reason.nextAction}`);
  }
  if (run.progress) lines.push(`  pace  ${progressText(run.progress, nowMs)}`);
  if (run.error) {
    lines.push(`  error ${run.error.code}: ${run.error.message}`);
    if (!run.reason) lines.push(`  do    ${run.error.nextAction}`);
  }
  if (run.handedOffTo) lines.push(`  next  run ${run.handedOffTo.runId} · ${run.handedOffTo.kind}`);
  if (run.state === 'failed' && run.pastPointOfNoReturn) {
    lines.push(`  lock  ${run.resource} stays locked until the run is forced forward, undone or forgotten`);
  }
  const nameWidth = Math.max(0, ...run.steps.map((step) => step.name.length));
  for (const step of run.steps) {
    lines.push(
      `  ${MARKS[step.state]} ${step.name.padEnd(nameWidth)}  ${stepText(step, run.endedAtMs ?? nowMs)}`.trimEnd(),
    );
    if (step.pointOfNoReturn) lines.push('  ── point of no return ──');
  }
  return lines.join('\n');
}

/** `untilMs`: to when a step that has not ended has run. */
function stepText(step: StepView, untilMs: number): string {
  if (step.startedAtMs === null) return step.state;
  const took = duration((step.endedAtMs ?? untilMs) - step.startedAtMs);
  return `${step.state.padEnd(7)}  ${took.padStart(11)}${step.attempts > 1 ? `  attempt ${step.attempts}` : ''}`;
}

/** Two units at most: `0.4 s`, `12.0 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`. */
function duration(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.floor(minutes / 60);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
