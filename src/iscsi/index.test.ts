import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  IscsiInitiator,
  IscsiTarget,
  MemoryDevice,
  silentLogger,
  systemClock,
  systemRandom,
} from 'godwit/iscsi';

test('the example of docs/iscsi.md, by the name that other programs use', async (t) => {
  const parts = { clock: systemClock, random: systemRandom, logger: silentLogger };
  const device = new MemoryDevice({ lengthBytes: 2 ** 20, content: Buffer.alloc(4096, 5) });
  const target = await IscsiTarget.listen({ host: '127.0.0.1', port: 0, ...parts });
  t.after(() => target.close());
  const targetIqn = 'iqn.2026-01.com.example:disk';
  const initiatorIqn = 'iqn.2026-01.com.example:reader';
  const share = target.addExport({ targetIqn, device, serial: 'disk', generation: 1, readOnly: false });
  const chap = { user: 'reader', secret: 'twelve or more characters' };
  share.grant({ initiatorIqn, chap, generation: 1 });
  const disk = await IscsiInitiator.connect({
    portals: [{ host: '127.0.0.1', port: target.port }],
    targetIqn,
    initiatorIqn,
    chap,
    ...parts,
  });
  const into = Buffer.alloc(4096);
  await disk.read(0, into);
  await disk.close();
  assert.ok(into.every((byte) => byte === 5));
});
