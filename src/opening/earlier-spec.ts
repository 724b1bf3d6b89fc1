import { roleOf, wholeSpec } from './role.ts';
import type { CloneSpec, OpeningSpec } from './spec.ts';

/**
 * Before specs had a `kind`, a `role` told an export and what is served from the rest, and which fields were
 * there told the rest apart. Two that run may be of such a version: a worker, which starts the shims of this
 * one between an upgrade and its own restart; and a shim, which outlives both and starts the volume servers
 * of this one. A volume server is never of an earlier version than its shim: each shim starts the one that
 * lies beside its own program now.
 */

/** A spec as a shim of any version takes it. */
export function forAnyShim(spec: OpeningSpec): OpeningSpec {
  const earlier = { role: roleOf(spec.kind) };
  return { ...spec, ...earlier };
}

/**
 * The spec with its kind, whoever wrote it. It is not checked otherwise, and what this version does not know
 * of it stays: the volume server may be of a later one.
 */
export function withKind(value: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { role, ...spec } = value;
  if (role === undefined) return spec;
  // An earlier shim takes the copy away when all of it is here, and leaves a tag that it does not know.
  const isCopy = spec.kind === 'clone' || spec.kind === 'import';
  if (spec.kind !== undefined && !(isCopy && spec.clone === undefined)) return spec;
  const kind = role === 'attach' ? kindOf(spec.clone) : role;
  // Its key may still say where the copy came from.
  return kind === 'own' ? wholeSpec({ ...spec, kind: 'clone' } as CloneSpec) : { ...spec, kind };
}

function kindOf(clone: unknown): OpeningSpec['kind'] {
  if (clone === undefined) return 'own';
  const { source } = (clone ?? {}) as { source?: object | null };
  return source && 'location' in source ? 'import' : 'clone';
}
