/** Whose a shim is: that of a machine, or one without a workload, for one opening of a volume. */
export type ShimOwner =
  | { kind: 'machine'; machineId: string }
  | { kind: 'export'; runId: string }
  | { kind: 'serve'; volumeId: string }
  | { kind: 'import'; volumeId: string };

/** Name of its runtime folder, where workers of every version find it. Pure. */
export function shimIdOf(owner: ShimOwner): string {
  switch (owner.kind) {
    case 'machine':
      return owner.machineId;
    case 'export':
      return `x_${owner.runId.toLowerCase()}`;
    case 'serve':
      return owner.volumeId.replace(/^v_/, 's_');
    case 'import':
      return owner.volumeId.replace(/^v_/, 'i_');
  }
}

/** The reverse; null for the name of no shim. Pure. */
export function ownerOf(shimId: string): ShimOwner | null {
  const [, kind, name] = /^([a-z])_(.+)$/.exec(shimId) ?? [];
  switch (kind) {
    case 'm':
      return { kind: 'machine', machineId: shimId };
    case 's':
      return { kind: 'serve', volumeId: `v_${name}` };
    case 'i':
      return { kind: 'import', volumeId: `v_${name}` };
    case 'x': {
      const ulid = /^r_([0-9a-z]{26})$/.exec(name!)?.[1];
      return ulid === undefined ? null : { kind: 'export', runId: `r_${ulid.toUpperCase()}` };
    }
    default:
      return null;
  }
}
