import type { LifeResult } from './life.ts';

/** What lives came to, for a person. Pure. */
export function figures(lives: readonly LifeResult[]): string {
  const sum = (of: (life: LifeResult) => number) => lives.reduce((total, life) => total + of(life), 0);
  const kinds = new Set(lives.flatMap(({ stats }) => Object.keys(stats)));
  const counted = [...kinds].sort().map((kind) => `${kind} ${sum(({ stats }) => stats[kind] ?? 0)}`);
  return [
    `${sum(({ drains }) => drains)} drains, ${sum(({ moves }) => moves)} moves in ${sum(({ simulatedHours }) => simulatedHours).toFixed(1)} simulated hours`,
    `${sum(({ acknowledgedWrites }) => acknowledgedWrites)} acknowledged writes, ${sum(({ checkedReads }) => checkedReads)} checked reads, ${sum(({ events }) => events)} events`,
    ...counted,
  ].join('\n  ');
}
