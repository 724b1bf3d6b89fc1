import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { table } from '../../src/cli/table.ts';
import type { Mode, Plan, Result } from '../hydration-program.ts';
import { Lab } from '../lab.ts';
import { type Member, mustRun } from '../member.ts';
import { prepareGuest } from '../prepare.ts';

const PROGRAM = fileURLToPath(new URL('../hydration-program.ts', import.meta.url));
const PLAN_FILE = '/root/plan.json';
const ROUND_TRIP_MS = 2;
const WAYS: readonly { mode: Mode; name: string }[] = [
  { mode: 'default', name: 'dm-clone, its defaults (1/1)' },
  { mode: 'tuned', name: 'dm-clone, 64/64' },
  { mode: 'kernel', name: 'kernel plane' },
  { mode: 'userspace', name: 'userspace plane' },
];

/**
 * The table of docs/kernel-plane.md: one sealed volume, one target guest, one load, four ways to clone. Held
 * to: both planes become whole under a load with which dm-clone as it comes does not, or before it.
 */
export async function hydration(say: (line: string) => void): Promise<void> {
  const lab = await Lab.start({
    guests: [
      { name: 'source', diskBytes: [2 ** 31] },
      { name: 'target', diskBytes: [2 ** 32] },
    ],
  });
  try {
    const [source, target] = [lab.guest('source'), lab.guest('target')];
    await Promise.all([prepareGuest(source), prepareGuest(target)]);
    const plan = JSON.parse(await program(source, 'source', source.address)) as Plan;
    await target.writeFile(PLAN_FILE, JSON.stringify(plan), 0o600);
    await lab.shape(source, { delayMs: ROUND_TRIP_MS });
    say('a sealed volume is exported');
    const results: Result[] = [];
    for (const { mode, name } of WAYS) {
      // Every one begins with cold caches.
      for (const guest of [source, target])
        await mustRun(guest, ['sh', '-c', 'sync; echo 3 > /proc/sys/vm/drop_caches']);
      results.push(JSON.parse(await program(target, 'target', mode, PLAN_FILE)) as Result);
      say(`${name}: measured`);
    }
    console.log(
      table(
        ['', 'until mounted', 'read p50', 'read p99', 'reads/s', 'over the wire', 'source released'],
        results.map((result, index) => [
          WAYS[index]!.name,
          `${Math.round(result.usableMs)} ms`,
          `${result.readP50Ms.toFixed(1)} ms`,
          `${result.readP99Ms.toFixed(1)} ms`,
          String(Math.round(result.readsPerSecond)),
          `${Math.round(result.wireBytes / 2 ** 20)} MiB${result.releasedMs === null ? ' so far' : ''}`,
          result.releasedMs === null
            ? `never: ${(result.localShare * 100).toFixed(0)} % local after 90 s`
            : `${(result.releasedMs / 1000).toFixed(1)} s`,
        ]),
      ),
    );
    const byDefault = results.find(({ mode }) => mode === 'default')!;
    for (const plane of results.filter(({ mode }) => mode === 'kernel' || mode === 'userspace')) {
      assert.ok(plane.releasedMs !== null, `the ${plane.mode} plane did not become whole`);
      if (byDefault.releasedMs === null) continue;
      assert.ok(plane.releasedMs < byDefault.releasedMs, 'dm-clone with its defaults was as quick');
      assert.ok(plane.wireBytes < byDefault.wireBytes, 'dm-clone with its defaults needed no more bytes');
    }
  } finally {
    await lab.close();
  }
}

async function program(member: Member, ...words: string[]): Promise<string> {
  const argv = [process.execPath, '--disable-warning=ExperimentalWarning', PROGRAM, ...words];
  return mustRun(member, argv, { timeoutMs: 240_000 });
}
