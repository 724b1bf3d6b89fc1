import type { AttachSpec, CloneSpec, OpeningSpec, OwnSpec } from './spec.ts';

/** What an opening is asked, and in which way it is in the way of another one. */
export type Role = 'attach' | 'export' | 'serve';

export function roleOf(kind: OpeningSpec['kind']): Role {
  return kind === 'export' || kind === 'serve' ? kind : 'attach';
}

export function isAttach(spec: OpeningSpec): spec is AttachSpec {
  return roleOf(spec.kind) === 'attach';
}

/** The same volume, generation and role: what is open already. */
export function isSameOpening(one: OpeningSpec, other: OpeningSpec): boolean {
  return (
    one.volumeId === other.volumeId &&
    one.generation === other.generation &&
    roleOf(one.kind) === roleOf(other.kind)
  );
}

/** What is left of a copy when all of it is here. */
export function wholeSpec(spec: AttachSpec): OwnSpec {
  if (spec.kind === 'own') return spec;
  const { clone: _here, encryption, ...rest } = spec;
  if (!encryption) return { ...rest, kind: 'own' };
  const { source: _gone, ...own } = encryption as NonNullable<CloneSpec['encryption']>;
  return { ...rest, kind: 'own', encryption: own };
}

/** What a status shows of a spec: no field that holds a secret, or may (the arguments of a key program). */
export type ShownSpec = { role: Role } & Pick<
  AttachSpec,
  'volumeId' | 'generation' | 'lengthBytes' | 'volumeDir' | 'access' | 'plane' | 'nbd'
>;

export function shown(spec: OpeningSpec): ShownSpec {
  const { kind, volumeId, generation, lengthBytes, volumeDir, access, plane } = spec;
  return {
    ...{ role: roleOf(kind), volumeId, generation, lengthBytes, volumeDir, access },
    ...(plane && { plane }),
    ...('nbd' in spec && spec.nbd && { nbd: spec.nbd }),
  };
}
