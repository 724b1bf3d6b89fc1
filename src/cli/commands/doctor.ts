import { assessHost, missingFor, type Plane } from '../../host/capabilities.ts';
import { readHostFacts } from '../../host/host-facts.ts';
import type { Context } from '../context.ts';
import { table } from '../table.ts';

const PLANES: readonly Plane[] = ['userspace', 'kernel'];

/** What this host can do, and what would make each no a yes. Asks no worker and changes nothing. */
export function doctor(context: Context): void {
  const capabilities = assessHost(readHostFacts());
  const planes = PLANES.map((plane) => ({
    plane,
    ok: missingFor(plane, capabilities).length === 0,
    missing: missingFor(plane, capabilities).map(({ what }) => what),
  }));
  context.result({ planes, capabilities }, () => {
    const rows = capabilities.map(({ what, planes: needed, ok, detail, remedy }) => [
      ok ? 'yes' : 'no',
      what,
      needed.length === PLANES.length ? 'both' : needed.join(', '),
      remedy === null ? detail : `${detail}: ${remedy}`,
    ]);
    const verdicts = planes.map(({ plane, ok, missing }) =>
      ok ? `${plane} plane: yes` : `${plane} plane: no, for want of ${missing.join(', ')}`,
    );
    return [table(['', 'WHAT', 'PLANE', ''], rows), '', ...verdicts].join('\n');
  });
}
