import type { OperationArgs, VolumeOperation } from './operations.ts';
import { isAttach, wholeSpec } from './role.ts';
import type { OpeningSpec } from './spec.ts';

type Asked = { [Op in VolumeOperation]: { op: Op; args: OperationArgs<Op> } }[VolumeOperation];

/** What the next server is to be told, after this one has answered an operation. Pure. */
export function specAfter(spec: OpeningSpec, { op, args }: Asked): OpeningSpec {
  switch (op) {
    case 'activate':
      // What a server has taken fits the kind.
      return { ...spec, access: args.access } as OpeningSpec;
    case 'seal':
      return isAttach(spec) ? { ...spec, access: 'readonly' } : spec;
    case 'hydration':
      return withHydration(spec, args);
    case 'finish':
      return isAttach(spec) ? wholeSpec(spec) : spec;
    case 'room': {
      if (!isAttach(spec)) return spec;
      const { leaving: _before, ...rest } = spec;
      return args.leaving ? { ...rest, leaving: args.stopped === false ? 'running' : 'stopped' } : rest;
    }
    case 'grant':
      return withGrants(spec, args.initiatorIqn, [args]);
    case 'revoke':
      return withGrants(spec, args.initiatorIqn, []);
    default:
      return spec;
  }
}

function withHydration(spec: OpeningSpec, hydration: OperationArgs<'hydration'>): OpeningSpec {
  if (spec.kind === 'clone') return { ...spec, clone: { ...spec.clone, hydration } };
  if (spec.kind === 'import') return { ...spec, clone: { ...spec.clone, hydration } };
  return spec;
}

/** `grants` in the place of those of that initiator. */
function withGrants(spec: OpeningSpec, initiatorIqn: string, grants: OperationArgs<'grant'>[]): OpeningSpec {
  if (spec.kind !== 'export') return spec;
  const others = spec.export.grants.filter((one) => one.initiatorIqn !== initiatorIqn);
  return { ...spec, export: { ...spec.export, grants: [...others, ...grants] } };
}

/** At the port that a server has got: the next one must be found where the first one was. */
export function specAtPort(spec: OpeningSpec, port: number): OpeningSpec {
  if (spec.kind === 'export') return { ...spec, export: { ...spec.export, listenPort: port } };
  if (spec.kind !== 'serve' || spec.serve.listen.kind === 'nbd-unix') return spec;
  return { ...spec, serve: { ...spec.serve, listen: { ...spec.serve.listen, port } } };
}

/** After a server that was ready and is gone, which said that of the filesystem that the data is in. */
export function specFollowing(spec: OpeningSpec, instance: string | null): OpeningSpec {
  if (!isAttach(spec)) return spec;
  const { instance: _before, ...rest } = spec;
  return { ...rest, follows: true, ...(instance !== null && { instance }) };
}

/** After a server that told a loss of data, which the disk may refuse to have written down. */
export function specWithLoss(spec: OpeningSpec, dataLoss: { atMs: number; reason: string }): OpeningSpec {
  return spec.kind === 'export' ? spec : { ...spec, dataLoss };
}
