import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import type { BackendEvents, Opening } from '../opening/backend.ts';
import type { ExportSpec, OwnSpec } from '../opening/spec.ts';
import { VolumeHolder } from './volume-holder.ts';

const volume = { volumeId: 'v_1', generation: 2, lengthBytes: 4096, volumeDir: '/v' };
const own: OwnSpec = {
  kind: 'own',
  ...volume,
  access: 'standby',
  encryption: { uuid: 'u', keyGeneration: 1, keys: { kind: 'exec', argv: ['secret-program'] } },
};
const exported: ExportSpec = {
  kind: 'export',
  ...volume,
  access: 'readonly',
  export: { listenHost: 'h', listenPort: 0, targetIqn: 'iqn.2026-11.example:t', grants: [] },
};
const events = { onChange: () => {}, onEvent: () => {} };

/** Backends that note what they are asked. */
function bench(options: { fails?: 'open' | 'close' } = {}) {
  const log: string[] = [];
  let closeFails = options.fails === 'close';
  const make = async (plane: string, { onLeft }: BackendEvents) => ({
    can: () => null,
    open: async (spec: Opening['spec']): Promise<Opening> => {
      log.push(`open ${plane} ${spec.kind}`);
      const opening: Opening = {
        spec,
        device: spec.kind === 'own' ? '/dev/loop7' : null,
        port: spec.kind === 'export' ? 3260 : null,
        ask: async (op) => log.push(`ask ${op}`),
        state: () => ({ access: 'writable', serverPid: 7, serverRestarts: 1, status: null, lastError: null }),
        close: async () => {
          log.push('close');
          if (closeFails) throw new Error('busy');
        },
      };
      if (options.fails === undefined) return opening;
      if (options.fails === 'close') onLeft(opening);
      throw new Error('no disk');
    },
  });
  return {
    log,
    holder: new VolumeHolder(make, events),
    mend: () => {
      closeFails = false;
    },
  };
}

const code = (expected: string) => (error: unknown) => isGodwitError(error, expected);

test('a shim has one volume open, and is asked for it again without harm', async () => {
  const { holder, log } = bench();
  assert.equal(holder.status(), null);
  await assert.rejects(holder.ask('status', {}), code('MACHINE_NO_VOLUME'));
  await holder.close();
  assert.deepEqual(await holder.open(own), { loopDevice: '/dev/loop7', exportPort: null });
  assert.deepEqual(await holder.open({ ...own, access: 'writable' }), {
    loopDevice: '/dev/loop7',
    exportPort: null,
  });
  for (const other of [exported, { ...own, generation: 3 }, { ...own, volumeId: 'v_2' }])
    await assert.rejects(holder.open(other), code('MACHINE_VOLUME_OPEN'));
  await holder.ask('flush', {});
  await holder.close();
  assert.equal(holder.status(), null);
  assert.deepEqual(await holder.open(exported), { loopDevice: null, exportPort: 3260 });
  assert.deepEqual(log, ['open userspace own', 'ask flush', 'close', 'open userspace export']);
});

test('the plane is that of the spec, but for a guest that comes through NBD', async () => {
  const nbd = { path: '/s', owner: { uid: 0, gid: 0 }, client: 'observer' } as const;
  for (const [spec, plane] of [
    [{ ...own, plane: 'kernel' }, 'kernel'],
    [{ ...own, plane: 'kernel', nbd }, 'userspace'],
    [{ ...exported, plane: 'kernel' }, 'kernel'],
  ] as const) {
    const { holder, log } = bench();
    await holder.open(spec);
    assert.deepEqual(log, [`open ${plane} ${spec.kind}`]);
  }
});

test('the status shows what is so now, and no secret', async () => {
  const { holder } = bench();
  await holder.open(own);
  const status = holder.status();
  assert.deepEqual(status?.spec, { role: 'attach', ...volume, access: 'writable' });
  assert.deepEqual([status?.serverPid, status?.serverRestarts, status?.loopDevice], [7, 1, '/dev/loop7']);
  assert.ok(!JSON.stringify(status).includes('secret'));
});

test('what could neither be opened nor closed is closed later, and nothing else is opened before', async () => {
  const failed = bench({ fails: 'open' });
  await assert.rejects(failed.holder.open(own), /no disk/);
  assert.equal(failed.holder.status(), null);

  const { holder, log, mend } = bench({ fails: 'close' });
  await assert.rejects(holder.open(own), /no disk/);
  await assert.rejects(holder.open(exported), code('MACHINE_VOLUME_OPEN'));
  await assert.rejects(holder.close(), /busy/);
  assert.notEqual(holder.status(), null);
  mend();
  await holder.close();
  assert.equal(holder.status(), null);
  assert.deepEqual(log, ['open userspace own', 'close', 'close']);
});
