import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { keepResult, type Result, readResults, resultTable, rotated, withRecord } from './results.ts';

const PASSED: Result = {
  scenario: 'guests',
  kind: 'uml',
  outcome: 'passed',
  seconds: 14,
  bootMs: 2_340,
  commit: 'a'.repeat(40),
  date: '2026-11-30',
};

describe('results of the lab', () => {
  it('keeps one of a scenario, kind and commit, and none of a changed checkout', (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'gw-results-'));
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    const path = join(folder, 'lab', 'results.json');
    assert.deepEqual(readResults(path), []);
    keepResult({ ...PASSED, outcome: 'failed' }, path);
    keepResult({ ...PASSED, commit: null }, path);
    keepResult({ ...PASSED, kind: 'qemu' }, path);
    keepResult(PASSED, path);
    assert.deepEqual(readResults(path), [{ ...PASSED, kind: 'qemu' }, PASSED]);
    writeFileSync(path, '{"half');
    assert.deepEqual(readResults(path), [], 'a damaged file is none');
    keepResult(PASSED, path);
    assert.match(readFileSync(path, 'utf8'), /guests/);
  });

  it('begins elsewhere with each commit', () => {
    assert.deepEqual(rotated(['a', 'b', 'c'], 7), ['b', 'c', 'a']);
    assert.deepEqual(rotated([], 3), []);
  });

  it('says scenario, result, seconds and the boot of a guest', () => {
    const failed: Result = { ...PASSED, scenario: 'cut-5s', outcome: 'failed', bootMs: null };
    assert.equal(
      resultTable([PASSED, failed]),
      [
        "scenario  result  seconds  guest's boot, s",
        'guests    passed       14              2.3',
        'cut-5s    FAILED       14                -',
      ].join('\n'),
    );
  });

  it('writes into the page when each passed last', () => {
    const page =
      'before\n<!-- results: made by npm run lab -- --record -->\nold\n<!-- end of results -->\nafter\n';
    const newer: Result = { ...PASSED, commit: 'b'.repeat(40), outcome: 'failed' };
    const made = withRecord(page, [PASSED, newer], ['guests', 'luks2']);
    assert.ok(made.startsWith('before\n<!--') && made.endsWith('<!-- end of results -->\nafter\n'));
    assert.match(made, /\| guests \| 2026-11-30 \| aaaaaaaaa \| 14 \| 2\.3 \|/);
    assert.match(made, /\| luks2 \| not since/);
    assert.doesNotMatch(made, /old/);
    assert.equal(withRecord(made, [PASSED, newer], ['guests', 'luks2']), made);
    assert.throws(() => withRecord('no place', [], []), /no place|has no/);
  });
});
