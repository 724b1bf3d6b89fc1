import assert from 'node:assert/strict';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { LineOperation } from '../base/line-conversation.ts';
import { OPERATIONS, type OperationRow } from '../opening/operations.ts';
import { ShimClient, type ShimConnection } from './client.ts';
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
