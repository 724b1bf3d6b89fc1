import { systemClock } from '../../base/clock.ts';
import type { DrainStatus } from '../../contract/schemas.ts';
import { AWAY_MS, tellAway } from '../ask-again.ts';
import type { Context } from '../context.ts';
import { followDrain } from '../drain-follow.ts';
import { describeChanges, renderDrain, renderPlan, renderSummary } from '../drain-render.ts';
import { EXIT, ExitWith } from '../exit.ts';
import { Interrupted, interruption } from '../interruption.ts';
import { LiveRegion } from '../live-region.ts';
import { parseDuration } from '../units.ts';

/** Often enough that a bar moves smoothly; a status is one small request to the worker. */
const POLL_MS = 250;

export type DrainOptions = {
  dryRun?: boolean;
  detach?: boolean;
  to?: string;
  rekey?: boolean;
  wait: string;
  jsonLines?: boolean;
  receipts?: string;
};

export async function drain(context: Context, workerName: string, options: DrainOptions): Promise<void> {
  const blockedAfterMs = parseDuration(options.wait);
  const { client, name } = await context.fleet().worker(workerName);
  if (options.dryRun) {
    const plan = await client.plan({ ...(options.to !== undefined && { target: options.to }) });
    context.result(plan, () => renderPlan(plan));
    const stays = plan.steps.some((step) => step.target === null) || (plan.volumes ?? []).length > 0;
    if (stays) throw new ExitWith(EXIT.blocked);
    return;
  }

  const first = await client.drain({ target: options.to ?? null, ...(options.rekey && { rekey: true }) });
  if (options.detach) {
    context.result(
      first,
      () => `${name}: ${first.state}, ${first.machines.length} machines; watch it with: godwit drain ${name}`,
    );
    return;
  }

  const view = makeView(context, options.jsonLines === true);
  const interrupt = interruption();
  try {
    const { status, exitCode } = await followDrain({
      ask: () => client.drainStatus(),
      show: view.show,
      away: tellAway((text) => context.note(text), name, 'the drain'),
      clock: systemClock,
      signal: interrupt.signal,
      pollMs: POLL_MS,
      blockedAfterMs,
      awayMs: AWAY_MS,
    });
    view.end();
    if (options.jsonLines) context.print(JSON.stringify({ final: true, exitCode, status }));
    else {
      context.result(status, () =>
        status.machines.length === 0 ? `${name} has no machine.` : renderSummary(status),
      );
    }
    if (options.receipts !== undefined) {
      const { saveReceipts } = await import('./receipt.ts');
      const saved = await saveReceipts(context, status, options.receipts);
      context.note(`${saved} receipts saved in ${options.receipts}; verify: godwit receipt --verify FILE`);
    }
    if (exitCode === EXIT.blocked) noteBlocked(context, status);
    if (exitCode !== EXIT.done) throw new ExitWith(exitCode);
  } catch (error) {
    view.end();
    if (error instanceof Interrupted) {
      context.note(`No longer watching. The drain goes on in ${name}.`);
      context.note(`  watch it again: godwit drain ${name}`);
      context.note(`  end it:         godwit undrain ${name}`);
    }
    throw error;
  } finally {
    interrupt.dispose();
  }
}

function makeView(
  context: Context,
  jsonLines: boolean,
): { show: (status: DrainStatus) => void; end: () => void } {
  let previous: DrainStatus | null = null;
  if (jsonLines) {
    let last = '';
    return {
      show: (status) => {
        const line = JSON.stringify({ final: false, status });
        if (line !== last) context.print(line);
        last = line;
      },
      end: () => {},
    };
  }
  if (!context.json && context.stdout.isTTY) {
    const region = new LiveRegion(context.stdout);
    return {
      show: (status) =>
        region.draw(
          renderDrain(status, {
            // The last column stays free: some terminals wrap when it is written.
            width: (context.stdout.columns || 80) - 1,
            height: context.stdout.rows || 24,
            style: context.style,
            nowMs: Date.now(),
          }),
        ),
      end: () => region.keep(),
    };
  }
  return {
    show: (status) => {
      // With --json the object comes at the end, and progress is for whoever reads stderr.
      for (const line of describeChanges(previous, status)) {
        if (context.json) context.note(line);
        else context.print(line);
      }
      previous = status;
    },
    end: () => {},
  };
}

function noteBlocked(context: Context, status: DrainStatus): void {
  if (!status.desired) {
    context.note(`The drain of ${status.worker} was ended before it was finished.`);
    return;
  }
  context.note(`The drain of ${status.worker} cannot be finished now:`);
  for (const machine of status.machines) {
    if (machine.state !== 'waiting' && machine.state !== 'failed') continue;
    context.note(`  ${machine.name}: ${machine.reason ?? machine.state}`);
    if (machine.nextAction !== null) context.note(`    next: ${machine.nextAction}`);
  }
  for (const { name, reason, nextAction } of status.volumes ?? []) {
    context.note(`  volume ${name}: ${reason}`);
    context.note(`    next: ${nextAction}`);
  }
  context.note(`It is tried again whenever something changes; to give up: godwit undrain ${status.worker}`);
}

export async function undrain(context: Context, workerName: string): Promise<void> {
  const { client, name } = await context.fleet().worker(workerName);
  const status = await client.undrain();
  const moving = status.machines.filter(({ state }) => state === 'moving' || state === 'hydrating').length;
  context.result(status, () =>
    moving > 0
      ? `${name} takes machines again; ${moving} moves that were under way are finished first`
      : `${name} takes machines again`,
  );
}
