import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { systemClock } from '../src/base/clock.ts';
import { silentLogger } from '../src/base/logger.ts';
import { systemRandom } from '../src/base/random.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { IscsiTarget } from '../src/iscsi/index.ts';
import { TARGET_IQN } from '../test/support/iscsi-pair.ts';
import {
  countOutcomes,
  runSuite,
  SUITE_INITIATORS,
  type SuiteResult,
} from '../test/support/iscsi-test-cu.ts';
import { startTgt } from '../test/support/tgt.ts';

/**
 * libiscsi's whole conformance suite, `iscsi-test-cu --dataloss`, against our target and against Debian's
 * tgt, each on a sparse file of 64 MiB with blocks of 512 bytes.
 *   node bench/iscsi-conformance.ts            the table by family
 *   node bench/iscsi-conformance.ts --json     every test
 * Ends with 1 when one of ours fails, or tgt has as many passes.
 */
const LENGTH_BYTES = 64 * 2 ** 20;

export type Conformance = { godwit: SuiteResult[]; tgt: SuiteResult[] };

export async function runConformance(): Promise<Conformance> {
  const dir = mkdtempSync(join(tmpdir(), 'godwit-conformance-'));
  try {
    return { godwit: await runGodwit(dir), tgt: await runTgt(dir) };
  } finally {
    rmSync(dir, { recursive: true });
  }
}

function sparse(dir: string, name: string): string {
  const file = join(dir, name);
  writeFileSync(file, '');
  truncateSync(file, LENGTH_BYTES);
  return file;
}

async function runGodwit(dir: string): Promise<SuiteResult[]> {
  const device = await FileDevice.open({ file: sparse(dir, 'godwit.raw'), lengthBytes: LENGTH_BYTES });
  const target = await IscsiTarget.listen({
    host: '127.0.0.1',
    port: 0,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  });
  try {
    const share = target.addExport({
      targetIqn: TARGET_IQN,
      device,
      serial: 'conformance',
      generation: 1,
      readOnly: false,
      physicalBlockBytes: 512,
    });
    for (const initiatorIqn of SUITE_INITIATORS) share.grant({ initiatorIqn, chap: null, generation: 1 });
    return await runSuite(`iscsi://127.0.0.1:${target.port}/${TARGET_IQN}/0`, { cwd: dir });
  } finally {
    await target.close();
    await device.close();
  }
}

async function runTgt(dir: string): Promise<SuiteResult[]> {
  const tgt = await startTgt({ file: sparse(dir, 'tgt.raw') });
  try {
    return await runSuite(`iscsi://127.0.0.1:${tgt.port}/${TARGET_IQN}/1`, { cwd: dir, patienceMs: 600_000 });
  } finally {
    await tgt.close();
  }
}

/** One row a family, passed / failed / skipped of each. */
export function conformanceTable({ godwit, tgt }: Conformance): string {
  const cell = (results: SuiteResult[]): string => {
    const { passed, failed, skipped } = countOutcomes(results);
    return `${passed} / ${failed} / ${skipped}`;
  };
  const lines = ['| family | godwit: passed / failed / skipped | tgt |', '|---|---|---|'];
  for (const suite of new Set(godwit.map((result) => result.suite))) {
    const of = (results: SuiteResult[]): SuiteResult[] => results.filter((result) => result.suite === suite);
    lines.push(`| ${suite} | ${cell(of(godwit))} | ${cell(of(tgt))} |`);
  }
  lines.push(`| **all ${godwit.length}** | **${cell(godwit)}** | **${cell(tgt)}** |`);
  return lines.join('\n');
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
  const conformance = await runConformance();
  const ours = countOutcomes(conformance.godwit);
  const theirs = countOutcomes(conformance.tgt);
  console.log(values.json ? JSON.stringify(conformance, null, 2) : conformanceTable(conformance));
  for (const { suite, test, detail } of conformance.godwit.filter(({ outcome }) => outcome === 'failed')) {
    console.error(`godwit fails ${suite}.${test}: ${detail}`);
  }
  if (ours.failed > 0 || ours.passed <= theirs.passed) process.exitCode = 1;
}
