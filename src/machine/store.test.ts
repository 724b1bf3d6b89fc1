import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { machineConfig } from '../../test/support/machine.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { type MachineRecord, MachineStore } from './store.ts';

const record: MachineRecord = {
  formatVersion: 1,
  id: 'm_01jd0000000000000000000000',
  name: 'one',
  config: machineConfig('true'),
  desired: 'stopped',
  createdAtMs: 1,
  claimedBy: null,
};

test('what was written is loaded; what was removed is not', async (t) => {
  const store = await MachineStore.open(scratchDir(t));
  await store.write(record);
  await store.write({ ...record, desired: 'running' });
  assert.deepEqual(await store.load(), { machines: [{ ...record, desired: 'running' }], broken: [] });
  await store.remove(record.id);
  await store.remove(record.id);
  assert.deepEqual((await store.load()).machines, []);
});

test('a record that cannot be read is named, and the others load', async (t) => {
  const dir = scratchDir(t);
  const store = await MachineStore.open(dir);
  await store.write(record);
  const bad: [string, string][] = [
    ['m_a.json', '{"formatVersion":1'],
    ['m_b.json', JSON.stringify({ ...record, id: 'm_01jd0000000000000000000009' })],
    ['m_c.json', JSON.stringify({ ...record, desired: 'maybe' })],
    ['m_d.json', ''],
    ['m_e.json', 'null'],
  ];
  for (const [name, text] of bad) writeFileSync(join(store.directory, name), text);
  const { machines, broken } = await store.load();
  assert.deepEqual(machines, [record]);
  assert.deepEqual(
    broken.map(({ file }) => file),
    bad.map(([name]) => join(store.directory, name)),
  );
  for (const { error } of broken) assert.equal(error.code, 'MACHINE_RECORD_CORRUPT');
});

test('half a write of a crash is removed', async (t) => {
  const dir = scratchDir(t);
  const store = await MachineStore.open(dir);
  const half = join(store.directory, `${record.id}.json.new`);
  writeFileSync(half, '{');
  await MachineStore.open(dir);
  assert.equal(existsSync(half), false);
});
