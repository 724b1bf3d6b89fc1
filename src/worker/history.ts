import type { RunView } from '../journal/run.ts';
import type { MigrateOutInput, MigrateOutOutput } from '../migration/migrate-out.ts';
import type { MoveHistory } from '../migration/plan.ts';

/** What finished moves say about the next ones. Pure. */
export function moveHistory(done: readonly RunView[]): MoveHistory {
  const interruptions = new Map<string, number[]>();
  const rates: number[] = [];
  for (const run of done) {
    const { machineId } = run.input as MigrateOutInput;
    const { interruptionMs, last } = run.output as MigrateOutOutput;
    if (interruptionMs)
      interruptions.set(machineId, [...(interruptions.get(machineId) ?? []), interruptionMs.total]);
    const { activated, hydrated } = last?.timesMs ?? {};
    if (
      last?.hydration &&
      activated &&
      hydrated &&
      hydrated > activated &&
      last.hydration.wireBytes > 2 ** 20
    ) {
      rates.push((last.hydration.wireBytes / (hydrated - activated)) * 1000);
    }
  }
  const all = [...interruptions.values()].flat();
  return {
    interruptionMs: (machineId) => median(interruptions.get(machineId) ?? all),
    bytesPerSecond: median(rates),
  };
}

function median(values: readonly number[]): number | null {
  if (values.length === 0) return null;
  return [...values].sort((left, right) => left - right)[Math.floor(values.length / 2)]!;
}
