import { existsSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';
import { systemConfigTree } from '../host/config-tree.ts';
import { DeviceMapper, mapperEnvironment } from '../host/device-mapper.ts';
import { DATABASE_DIRS, Iscsiadm, SESSION_DIR } from '../host/iscsiadm.ts';
import { Lio } from '../host/lio.ts';
import { MapperControl } from '../host/mapper-control.ts';
import { systemTools, type Tools } from '../host/tools.ts';

/** The drivers of one host that the kernel plane is made of. */
export type KernelHost = {
  tools: Tools;
  mapper: DeviceMapper;
  control: MapperControl;
  iscsi: Iscsiadm;
  lio: Lio;
};

export function systemKernelHost(clock: Clock): KernelHost {
  const tools = systemTools({ environment: mapperEnvironment() });
  return {
    tools,
    mapper: new DeviceMapper(tools),
    control: new MapperControl(),
    iscsi: new Iscsiadm({
      tools,
      clock,
      databaseDir: DATABASE_DIRS.find((folder) => existsSync(`${folder}/iscsid.conf`)) ?? DATABASE_DIRS[0],
      sysfsDir: SESSION_DIR,
    }),
    lio: new Lio(systemConfigTree(clock)),
  };
}
