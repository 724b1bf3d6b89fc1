import { type About, type Condition, collectConditions, type TellsConditions } from './condition.ts';
import { type MetricReading, readMetrics, type TellsMetrics } from './metric.ts';

/**
 * A part of a worker: how it is made, of what, and what it does at the start and at the end of the worker.
 * `Made` is what others get of it.
 *
 * `parts` has all of them. Those that are needed for the making are in `needs`, and are made before; what is
 * only reached for later (by a callback, at the start) may be any, in a circle too.
 */
export type Part<Parts, Made> = {
  readonly needs: readonly Exclude<keyof Parts & string, keyof Told>[];
  make(parts: Parts): Made | Promise<Made>;
  /** When all are made, in the order of their making. The worker is up when the last has started. */
  start?(made: Made, parts: Parts): unknown;
  /** At the end, before any is closed: it begins nothing any more of itself. */
  rest?(made: Made): void;
  /** In the opposite order of the making, also of what was made by a worker that did not come up. */
  close?(made: Made, parts: Parts): unknown;
  /** What it knows to be the matter with a machine, a volume, a run or the worker (`godwit why`). */
  readonly conditions?: TellsConditions<Parts, Made>;
  /** What it counts and measures (`/metrics`); reading asks nobody. */
  readonly metrics?: TellsMetrics<Parts, Made>;
};

/** What all parts say together, for whichever of them answers for the worker. */
export type Told = {
  conditions(about: About): Promise<Condition[]>;
  metrics(): MetricReading[];
};

export type PartTable<Given, Made> = {
  readonly [Name in keyof Made]: Part<Given & Made & Told, Made[Name]>;
};

/**
 * The names so that each comes after those it needs, and otherwise as they stand. Throws where parts need
 * each other in a circle, or one that is not there.
 */
export function orderOf(
  table: Readonly<Record<string, { needs: readonly string[] }>>,
  given: object,
): string[] {
  const order: string[] = [];
  const visit = (name: string, from: readonly string[]): void => {
    if (order.includes(name) || name in given) return;
    const path = [...from, name];
    if (from.includes(name)) throw new Error(`parts need each other in a circle: ${path.join(', ')}`);
    const part = table[name];
    if (part === undefined)
      throw new Error(`there is no part ${path.toReversed().join(', which is needed by ')}`);
    for (const need of part.needs) visit(need, path);
    order.push(name);
  };
  for (const name of Object.keys(table)) visit(name, []);
  return order;
}

/**
 * Makes the parts, starts them, and closes them in the end. Rejects with what the first that fails rejects
 * with, when those that were made are closed; an error in closing one does not keep the others open, and is
 * what `close` rejects with.
 */
export async function assemble<Given extends object, Made extends object>(
  table: PartTable<Given, Made>,
  given: Given,
): Promise<{ parts: Given & Made & Told; close: () => Promise<void> }> {
  const rows = table as unknown as Readonly<Record<string, Part<unknown, unknown>>>;
  const made = new Map<string, unknown>();
  const told: Told = {
    conditions: (about) =>
      collectConditions(
        Object.entries(rows).flatMap(([name, { conditions }]) =>
          conditions ? { conditions, made: made.get(name) } : [],
        ),
        about,
        parts,
      ),
    metrics: () =>
      readMetrics(
        Object.entries(rows).flatMap(([name, { metrics }]) =>
          metrics ? { metrics, made: made.get(name) } : [],
        ),
        parts,
      ),
  };
  const parts = new Proxy({ ...told, ...given } as Given & Made & Told, {
    get: (target, name: string) => {
      if (made.has(name)) return made.get(name);
      if (name in target || !(name in rows)) return (target as Record<string, unknown>)[name];
      throw new Error(`the part ${name} is not made yet: it belongs into the needs of who reaches for it`);
    },
  });
  let closing: Promise<void> | null = null;
  const close = async (): Promise<void> => {
    const errors: unknown[] = [];
    const reversed = [...made].toReversed();
    for (const [name, value] of reversed) rows[name]!.rest?.(value);
    for (const [name, value] of reversed) {
      try {
        await rows[name]!.close?.(value, parts);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  };
  try {
    const order = orderOf(rows, given);
    for (const name of order) made.set(name, await rows[name]!.make(parts));
    for (const name of order) await rows[name]!.start?.(made.get(name), parts);
  } catch (error) {
    await close().catch(() => {});
    throw error;
  }
  return {
    parts,
    close: () => {
      closing ??= close();
      return closing;
    },
  };
}
