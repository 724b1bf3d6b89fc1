import assert from 'node:assert/strict';
import { test } from 'node:test';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import { nextTurn } from '../base/turn.ts';
import type { ShimClient } from '../shim/client.ts';
import { CLAIMS, Openings, type OpeningsOptions, type Purpose } from './openings.ts';
import type { ShimOwner } from './shim-owner.ts';

const volume = { id: 'v_1', name: 'db', machineId: 'm_1' };
const machine: ShimOwner = { kind: 'machine', machineId: 'm_1' };
const serve: ShimOwner = { kind: 'serve', volumeId: 'v_1' };
const importer: ShimOwner = { kind: 'import', volumeId: 'v_1' };

/** Shims by their names: one that has a volume open, one that has none, or one that hangs. */
function bench(
  shims: Record<string, 'open' | 'empty' | 'hangs'>,
  desired: 'running' | 'stopped' = 'stopped',
) {
  const log: string[] = [];
  const client = async (shimId: string) => {
    const state = shims[shimId];
    if (state === undefined) return null;
    const call = async () => {
      if (state === 'hangs') throw new GodwitError('RPC_TIMEOUT', 'no answer', { nextAction: 'Wait.' });
      return { volume: state === 'open' ? { spec: {} } : null };
    };
    return { call } as unknown as ShimClient;
  };
  const machines = {
    client,
    records: () => [{ id: 'm_1', name: 'postgres', desired }],
    release: async (id: string, { moving = false } = {}) =>
      void log.push(`release ${id}${moving ? ' from its move' : ''}`),
    shutdownShim: async (id: string) => void log.push(`shut down ${id}`),
    removeRuntime: async (id: string) => {
      await nextTurn();
      log.push(`remove ${id}`);
    },
  } as unknown as OpeningsOptions['machines'];
  const releaseImport = async (id: string) => void log.push(`release import ${id}`);
  return { log, openings: new Openings({ machines, releaseImport }) };
}

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);
const PURPOSES = Object.keys(CLAIMS) as Purpose[];

test('who has a volume is asked now, and a shim that hangs is no answer', async () => {
  const { openings } = bench({ m_1: 'open', s_1: 'empty', i_1: 'hangs' });
  assert.equal(await openings.isOpen(machine), true);
  assert.equal(await openings.isOpen(serve), false);
  assert.equal(await openings.isOpen({ kind: 'serve', volumeId: 'v_2' }), false);
  await assert.rejects(openings.isOpen(importer), code('RPC_TIMEOUT'));
});

test('a volume that is served is kept from everybody, and one of a running machine from who would change it', async () => {
  for (const purpose of PURPOSES) {
    const served = bench({ s_1: 'open' }).openings;
    assert.deepEqual(await served.keeper(volume, purpose), serve, purpose);
    await assert.rejects(served.refuseKept(volume, purpose), code('WORKER_VOLUME_SERVED'), purpose);
    await bench({ m_1: 'empty', s_1: 'empty', i_1: 'open' }).openings.refuseKept(volume, purpose);
  }
  const held = bench({ m_1: 'open' }).openings;
  await assert.rejects(
    held.refuseKept(volume, 'destroy'),
    (error) => isGodwitError(error, 'WORKER_VOLUME_HELD') && error.message.includes('postgres'),
  );
  // Its own machine opens it again, and a stopped one gives it back.
  for (const purpose of ['attach', 'move', 'serve', 'accept-loss'] as const)
    assert.equal(await held.keeper(volume, purpose), null, purpose);
  assert.equal(await held.keeper({ ...volume, machineId: null }, 'destroy'), null);
  await assert.rejects(bench({ s_1: 'hangs' }).openings.refuseKept(volume, 'attach'), code('RPC_TIMEOUT'));
});

test('an import lets go for a machine, a stopped machine for clients of other systems and for who accepts a loss', async () => {
  const taken = async (purpose: Purpose, of = volume as Parameters<Openings['takeAway']>[0]) => {
    const { log, openings } = bench({});
    await openings.takeAway(of, purpose);
    return log;
  };
  assert.deepEqual(await taken('attach'), ['release import v_1']);
  for (const purpose of ['serve', 'accept-loss'] as const)
    assert.deepEqual(await taken(purpose), ['release m_1']);
  const moving = bench({ m_1: 'open' });
  await moving.openings.takeAway(volume, 'accept-loss', { moving: true });
  assert.deepEqual(moving.log, ['release m_1 from its move']);
  assert.deepEqual(await taken('serve', { ...volume, machineId: null }), []);
  assert.deepEqual(await taken('serve', { ...volume, machineId: 'm_gone' }), []);
  for (const purpose of ['move', 'destroy'] as const) assert.deepEqual(await taken(purpose), []);
  const { log, openings } = bench({ m_1: 'open' }, 'running');
  for (const purpose of ['serve', 'accept-loss'] as const)
    await assert.rejects(openings.takeAway(volume, purpose), code('WORKER_VOLUME_HELD'));
  assert.deepEqual(log, []);
});

test('the end of a shim takes its folder along', async () => {
  const { log, openings } = bench({});
  await openings.end({ kind: 'export', runId: 'r_01K5' });
  assert.deepEqual(log, ['shut down x_r_01k5', 'remove x_r_01k5']);
});
