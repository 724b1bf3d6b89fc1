import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { systemRandom } from '../../src/base/random.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { IscsiTarget } from '../../src/iscsi/index.ts';
import { GRANT, TARGET_IQN } from './iscsi-pair.ts';

/*
 * A target in a process of its own, to be killed: FILE LENGTH PORT SERIAL [INITIATOR_IQN let in without
 * CHAP]… Prints its port when it listens.
 */

const [file, lengthBytes, port, serial, ...initiators] = process.argv.slice(2) as [
  ...[string, string, string, string],
  ...string[],
];
const device = await FileDevice.open({ file, lengthBytes: Number(lengthBytes) });
const target = await IscsiTarget.listen({
  host: '127.0.0.1',
  port: Number(port),
  clock: systemClock,
  random: systemRandom,
  logger: silentLogger,
});
const share = target.addExport({ targetIqn: TARGET_IQN, device, serial, generation: 3, readOnly: false });
share.grant(GRANT);
for (const initiatorIqn of initiators) share.grant({ initiatorIqn, chap: null, generation: 3 });
process.stdout.write(`${target.port}\n`);
