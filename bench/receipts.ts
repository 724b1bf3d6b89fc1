import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ImportedSourceSpec } from '../src/opening/spec.ts';
import { ProofPair } from '../test/support/proof-pair.ts';
import { VolumeLab } from '../test/support/volume-lab.ts';
import { hydrateSeconds, makeSource, median, readP99Ms, type Source } from './hydration.ts';

/**
 * What a receipt costs. A clone of a move digests and logs what it fetches; a clone of the same export that
 * is opened as a disk of another system does not, and is the same otherwise. In turn, several rounds.
 *   throughput   until the last block of DATA_BYTES is durable
 *   latency      p99 of the guest's 4 KiB random reads on a cold clone while it hydrates
 *   proof        seconds to prove the clone afterwards, both sides: digests of the source that were not taken yet, and the read back from the disk
 */
const MIB = 2 ** 20;
/** What volume/import-source.ts logs in as. */
const IMPORT_INITIATOR_IQN = 'iqn.2026-11.dev.godwit:import';
const DATA_BYTES = 512 * MIB;
const LATENCY_DATA_BYTES = 2048 * MIB;

export type ReceiptsBench = {
  rounds: number;
  throughput: { withMiBps: number; withoutMiBps: number; ratio: number };
  latency: { withP99Ms: number; withoutP99Ms: number; ratio: number };
  proofMiBps: number;
};

export async function benchReceipts(rounds = 3): Promise<ReceiptsBench> {
  process.env.NODE_COMPILE_CACHE ??= join(tmpdir(), 'godwit-bench-compile-cache');
  const lab = new VolumeLab();
  try {
    const source = await makeSource(lab, DATA_BYTES);
    const [withReceipt, without, proof]: number[][] = [[], [], []];
    for (let round = 0; round < rounds; round++) {
      without!.push(DATA_BYTES / MIB / (await hydrateSeconds(source, await asDisk(source))));
      const prove = async (target: Parameters<NonNullable<Parameters<typeof hydrateSeconds>[2]>>[0]) => {
        const startMs = performance.now();
        const sourceStore = await lab.store(`source-${DATA_BYTES}`);
        const { bytes } = await new ProofPair({
          id: source.id,
          sourceStore,
          source: source.exported,
          target,
        }).prove();
        if (bytes.readBack !== DATA_BYTES) throw new Error(`only ${bytes.readBack} bytes were read back`);
        proof!.push(DATA_BYTES / MIB / ((performance.now() - startMs) / 1000));
      };
      withReceipt!.push(DATA_BYTES / MIB / (await hydrateSeconds(source, undefined, prove)));
    }
    const large = await makeSource(lab, LATENCY_DATA_BYTES);
    const [withP99, withoutP99]: number[][] = [[], []];
    for (let round = 0; round < rounds; round++) {
      withoutP99!.push((await readP99Ms(large, true, await asDisk(large))).p99Ms);
      withP99!.push((await readP99Ms(large, true)).p99Ms);
    }
    return {
      rounds,
      throughput: {
        withMiBps: median(withReceipt!),
        withoutMiBps: median(without!),
        ratio: median(withReceipt!.map((value, round) => value / without![round]!)),
      },
      latency: {
        withP99Ms: median(withP99!),
        withoutP99Ms: median(withoutP99!),
        ratio: median(withP99!.map((value, round) => value / withoutP99![round]!)),
      },
      proofMiBps: median(proof!),
    };
  } finally {
    await lab.close();
  }
}

/** The export as a disk of another system: no digests, no log. */
async function asDisk({ exported, lengthBytes }: Source): Promise<ImportedSourceSpec> {
  await exported.server.call('grant', { ...exported.grant, initiatorIqn: IMPORT_INITIATOR_IQN });
  const { host, port, targetIqn, lun, chapUser, chapSecret } = exported.source;
  const login = `${encodeURIComponent(chapUser)}%${encodeURIComponent(chapSecret)}`;
  return { location: `iscsi://${login}@${host}:${port}/${targetIqn}/${lun}`, sourceLengthBytes: lengthBytes };
}
