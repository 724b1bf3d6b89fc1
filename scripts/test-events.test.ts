import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { scratchDir } from '../test/support/scratch.ts';
import { type EndedSuite, ProcessReport, TOGETHER } from './test-events.ts';

type Failure = 'testCodeFailure' | 'subtestsFailed' | 'cancelledByParent' | 'hookFailed';

/** A test of that name that has run, at that depth; `failure`: why it failed. */
function ran(report: ProcessReport, name: string, nesting = 0, failure?: Failure, kind = 'test'): void {
  const error = failure && Object.assign(new Error(`why ${name} failed`), { failureType: failure });
  const type = failure ? 'test:fail' : 'test:pass';
  report.take({ type, data: { name, nesting, details: { type: kind, ...(error && { error }) } } });
}

/** What is told of the suites; the clock goes on by a second with each look. */
function told(paths: readonly string[], tell: (report: ProcessReport) => void): EndedSuite[] {
  const ended: EndedSuite[] = [];
  let nowMs = 0;
  const report = new ProcessReport(
    paths,
    () => (nowMs += 1_000),
    (suite) => ended.push(suite),
  );
  tell(report);
  report.end();
  return ended;
}

const figures = ({ suite }: EndedSuite) => [suite.path, suite.passed, suite.failed, suite.cancelled];

describe('what a process of tests tells', () => {
  it('is a tree of what failed, in which a test that passed after it has no part', () => {
    const [ended] = told(['a.test.ts'], (report) => {
      const begins = (name: string, nesting: number) =>
        report.take({ type: 'test:start', data: { name, nesting } });
      begins('outer', 0);
      begins('bad', 1);
      ran(report, 'bad', 1, 'testCodeFailure');
      begins('good', 1);
      ran(report, 'good', 1);
      ran(report, 'outer', 0, 'subtestsFailed');
    });
    assert.deepEqual(
      ended!.tree.map(({ type, data }) => `${type} ${data.name}`),
      ['test:start outer', 'test:start bad', 'test:fail bad', 'test:fail outer'],
    );
  });

  it('of one suite is counted as node:test counts, with what failed, what it was in, and how to repeat it', () => {
    const [one, ...others] = told(['a.test.ts'], (report) => {
      report.take({ type: 'test:start', data: { name: 'outer', nesting: 0 } });
      report.take({ type: 'test:start', data: { name: "it's", nesting: 1 } });
      report.take({ type: 'test:stdout', data: { name: '', nesting: 0, message: 'said' } });
      ran(report, "it's", 1, 'testCodeFailure');
      ran(report, 'late', 1, 'cancelledByParent');
      ran(report, 'outer', 0, 'subtestsFailed');
      report.take({ type: 'test:pass', data: { name: 'left out', nesting: 0, skip: true } });
      ran(report, 'good');
      ran(report, 'a describe', 0, undefined, 'suite');
      ran(report, 'whose hook failed', 0, 'hookFailed', 'suite');
    });
    assert.deepEqual(others, []);
    const { tests, suites, passed, failed, cancelled, skipped, output } = one!.suite;
    assert.deepEqual(
      { tests, suites, passed, failed, cancelled, skipped },
      {
        ...{ tests: 5, suites: 2, passed: 1 },
        ...{ failed: 3, cancelled: 1, skipped: 1 },
      },
    );
    assert.match(output, /^said\n✖ it's\nError: why it's failed/);
    assert.doesNotMatch(output, /why outer failed/);
    assert.deepEqual(
      one!.tree.slice(0, 2).map(({ type, data }) => [type, data.name]),
      [
        ['test:start', 'outer'],
        ['test:start', "it's"],
      ],
    );
    assert.deepEqual(one!.repeats[0], "  again: scripts/test a.test.ts --name 'outer'");
  });

  it('of several is put down to each, also when one cannot be loaded or ends the process', () => {
    const ended = told(['a.test.ts', 'b.test.ts', 'c.test.ts', 'd.test.ts'], (report) => {
      ran(report, 'a.test.ts');
      ran(report, 'one');
      ran(report, 'b.test.ts', 0, 'testCodeFailure');
      ran(report, 'c.test.ts');
      ran(report, 'two');
      ran(report, TOGETHER, 0, 'testCodeFailure');
    });
    assert.deepEqual(ended.map(figures), [
      ['a.test.ts', 1, 0, 0],
      ['b.test.ts', 0, 1, 0],
      ['c.test.ts', 1, 1, 0],
      ['d.test.ts', 0, 1, 0],
    ]);
    const again = (path: string) => [`  again: scripts/test ${path}`];
    assert.deepEqual(
      ended.map(({ repeats }) => repeats),
      [[], again('b.test.ts'), again('c.test.ts'), again('d.test.ts')],
    );
    assert.match(ended[3]!.suite.output, /its process had ended before it began, in c\.test\.ts/);
    assert.equal(ended[3]!.suite.durationMs, 1_000);
  });

  it('is that of real processes: a failure, a file that does not load, a process that dies, and those beside them', (t) => {
    const dir = scratchDir(t);
    const file = (name: string, ...lines: string[]) => {
      const path = join(dir, name);
      writeFileSync(path, ["import { test } from 'node:test';", ...lines].join('\n'));
      return path;
    };
    const files = [
      file(
        'a.test.ts',
        "test('good', () => {});",
        "test('bad', () => { throw new Error('as it should'); });",
      ),
      file('b.test.ts', "throw new Error('no file of tests');"),
      file(
        'c.test.ts',
        // What was told before is on its way.
        "test('dies', () => new Promise(() => setTimeout(() => process.kill(process.pid, 'SIGKILL'), 300)));",
      ),
      file('d.test.ts', "test('never', () => {});"),
    ];
    const runner = fileURLToPath(new URL('./run-tests.ts', import.meta.url));
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const args = ['--disable-warning=ExperimentalWarning', runner, ...files];
    const { status, stdout } = spawnSync(process.execPath, args, { env, encoding: 'utf8' });
    assert.equal(status, 1, stdout);
    const lines = stdout.split('\n').filter((line) => /^\[ *\d+\/4\]/.test(line));
    assert.deepEqual(
      lines.map((line) => /(\w)\.test\.ts: (.*), [\d.]+ s$/.exec(line)?.slice(1)),
      [
        ['a', '1 passed, 1 FAILED'],
        ['b', '0 passed, 1 FAILED'],
        ['c', '0 passed'],
        ['d', '0 passed, 1 FAILED'],
      ],
      stdout,
    );
    for (const what of [
      /as it should/,
      /no file of tests/,
      /in \S+c\.test\.ts\n/,
      /ℹ tests 4\n/,
      /ℹ fail 3\n/,
    ])
      assert.match(stdout, what);
  });
});
