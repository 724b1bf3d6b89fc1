/**
 * A volume of 100 GiB with about 5 MiB in use, moved to and fro: how long until the last block is there, and
 * how many bytes crossed the wire for each byte that is allocated.
 *   node bench/sparse.ts [--rounds 5]
 */
import { parseArgs } from 'node:util';
import { DemoFleet, freePorts } from '../demo/fleet.ts';
import { demoMachines } from '../demo/machines.ts';
import { median } from '../demo/report.ts';
import type { MigrateOutOutput } from '../src/migration/migrate-out.ts';

export type SparseBench = {
  rounds: number;
  usedBytes: number;
  hydratedMs: number;
  /** Bytes on the wire over bytes allocated at the source. */
  wireOverUsed: number;
};

export async function benchSparse(rounds: number): Promise<SparseBench> {
  const fleet = await DemoFleet.start(2);
  try {
    const [port] = (await freePorts(1)) as [number];
    const { archive } = demoMachines({ postgres: 0, ledger: 0, files: 0, archive: port });
    const made = await fleet.client('worker-1').createVolume({ ...archive.volume, encrypted: false });
    await fleet.client('worker-1').createMachine(archive.machine(made.id));
    await sleep(3_000);
    const times: number[] = [];
    const ratios: number[] = [];
    let usedBytes = 0;
    for (let round = 0; round < rounds; round++) {
      const source = fleet.client(round % 2 === 0 ? 'worker-1' : 'worker-2');
      const run = await source.moveMachine('archive', { target: null });
      for (;;) {
        const now = await source.showRun(run.id);
        if (now.state === 'done') {
          const { subject, last } = now.output as MigrateOutOutput;
          usedBytes = subject!.volume!.usedBytes;
          times.push(last!.timesMs.hydrated! - last!.timesMs.activated!);
          ratios.push(last!.hydration!.wireBytes / usedBytes);
          break;
        }
        if (now.endedAtMs !== null) throw new Error(`the move ended ${now.state}: ${now.error?.message}`);
        await sleep(20);
      }
      await sleep(500);
    }
    return { rounds, usedBytes, hydratedMs: median(times), wireOverUsed: median(ratios) };
  } finally {
    await fleet.down({ keep: false });
  }
}

function sleep(delayMs: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, delayMs));
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { rounds: { type: 'string', default: '5' } } });
  process.stdout.write(`${JSON.stringify(await benchSparse(Number(values.rounds)), null, 2)}\n`);
}
