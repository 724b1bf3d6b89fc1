import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { ResidentMemory } from './resident-memory.ts';

const MIB = 2 ** 20;

/** Kilobytes of the mapping that begins there (proc_pid_smaps(5)), by name. */
function smapOf(address: bigint): Map<string, number> {
  const lines = readFileSync('/proc/self/smaps', 'latin1').split('\n');
  const at = lines.findIndex((line) => line.startsWith(`${address.toString(16)}-`));
  if (at === -1) return new Map();
  const end = lines.findIndex((line, index) => index > at && /^[0-9a-f]+-[0-9a-f]+ /.test(line));
  return new Map(
    lines.slice(at + 1, end).map((line) => {
      const [name = '', value = ''] = line.split(':');
      return [name, Number.parseInt(value, 10)];
    }),
  );
}

test('every page is there before it is used, and all of it goes when it is freed', () => {
  const memory = new ResidentMemory(MIB + 4096);
  const before = smapOf(memory.address).get('Rss') ?? 0;
  assert.ok(before >= 1028, `${before} KiB are there`);
  memory.view().fill(7);
  assert.ok(memory.view().every((byte) => byte === 7));
  memory.free();
  memory.free();
  assert.equal(smapOf(memory.address).size, 0);
});
