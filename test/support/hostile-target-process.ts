import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
import type { PeerLimits } from '../../src/base/peer-account.ts';
import { systemRandom } from '../../src/base/random.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { ANY_INITIATOR, IscsiTarget, type TargetLimits } from '../../src/iscsi/index.ts';
import { type TlsFiles, TlsIdentity } from '../../src/sys/tls-identity.ts';
import { DelayDevice } from './delay-device.ts';
import { GRANT, TARGET_IQN } from './iscsi-pair.ts';
import { WatchedBook } from './watched-book.ts';

/* A target in a process of its own, whose memory can be measured: one argument, `HostileTarget` as JSON. Prints its port when it
 * listens, and answers on its standard input what its memory is (AttackedProcess). */

export type HostileTarget = {
  /** Of its disk, which is in the memory of the process. */
  lengthBytes: number;
  /** Each call of the device takes so long. */
  latencyMs?: number;
  tls?: TlsFiles;
  limits?: Partial<TargetLimits>;
  book?: Partial<PeerLimits>;
};

const options = JSON.parse(process.argv[2]!) as HostileTarget;
const { latencyMs, lengthBytes, tls } = options;
const disk = new MemoryDevice({ lengthBytes });
const device = latencyMs === undefined ? disk : new DelayDevice(disk, systemClock, { latencyMs });
const book = new WatchedBook(options.book);
const target = await IscsiTarget.listen({
  host: '127.0.0.1',
  port: tls === undefined ? 0 : null,
  ...(tls === undefined ? {} : { tls: { port: 0, identity: new TlsIdentity(tls, silentLogger) } }),
  clock: systemClock,
  random: systemRandom,
  logger: silentLogger,
  peers: book,
  ...(options.limits === undefined ? {} : { limits: options.limits }),
});
const share = target.addExport({
  targetIqn: TARGET_IQN,
  device,
  serial: 'volume-1',
  generation: 3,
  readOnly: false,
});
share.grant({
  ...GRANT,
  initiatorIqn: ANY_INITIATOR,
  mutualChap: { user: 'target', secret: 'another fine secret' },
});
book.answer();
process.stdout.write(`${tls === undefined ? target.port : target.tlsPort}\n`);
