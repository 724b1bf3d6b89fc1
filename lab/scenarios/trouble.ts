import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { MIGRATE_IN } from '../../src/migration/migrate-in.ts';
import type { MIGRATE_OUT } from '../../src/migration/migrate-out.ts';
import { prepareGuest } from '../prepare.ts';
import { isGuest, type MoveInProgress, type MoveOptions, patienceMs, until } from './move.ts';

/**
 * What goes wrong while the blocks are on their way. Slow enough a network that they still are when it does.
 */
const SLOW = { rateMbit: 40 };

export const TROUBLE: Readonly<Record<string, MoveOptions>> = {
  'target-worker-dies': {
    from: 'kernel',
    to: 'kernel',
    targetEnvironment: crashAt('reserve'),
    early: targetWorkerDies,
  },
  'cut-60s': { from: 'kernel', to: 'kernel', shape: SLOW, during: (move) => cut(move, 60_000) },
  'delay-20ms': { from: 'kernel', to: 'kernel', shape: { delayMs: 10 } },
  'cut-5s': { from: 'kernel', to: 'kernel', shape: SLOW, during: (move) => cut(move, 5_000) },
  'source-reboots': { from: 'kernel', to: 'kernel', shape: SLOW, during: sourceReboots },
  'target-reboots': {
    ...{ from: 'kernel', to: 'kernel', shape: SLOW },
    during: targetReboots,
    countsLost: true,
  },
  'target-shim-dies': { from: 'kernel', to: 'kernel', shape: SLOW, during: targetShimDies },
};

/** Of migrate-in, in order. */
const STEPS = [
  'reserve',
  'volume',
  'attach',
  'await',
  'activate',
  'boot',
  'healthy',
  'settle',
  'hydrate',
  'prove',
  'finish',
] as const;

/**
 * The worker of that side of a move kills itself at the end of that step, before or after it is noted, once.
 */
export function crashAt(
  step: string,
  when: 'before' | 'after' = 'before',
  side: typeof MIGRATE_IN | typeof MIGRATE_OUT = MIGRATE_IN,
): Record<string, string> {
  return {
    GODWIT_CRASH_AT: `${side}:${step}:${when}-done-append`,
    GODWIT_CRASH_MARKER: `/tmp/crashed-at-${step}`,
  };
}

async function cut(
  { lab, history, target, machineId, say }: MoveInProgress,
  durationMs: number,
): Promise<void> {
  await assertMissing(target, machineId);
  await lab.network.cut();
  await sleep(durationMs);
  await lab.network.heal();
  say(`the network was cut for ${durationMs / 1000} s`);
  await history.more(3, patienceMs());
}

async function sourceReboots({
  source,
  target,
  machineId,
  history,
  say,
  lab,
}: MoveInProgress): Promise<void> {
  const guest = source.member;
  assert.ok(isGuest(guest));
  await assertMissing(target, machineId);
  await guest.kill9();
  await guest.boot();
  await prepareGuest(guest);
  await lab.shape(guest, SLOW);
  await source.start();
  say('the source was killed and booted again');
  await history.more(3, patienceMs());
}

async function targetReboots({ target, machineId, history, say, lab }: MoveInProgress): Promise<void> {
  const guest = target.member;
  assert.ok(isGuest(guest));
  await assertMissing(target, machineId);
  const lives = history.incarnations.length;
  await guest.kill9();
  await guest.boot();
  await prepareGuest(guest);
  await lab.shape(guest, SLOW);
  await target.start();
  await history.incarnation(lives, patienceMs());
  say('the target was killed and booted again; its machine writes');
}

/** With it goes nothing but the process: the next one finds the devices and what they have counted. */
async function targetShimDies({ target, machineId, history, say }: MoveInProgress): Promise<void> {
  await assertMissing(target, machineId);
  const lives = history.incarnations.length;
  const { stdout } = await target.member.run(['pgrep', '-f', `machine/shim[.][jt]s .*${machineId}`]);
  const pid = Number(stdout.trim());
  assert.ok(pid > 0, `one shim of the machine: ${stdout}`);
  await target.member.kill(pid, 'SIGKILL');
  await history.incarnation(lives, patienceMs());
  say("the target's shim was killed; its machine writes again");
}

async function targetWorkerDies({ target, say }: MoveInProgress): Promise<void> {
  for (const [index] of STEPS.entries()) {
    await until(`the death of the worker at ${STEPS[index]}`, async () => !(await target.isRunning()));
    const next = STEPS[index + 1];
    // It may be gone before it answers.
    await (next === undefined ? target.start() : target.spawn(crashAt(next)));
  }
  say(`the target's worker was killed at ${STEPS.length} steps`);
}

async function assertMissing(target: MoveInProgress['target'], machineId: string): Promise<void> {
  const machine = await target.client.showMachine(machineId);
  assert.notEqual(machine.hydration, null, 'the blocks were here before anything went wrong');
}
