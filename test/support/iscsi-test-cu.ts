import { runToEnd } from './patience.ts';
import { findProgram } from './requires.ts';

/* libiscsi's conformance suite. */

export const SUITE_INITIATORS = [
  'iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test',
  'iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2',
];

export type SuiteResult = {
  suite: string;
  test: string;
  /** skipped: some part of it was left out because the target does not have what it asks for. */
  outcome: 'passed' | 'failed' | 'skipped';
  /** What the suite said about it where it failed or was skipped. */
  detail: string;
};

/**
 * Runs `iscsi-test-cu --dataloss` on a unit that holds nothing of value. The second path of its multipath
 * tests is the same portal. Rejects when the suite does not come to its end.
 */
export async function runSuite(
  url: string,
  options: { tests?: string; patienceMs?: number; cwd: string },
): Promise<SuiteResult[]> {
  const { tests = 'ALL', patienceMs = 240_000, cwd } = options;
  const words = ['--dataloss', '--verbose', '--Verbose-scsi', '-t', tests, url, url];
  const {
    exitCode: code,
    signal,
    stdout: output,
  } = await runToEnd(findProgram('iscsi-test-cu')!, words, { cwd, patienceMs });
  if (!output.includes('Run Summary')) {
    throw new Error(`iscsi-test-cu did not finish (exit ${code}, ${signal}): ${output.slice(-2000)}`);
  }
  return parseSuite(output);
}

/** CUnit prints `Test: NAME ...`, what the test says, and `passed` or `FAILED` with the assertions. */
export function parseSuite(output: string): SuiteResult[] {
  const results: SuiteResult[] = [];
  for (const part of output.split(/^Suite: /m).slice(1)) {
    const suite = part.slice(0, part.indexOf('\n'));
    for (const piece of part.split(/^ {2}Test: /m).slice(1)) {
      const test = piece.slice(0, piece.indexOf(' ...'));
      const failed = /(^|\.\.\.)FAILED$/m.test(piece);
      const skipped = piece.split('\n').find((line) => line.includes('[SKIPPED]'));
      const asserts = piece.split('\n').filter((line) => /^ {4}\d+\. /.test(line));
      results.push({
        suite,
        test,
        outcome: failed ? 'failed' : skipped === undefined ? 'passed' : 'skipped',
        detail: failed ? asserts.map((line) => line.trim()).join('; ') : (skipped ?? '').trim(),
      });
    }
  }
  return results;
}

export function countOutcomes(results: readonly SuiteResult[]): Record<SuiteResult['outcome'], number> {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const { outcome } of results) counts[outcome] += 1;
  return counts;
}
