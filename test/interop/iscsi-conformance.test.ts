import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { startTarget, TARGET_IQN } from '../support/iscsi-pair.ts';
import { countOutcomes, runSuite, SUITE_INITIATORS } from '../support/iscsi-test-cu.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/* libiscsi's whole suite against our target; bench/iscsi-conformance.ts has the comparison with tgt. */

const LENGTH_BYTES = 64 * 2 ** 20;

test('iscsi-test-cu --dataloss: nothing fails, and little is skipped', {
  skip: requires('iscsi-test-cu'),
}, async (t) => {
  const device = new MemoryDevice({ lengthBytes: LENGTH_BYTES });
  const { target, share } = await startTarget(t, device, { share: { physicalBlockBytes: 512 } });
  for (const initiatorIqn of SUITE_INITIATORS) share.grant({ initiatorIqn, chap: null, generation: 3 });
  const url = `iscsi://127.0.0.1:${target.port}/${TARGET_IQN}/0`;
  const results = await runSuite(url, { cwd: scratchDir(t) });
  assert.deepEqual(
    results.filter(({ outcome }) => outcome === 'failed'),
    [],
  );
  const { passed, skipped } = countOutcomes(results);
  t.diagnostic(`${passed} passed, ${skipped} skipped of ${results.length}`);
  assert.ok(passed >= 180, `only ${passed} of ${results.length} were run to the end`);
});

test('iscsi-test-cu on a read-only export: every write is WRITE PROTECT', {
  skip: requires('iscsi-test-cu'),
}, async (t) => {
  const device = new MemoryDevice({ lengthBytes: LENGTH_BYTES });
  const { target, share } = await startTarget(t, device, { share: { readOnly: true } });
  for (const initiatorIqn of SUITE_INITIATORS) share.grant({ initiatorIqn, chap: null, generation: 3 });
  const url = `iscsi://127.0.0.1:${target.port}/${TARGET_IQN}/0`;
  const results = await runSuite(url, { cwd: scratchDir(t), tests: 'ALL.ReadOnly' });
  assert.deepEqual(
    results.map(({ test: name, outcome }) => [name, outcome]),
    [['ReadOnlySBC', 'passed']],
  );
});
