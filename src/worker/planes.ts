import type { Plane } from '../host/capabilities.ts';
import { kernelCan } from '../kernel/can.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { requireKernelPlane } from './kernel-plane.ts';

/** What a worker does otherwise in one plane than in the other. */
export type PlaneWays = {
  /** The spec for that plane, where it opens such a thing; else for volume servers, which open all. */
  choose<Spec extends OpeningSpec>(spec: Spec): Spec;
  /** Its exports, and the clones of others, may be under TLS. */
  tls: boolean;
  /** How encrypted volumes are made, so that it can open them. */
  newVolumes: { dmCrypt?: true };
  /** Rejects at the start of a worker where its host cannot do it. */
  requireHost(): Promise<void>;
};

export const PLANES: Readonly<Record<Plane, PlaneWays>> = {
  userspace: { choose: (spec) => spec, tls: true, newVolumes: {}, requireHost: async () => {} },
  kernel: {
    choose: (spec) => (kernelCan(spec) === null ? { ...spec, plane: 'kernel' } : spec),
    tls: false,
    newVolumes: { dmCrypt: true },
    requireHost: requireKernelPlane,
  },
};
