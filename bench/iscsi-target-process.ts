import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { IscsiTarget } from '../src/iscsi/index.ts';

/*
 * Our target in a process of its own: FILE LENGTH TARGET_IQN INITIATOR_IQN…, prints its port, lives until it
 * is killed.
 */

const [file, lengthBytes, targetIqn, ...initiators] = process.argv.slice(2);
const device = await FileDevice.open({ file: file!, lengthBytes: Number(lengthBytes) });
const target = await IscsiTarget.listen({
  host: '127.0.0.1',
  port: 0,
  clock: systemClock,
  random: systemRandom,
  logger: silentLogger,
  limits: { connectionsMax: 128, grantSessionsMax: 128, halfOpenMax: 128, halfOpenAddressMax: 128 },
});
const share = target.addExport({
  targetIqn: targetIqn!,
  device,
  serial: 'bench',
  generation: 1,
  readOnly: false,
});
for (const initiatorIqn of initiators) share.grant({ initiatorIqn, chap: null, generation: 1 });
process.stdout.write(`${target.port}\n`);
