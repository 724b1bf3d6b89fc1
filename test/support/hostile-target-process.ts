import type { ClientLimits } from '../../src/base/client-account.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLogger } from '../../src/base/logger.ts';
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
  /** The first change of each MiB hangs until its last block is read. */
  hangs?: boolean;
  tls?: TlsFiles;
  limits?: Partial<TargetLimits>;
  book?: Partial<ClientLimits>;
};

const REGION_BYTES = 2 ** 20;

class HangingChanges extends MemoryDevice {
  readonly #gates = new Map<number, PromiseWithResolvers<void>>();

  override readNow(): boolean {
    return false;
  }

  override async read(offsetBytes: number, into: Uint8Array): Promise<void> {
    if ((offsetBytes + into.length) % REGION_BYTES === 0)
      this.#gates.get(Math.floor(offsetBytes / REGION_BYTES))?.resolve();
    await super.read(offsetBytes, into);
  }

  override async write(offsetBytes: number, from: Uint8Array): Promise<void> {
    await this.#pass(offsetBytes);
    await super.write(offsetBytes, from);
  }

  override async discard(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#pass(offsetBytes);
    await super.discard(offsetBytes, lengthBytes);
  }

  override async writeZeroes(offsetBytes: number, lengthBytes: number): Promise<void> {
    await this.#pass(offsetBytes);
    await super.writeZeroes(offsetBytes, lengthBytes);
  }

  async #pass(offsetBytes: number): Promise<void> {
    const region = Math.floor(offsetBytes / REGION_BYTES);
    if (this.#gates.has(region)) return;
    const gate = Promise.withResolvers<void>();
    this.#gates.set(region, gate);
    await gate.promise;
  }
}

const options = JSON.parse(process.argv[2]!) as HostileTarget;
const { latencyMs, lengthBytes, hangs = false, tls } = options;
const disk = new (hangs ? HangingChanges : MemoryDevice)({ lengthBytes });
const device = latencyMs === undefined ? disk : new DelayDevice(disk, systemClock, { latencyMs });
const book = new WatchedBook(options.book);
const target = await IscsiTarget.listen({
  host: '127.0.0.1',
  port: tls === undefined ? 0 : null,
  ...(tls === undefined ? {} : { tls: { port: 0, identity: new TlsIdentity(tls, silentLogger) } }),
  clock: systemClock,
  random: systemRandom,
  logger: silentLogger,
  clients: book,
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
