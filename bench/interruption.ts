/**
 * What a move costs the users of a PostgreSQL machine: from its stop signal to the first healthy answer, over
 * the restart of the same machine in place, with volumes of 1, 10 and 100 GiB. The machine is moved to and
 * fro between two workers, a restart before each move, so that both see the same host.
 *   node bench/interruption.ts [--rounds 7] [--sizes 1,10,100]
 *
 * `measureEncrypted`: two such machines, one on an encrypted volume and one on a plain one, moved in turns.
 */
import { parseArgs } from 'node:util';
import { preparePostgres } from '../demo/clients.ts';
import { DemoFleet, freePorts } from '../demo/fleet.ts';
import { postgresMachine } from '../demo/machines.ts';
import { median } from '../demo/report.ts';
import type { Interruption, MigrateOutOutput } from '../src/migration/migrate-out.ts';

export type InterruptionRow = {
  sizeGib: number;
  restartMs: number;
  moveMs: number;
  /** Of the pairs of a restart and the move after it. */
  ratio: number;
  phasesMs: { stop: number; seal: number; handoff: number; attach: number; boot: number };
};

export async function measureInterruption(options: {
  rounds: number;
  sizesGib: number[];
}): Promise<InterruptionRow[]> {
  const fleet = await DemoFleet.start(2);
  try {
    const rows: InterruptionRow[] = [];
    for (const sizeGib of options.sizesGib) rows.push(await measureSize(fleet, sizeGib, options.rounds));
    return rows;
  } finally {
    await fleet.down({ keep: false });
  }
}

export type EncryptedInterruption = {
  rounds: number;
  plainMs: number;
  encryptedMs: number;
  /** Of the pairs of two moves that follow each other. */
  ratio: number;
};

export async function measureEncrypted(options: {
  rounds: number;
  sizeGib: number;
}): Promise<EncryptedInterruption> {
  const fleet = await DemoFleet.start(2);
  try {
    const lengthBytes = options.sizeGib * 2 ** 30;
    await createPostgres(fleet, 'plain', lengthBytes, false);
    await createPostgres(fleet, 'encrypted', lengthBytes, true);
    const plain: number[] = [];
    const encrypted: number[] = [];
    for (let round = 0; round < options.rounds; round++) {
      const [here, there] = round % 2 === 0 ? ['worker-1', 'worker-2'] : ['worker-2', 'worker-1'];
      // In turns first, so that neither always has the host that has just worked.
      const kinds = round % 4 < 2 ? (['plain', 'encrypted'] as const) : (['encrypted', 'plain'] as const);
      for (const kind of kinds) {
        const measured = await moveOnce(fleet, kind, here!, there!);
        if (measured) (kind === 'plain' ? plain : encrypted).push(measured.total);
        await sleep(500);
      }
    }
    const ratios = encrypted.map((totalMs, index) => totalMs / plain[index]!);
    return {
      rounds: options.rounds,
      plainMs: median(plain),
      encryptedMs: median(encrypted),
      ratio: median(ratios),
    };
  } finally {
    await fleet.down({ keep: false });
  }
}

async function createPostgres(
  fleet: DemoFleet,
  name: string,
  lengthBytes: number,
  encrypted: boolean,
): Promise<void> {
  const [port] = (await freePorts(1)) as [number];
  const { volume, machine } = postgresMachine(name, lengthBytes, port);
  const made = await fleet.client('worker-1').createVolume({ ...volume, encrypted });
  await fleet.client('worker-1').createMachine(machine(made.id));
  await untilHealthy(fleet, 'worker-1', name);
  await preparePostgres(port);
}

/** Resolves when nothing of the machine is left at the source. */
async function moveOnce(
  fleet: DemoFleet,
  name: string,
  from: string,
  to: string,
): Promise<Interruption | null> {
  const source = fleet.client(from);
  const run = await source.moveMachine(name, { target: to });
  for (;;) {
    const now = await source.showRun(run.id);
    if (now.state === 'done') return (now.output as MigrateOutOutput).interruptionMs ?? null;
    if (now.endedAtMs !== null) throw new Error(`the move ended ${now.state}: ${now.error?.message}`);
    await sleep(50);
  }
}

async function measureSize(fleet: DemoFleet, sizeGib: number, rounds: number): Promise<InterruptionRow> {
  const name = `postgres-${sizeGib}`;
  await createPostgres(fleet, name, sizeGib * 2 ** 30, false);
  const restarts: number[] = [];
  const moves: (Interruption | null)[] = [];
  for (let round = 0; round < rounds; round++) {
    const [here, there] = round % 2 === 0 ? ['worker-1', 'worker-2'] : ['worker-2', 'worker-1'];
    const source = fleet.client(here!);
    const startedMs = performance.now();
    await source.restartMachine(name);
    restarts.push(performance.now() - startedMs);
    await sleep(500);
    moves.push(await moveOnce(fleet, name, here!, there!));
    await sleep(500);
  }
  const there = rounds % 2 === 0 ? 'worker-1' : 'worker-2';
  await fleet.client(there).destroyMachine(name, { force: true });
  const measured = moves.filter((move) => move !== null);
  const phase = (name: keyof InterruptionRow['phasesMs']) => median(measured.map((move) => move[name]));
  return {
    sizeGib,
    restartMs: median(restarts),
    moveMs: median(measured.map(({ total }) => total)),
    ratio: median(measured.map(({ total }, index) => total / restarts[index]!)),
    phasesMs: {
      stop: phase('stop'),
      seal: phase('seal'),
      handoff: phase('handoff'),
      attach: phase('attach'),
      boot: phase('boot'),
    },
  };
}

export function interruptionTable(rows: readonly InterruptionRow[]): string {
  const lines = rows.map(({ sizeGib, restartMs, moveMs, ratio, phasesMs }) => {
    const { stop, seal, handoff, attach, boot } = phasesMs;
    const phases = [stop, seal, handoff, attach, boot].map((value) => value.toFixed(0)).join(' | ');
    return `| ${sizeGib} GiB | ${restartMs.toFixed(0)} | ${moveMs.toFixed(0)} | ${phases} | ${ratio.toFixed(2)} |`;
  });
  return [
    '| volume | restart in place, ms | move, ms | stop | seal | handoff | attach | boot | ratio |',
    '|---|---|---|---|---|---|---|---|---|',
    ...lines,
  ].join('\n');
}

async function untilHealthy(fleet: DemoFleet, worker: string, name: string): Promise<void> {
  for (let waitedMs = 0; ; waitedMs += 20) {
    const { health } = await fleet.client(worker).showMachine(name);
    if (health.state === 'healthy') return;
    if (waitedMs > 60_000) throw new Error(`${name} does not become healthy: ${health.message}`);
    await sleep(20);
  }
}

function sleep(delayMs: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, delayMs));
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: { rounds: { type: 'string', default: '7' }, sizes: { type: 'string', default: '1,10,100' } },
  });
  const sizesGib = values.sizes.split(',').map(Number);
  process.stdout.write(
    `${interruptionTable(await measureInterruption({ rounds: Number(values.rounds), sizesGib }))}\n`,
  );
}
