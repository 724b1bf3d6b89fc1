import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { mustEndWell } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { unmount } from '../../test/support/unmount.ts';
import { systemClock } from '../base/clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { LineOperation } from '../base/line-conversation.ts';
import { OPERATIONS, type OperationRow } from '../opening/operations.ts';
import { ShimClient, type ShimConnection, startShim } from './client.ts';
import { SHIM } from './protocol.ts';

/** A shim of an earlier version, which has neither of these. */
const dial = async (): Promise<ShimConnection> => ({
  call: async (op, args) => {
    const code = op === 'volume.command' ? 'VOLUME_UNKNOWN_OP' : 'RPC_UNKNOWN_OP';
    throw new GodwitError(code, `no ${JSON.stringify(args)}`, { nextAction: 'none' });
  },
  closed: new Promise(() => {}),
  close() {},
});

test('a question that came later, to a shim or a volume server of before, is one error; the others are as ever', async (t) => {
  const shim = await ShimClient.connect('/run/m_1', { clock: new FakeClock(), dial });
  const rows: [LineOperation | OperationRow, () => Promise<unknown>][] = [
    [SHIM['fs.sync'], () => shim.call('fs.sync', {})],
    [OPERATIONS.heat, () => shim.volume('heat', {})],
  ];
  for (const [row, ask] of rows) {
    await assert.rejects(ask(), (error) => !isGodwitError(error, 'RPC_EARLIER_VERSION'));
    Object.defineProperty(row, 'since', { value: '0.2.0', configurable: true });
    t.after(() => delete (row as { since?: string }).since);
    await assert.rejects(ask(), (error) => {
      assert.ok(isGodwitError(error, 'RPC_EARLIER_VERSION'), String(error));
      return /^the shim m_1/.test(error.message) && error.retry === 'never';
    });
  }
});

test('a shim for whose folder, or log, there is no inode is not started, by name', {
  skip: requires('root'),
}, async (t) => {
  const root = scratchDir(t);
  await mustEndWell('mount', ['-t', 'tmpfs', '-o', 'nr_inodes=3', 'tmpfs', root]);
  try {
    const runtimeDir = join(root, 'm_1');
    const start = () => startShim({ runtimeDir, hidden: [], clock: systemClock });
    writeFileSync(join(root, 'one'), '');
    mkdirSync(runtimeDir);
    await assert.rejects(start(), { code: 'MACHINE_RUNTIME_NO_SPACE' });
    const other = { runtimeDir: join(root, 'm_2'), hidden: [], clock: systemClock };
    await assert.rejects(startShim(other), { code: 'MACHINE_RUNTIME_NO_SPACE', retry: 'never' });
  } finally {
    await unmount(root);
  }
});
