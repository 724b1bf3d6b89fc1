/**
 * The main job, watched: a fleet of three workers, four machines on the first one (PostgreSQL and SQLite
 * taking commits, one that writes and checks files, one with a 100 GiB volume that is nearly empty), `godwit
 * drain worker-1`, and then the count of what was lost.
 *
 *   npm run demo                     exit 0 only if nothing was lost
 *   npm run demo -- --json FILE      the same as JSON
 *   npm run demo -- --keep           leaves the fleet running
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { MachineView } from '../src/contract/schemas.ts';
import { until } from '../test/support/patience.ts';
import { getJson, ledgerClient, postgresClient, preparePostgres, readPostgres } from './clients.ts';
import { DemoFleet, freePorts } from './fleet.ts';
import { demoMachines } from './machines.ts';
import { verifyReceipts } from './receipts.ts';
import { type DemoReport, latencyTable, median, moveTable, percentile } from './report.ts';

const { values: options } = parseArgs({
  options: {
    json: { type: 'string' },
    keep: { type: 'boolean', default: false },
    restarts: { type: 'string', default: '5' },
  },
});

const say = (text: string) => process.stdout.write(`${text}\n`);
const sleep = (delayMs: number) => new Promise((resolve) => setTimeout(resolve, delayMs));

const [postgresPort, ledgerPort, filesPort, archivePort] = (await freePorts(4)) as [
  number,
  number,
  number,
  number,
];
const machines = demoMachines({
  postgres: postgresPort,
  ledger: ledgerPort,
  files: filesPort,
  archive: archivePort,
});

say('Three workers on this machine.');
const fleet = await DemoFleet.start(3);
let interrupted = false;
const onSignal = () => {
  if (interrupted) return;
  interrupted = true;
  void fleet.down({ keep: false }).finally(() => process.exit(130));
};
process.on('SIGINT', onSignal);
process.on('SIGTERM', onSignal);

let report: DemoReport | null = null;
try {
  report = await demo();
} finally {
  if (!interrupted) await fleet.down({ keep: options.keep });
}
if (options.keep) say(`\nThe fleet is still there: export GODWIT_FLEET=${fleet.fleetFile}`);
if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
process.exitCode = report.ok ? 0 : 1;

async function demo(): Promise<DemoReport> {
  const worker1 = fleet.client('worker-1');

  say(
    'Four machines on worker-1, on encrypted volumes: postgres (10 GiB), ledger (SQLite, 1 GiB), files (4 GiB), archive (100 GiB, nearly empty).',
  );
  for (const { volume, machine } of Object.values(machines)) {
    const made = await worker1.createVolume(volume);
    if (!made.encrypted) throw new Error(`${made.name} is not encrypted`);
    await worker1.createMachine(machine(made.id));
  }
  for (const name of Object.keys(machines)) await untilHealthy('worker-1', name);

  await preparePostgres(postgresPort);
  const postgres = postgresClient(postgresPort);
  const ledger = ledgerClient(ledgerPort);
  postgres.start();
  ledger.start();
  say('Clients commit numbered rows into both databases and write down every acknowledgement.');
  while ((await getJson<{ files: number }>(filesPort, '/')).files < 300) await sleep(200);
  await sleep(1_000);

  const restarts: number[] = [];
  for (let round = 0; round < Number(options.restarts); round++) {
    const startedMs = performance.now();
    await worker1.restartMachine('postgres');
    await untilHealthy('worker-1', 'postgres');
    restarts.push(performance.now() - startedMs);
    await sleep(500);
  }
  const statelessRestartMs = median(restarts);
  say(
    `The same PostgreSQL restarted in place, without a move: ${statelessRestartMs.toFixed(0)} ms (median of ${restarts.length}).`,
  );

  const latenciesBefore = await getJson<[number, number][]>(filesPort, '/latencies');
  postgres.resetGap();
  ledger.resetGap();

  const receiptsFolder = join(fleet.dir, 'receipts');
  say('\n$ godwit drain worker-1 --receipts receipts\n');
  const { exitCode } = await fleet.run(['drain', 'worker-1', '--receipts', receiptsFolder]);
  const drain = await worker1.drainStatus();
  const left = await worker1.listMachines();
  await sleep(3_000);

  const postgresReport = await postgres.stop();
  const ledgerReport = await ledger.stop();
  const database = await readPostgres(postgresPort);
  const ledgerRows = await getJson<{ numbers: number[]; integrity: string }>(ledgerPort, '/numbers');
  const ledgerNumbers = new Set(ledgerRows.numbers);
  const filesAfter = await getJson<{ files: number; bad: string[] }>(filesPort, '/verify');
  const archiveAfter = await getJson<{ files: number; bad: string[] }>(archivePort, '/verify');
  const latenciesAfter = await getJson<[number, number][]>(filesPort, '/latencies');

  const fingerprints = await Promise.all(
    ['worker-1', 'worker-2', 'worker-3'].map(
      async (name) => (await fleet.client(name).worker()).keyFingerprint,
    ),
  );
  const receipts = await verifyReceipts(fleet, receiptsFolder, fingerprints);

  const acknowledged: Record<string, { acked: number; lost: number }> = {
    postgres: lost(postgresReport.acknowledged, database.numbers),
    ledger: lost(ledgerReport.acknowledged, ledgerNumbers),
    files: { acked: 300, lost: Math.max(0, 300 - filesAfter.files) + filesAfter.bad.length },
    archive: { acked: 4, lost: Math.max(0, 4 - archiveAfter.files) + archiveAfter.bad.length },
  };

  const rows = drain.machines.map((machine) => {
    const { stop, seal, handoff, attach, boot, total } = machine.interruptionMs ?? {};
    return {
      name: machine.name,
      volumeBytes: machine.volumeBytes,
      usedBytes: machine.usedBytes,
      wireBytes: machine.wireBytes,
      avoidedBytes: machine.bytesAvoided,
      interruptionMs: {
        stop: stop ?? null,
        seal: seal ?? null,
        handoff: handoff ?? null,
        attach: attach ?? null,
        boot: boot ?? null,
        total: total ?? null,
      },
      hydrationMs: machine.hydrationMs,
      ackedWrites: acknowledged[machine.name]?.acked ?? 0,
      lostWrites: acknowledged[machine.name]?.lost ?? 0,
      receiptRoot: machine.root,
    };
  });
  const postgresTotal = rows.find((row) => row.name === 'postgres')?.interruptionMs.total ?? null;
  const problems = [
    ...(exitCode === 0 ? [] : [`godwit drain ended with ${exitCode}`]),
    ...(left.length === 0 ? [] : [`worker-1 still holds ${left.map(({ name }) => name).join(', ')}`]),
    ...(rows.length === 4 ? [] : [`${rows.length} machines were reported, not 4`]),
    ...rows.filter((row) => row.lostWrites > 0).map((row) => `${row.name} lost ${row.lostWrites} writes`),
    ...rows.filter((row) => row.ackedWrites === 0).map((row) => `${row.name} acknowledged nothing`),
    ...(database.ballast === 40_000 ? [] : [`postgres: ${database.ballast} of 40000 older rows are right`]),
    ...(ledgerRows.integrity === 'ok' ? [] : [`ledger: integrity_check says ${ledgerRows.integrity}`]),
  ];
  for (const row of rows) {
    const receipt = receipts.find(({ machine }) => machine === row.name);
    if (receipt?.verified && receipt.root === row.receiptRoot) continue;
    problems.push(
      `${row.name}: ${receipt === undefined ? 'no receipt' : `its receipt does not hold: ${receipt.output}`}`,
    );
  }
  const blocksFetchedTwice = drain.machines.reduce(
    (sum, machine) => sum + (machine.blocksFetchedTwice ?? 0),
    0,
  );
  if (blocksFetchedTwice > 0) problems.push(`${blocksFetchedTwice} blocks crossed the wire twice`);

  const files = drain.machines.find((machine) => machine.name === 'files');
  const bootedAtMs = latenciesAfter[0]?.[0] ?? 0;
  const wholeAtMs = bootedAtMs + (files?.hydrationMs ?? 0);
  const windows = {
    before: latenciesBefore.map(([, ms]) => ms),
    during: latenciesAfter.filter(([at]) => at <= wholeAtMs).map(([, ms]) => ms),
    after: latenciesAfter.filter(([at]) => at > wholeAtMs).map(([, ms]) => ms),
  };

  const result: DemoReport = {
    machines: rows,
    statelessRestartMs,
    interruptionRatio: postgresTotal === null ? null : postgresTotal / statelessRestartMs,
    blocksFetchedTwice,
    drainMs: drain.endedAtMs !== null && drain.sinceMs !== null ? drain.endedAtMs - drain.sinceMs : null,
    clientGapMs: { postgres: postgresReport.longestGapMs, ledger: ledgerReport.longestGapMs },
    readLatencyP99Ms: {
      before: percentile(windows.before, 0.99),
      during: percentile(windows.during, 0.99),
      after: percentile(windows.after, 0.99),
    },
    problems,
    ok: problems.length === 0,
  };
  say(`\n${moveTable(result)}`);
  say(`\n${latencyTable(result, windows)}`);
  say(
    `\npostgres: interruption ${ms(postgresTotal)} against ${ms(statelessRestartMs)} for a restart without a move: ratio ` +
      `${result.interruptionRatio?.toFixed(2) ?? '?'}; its client waited ${ms(postgresReport.longestGapMs)} at most.`,
  );
  say(`Drained in ${ms(result.drainMs)}; blocks that crossed the wire twice: ${blocksFetchedTwice}.`);
  for (const { file, root, verified } of receipts) {
    say(
      `$ godwit receipt --verify receipts/${file}: ${verified ? `signed by both workers, root ${root}` : 'does not hold'}`,
    );
  }
  say(result.ok ? 'Nothing was lost.' : `NOT OK:\n  ${problems.join('\n  ')}`);
  return result;
}

function lost(
  acknowledged: readonly number[],
  present: ReadonlySet<number>,
): { acked: number; lost: number } {
  return { acked: acknowledged.length, lost: acknowledged.filter((number) => !present.has(number)).length };
}

function ms(value: number | null): string {
  return value === null ? '?' : `${value.toFixed(0)} ms`;
}

async function untilHealthy(worker: string, name: string): Promise<MachineView> {
  return until(`${name} to be healthy`, () => fleet.client(worker).showMachine(name), {
    is: ({ health }) => health.state === 'healthy',
  });
}
