import { NODE_NAME } from '../base/own-name.ts';
import {
  flag,
  integer,
  list,
  matching,
  number,
  object,
  oneOf,
  ownName,
  tagged,
  text,
  textFrom,
} from '../base/shape.ts';
import { withKind } from './earlier-spec.ts';
import { badSpec, fitting } from './read-fields.ts';
import type { OpeningSpec } from './spec.ts';

/*
 * What a volume server is told: the schemas of spec.ts say the same, but their validator would take a third
 * of the process's memory and half of the pause that a restart is for the guest.
 */

const nodeName = matching('a name of a node', NODE_NAME);
const port = integer(0, 65_535);
const LIST_MAX = 65_536;

const TLS = object({ certFile: text, keyFile: text, caFile: text });
export const GRANT = object({
  ...{ initiatorIqn: text, chapUser: text, chapSecret: textFrom(12) },
  generation: integer(1),
});
export const HYDRATION = object({ paused: flag, rateBytesPerSecondMax: integer(0) });
export const ACCESS = oneOf('standby', 'writable', 'readonly');

const VOLUME = { volumeId: ownName, generation: integer(1), lengthBytes: integer(4096), volumeDir: text };
const PLANE = { plane: oneOf('kernel') };
const WHEN_FULL = { whenFull: oneOf('pause', 'error') };
const DATA_LOSS = { dataLoss: object({ atMs: number, reason: text }) };

const HEADER = { uuid: text, keyGeneration: integer(1) };
const OF_KEY = { keyVolumeId: ownName };
const KEYED = {
  ...HEADER,
  keys: tagged('kind', {
    file: object({ path: textFrom(1) }),
    exec: object({ argv: list(text, LIST_MAX, 1) }),
  }),
};
const MAY_KEY = { ...OF_KEY, holes: oneOf('none') };
const ENCRYPTION = { encryption: object(KEYED, MAY_KEY) };
/** Of a clone, whose source may be under another header and key. */
const ENCRYPTIONS = { encryption: object(KEYED, { ...MAY_KEY, source: object(HEADER, OF_KEY) }) };

const ATTACH = { ...VOLUME, access: ACCESS };
const MAY_ATTACH = {
  ...PLANE,
  ...WHEN_FULL,
  leaving: oneOf('running', 'stopped'),
  follows: flag,
  instance: text,
  ...DATA_LOSS,
  nbd: object({
    path: textFrom(1),
    owner: object({ uid: integer(0), gid: integer(0) }),
    client: oneOf('guest', 'observer'),
  }),
};
const COPY = { metadataPath: text, validityPath: text, hydration: HYDRATION };
const CHAP = { chapUser: text, chapSecret: text };

const SOURCE = object(
  {
    ...{ host: text, port: integer(1, 65_535), targetIqn: nodeName, lun: integer(0, 255) },
    ...{ initiatorIqn: nodeName, ...CHAP },
  },
  { tls: flag },
);
const IMPORTED = object(
  { location: textFrom(1), sourceLengthBytes: integer(512) },
  {
    unit: object({ serial: text, designators: text }),
    nbdExport: object({ name: text, description: text, minimumBlockBytes: integer(1) }),
  },
);
const PLACE = { host: textFrom(1), port };
const LISTEN = tagged('kind', {
  'nbd-unix': object({ path: textFrom(1) }),
  nbd: object(PLACE, { tls: TLS }),
  iscsi: object({ ...PLACE, targetIqn: text, chapUser: textFrom(1), chapSecret: textFrom(12) }, { tls: TLS }),
});

const SPEC = tagged('kind', {
  own: object(ATTACH, { ...MAY_ATTACH, ...ENCRYPTION }),
  clone: object(
    { ...ATTACH, clone: object({ ...COPY, source: SOURCE }, { tls: TLS }) },
    { ...MAY_ATTACH, ...ENCRYPTIONS },
  ),
  import: object(
    { ...ATTACH, clone: object({ ...COPY, source: IMPORTED }) },
    { ...MAY_ATTACH, ...ENCRYPTION },
  ),
  export: object(
    {
      ...VOLUME,
      access: oneOf('standby', 'readonly'),
      export: object(
        { listenHost: text, listenPort: port, targetIqn: text, grants: list(GRANT, LIST_MAX) },
        { tls: TLS },
      ),
    },
    PLANE,
  ),
  serve: object(
    {
      ...VOLUME,
      access: oneOf('readonly', 'writable'),
      serve: object({ exportName: text, listen: LISTEN }),
    },
    { ...PLANE, ...WHEN_FULL, ...DATA_LOSS, ...ENCRYPTION },
  ),
});

/** Throws `VOLUME_BAD_SPEC`, and that names the field and never its value, which may be a secret. */
export function parseSpec(line: string): OpeningSpec {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw badSpec('the first line is not JSON', error);
  }
  // read-spec.test.ts holds these shapes against the schema of OpeningSpec.
  return fitting(SPEC, withKind(fitting(object({}), value, 'spec')), 'spec') as OpeningSpec;
}
