import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { isGodwitError } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import { startInitiator } from '../support/iscsi-pair.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { startTgt } from '../support/tgt.ts';

/* Our initiator against Debian's tgt, a target written in C. */

const MIB = 1024 * 1024;
const skip = requires('tgtd', 'tgtadm', 'root');
const USER = { user: 'worker-2', secret: 'correct-horse' };
const MUTUAL = { user: 'the-target', secret: 'battery-staple' };
// tgt knows MD5 under its number; it takes 7 for SHA-1, where IANA says SHA-256.
const CHAP = { ...USER, algorithms: ['md5' as const] };

for (const digests of [false, true]) {
  test(`mutual CHAP with tgt, digests ${digests ? 'on' : 'off'}`, { skip }, async (t) => {
    const file = join(scratchDir(t), 'unit.raw');
    const content = Buffer.from(seededRandom(1).bytes(8 * MIB));
    writeFileSync(file, content);
    const tgt = await startTgt({ file, chap: USER, mutualChap: MUTUAL });
    t.after(() => tgt.close());
    const initiator = await startInitiator(t, tgt.port, {
      chap: { ...CHAP, mutual: MUTUAL },
      lun: 1,
      digests,
    });
    // Immediate data alone, and far more than tgt takes at once.
    for (const [offsetBytes, lengthBytes] of [
      [512, 512],
      [MIB + 1024, 3 * MIB + 512],
    ] as const) {
      const data = Buffer.from(seededRandom(lengthBytes).bytes(lengthBytes));
      await initiator.write(offsetBytes, data);
      data.copy(content, offsetBytes);
    }
    await initiator.flush();
    const read = Buffer.alloc(content.length);
    await initiator.read(0, read);
    assert.ok(read.equals(content));
    await assert.rejects(
      startInitiator(t, tgt.port, {
        chap: { ...CHAP, mutual: { ...MUTUAL, secret: 'other-secret' } },
        lun: 1,
      }),
      (error) => isGodwitError(error, 'ISCSI_TARGET_NOT_AUTHENTIC'),
    );
  });
}

test('a thin unit of tgt: discard makes holes, extents tells them, and they read as zeros', {
  skip,
}, async (t) => {
  const file = join(scratchDir(t), 'unit.raw');
  writeFileSync(file, seededRandom(2).bytes(8 * MIB));
  const tgt = await startTgt({ file });
  t.after(() => tgt.close());
  const initiator = await startInitiator(t, tgt.port, { chap: null, lun: 1 });
  await initiator.discard(2 * MIB, MIB);
  await initiator.flush();
  const zeros = Buffer.alloc(MIB, 0xff);
  await initiator.read(2 * MIB, zeros);
  assert.ok(zeros.every((byte) => byte === 0));
  const extents = await initiator.extents(0, 8 * MIB, 100);
  let at = 0;
  for (const extent of extents) {
    assert.equal(extent.offsetBytes, at);
    at += extent.lengthBytes;
    // What is not a hole may be called data; what is called a hole must be one.
    if (extent.kind === 'hole') assert.ok(extent.offsetBytes >= 2 * MIB && at <= 3 * MIB);
  }
  assert.equal(at, 8 * MIB);
  t.diagnostic(extents.map(({ kind, lengthBytes }) => `${kind} ${lengthBytes / 1024} KiB`).join(', '));
});

test('two ways to one tgt: when one is cut for good, all goes on over the other', { skip }, async (t) => {
  const file = join(scratchDir(t), 'unit.raw');
  const content = Buffer.from(seededRandom(3).bytes(8 * MIB));
  writeFileSync(file, content);
  const tgt = await startTgt({ file });
  t.after(() => tgt.close());
  const relays = [1, 2].map(() => new TcpRelay({ host: '127.0.0.1', port: tgt.port }));
  for (const relay of relays) {
    await relay.listen();
    t.after(() => relay.close());
  }
  const portals = relays.map(({ port }) => ({ host: '127.0.0.1', port }));
  const initiator = await startInitiator(t, 0, { portals, chap: null, lun: 1 });
  const [first, second] = relays as [TcpRelay, TcpRelay];
  let gone = first;
  for (let round = 0; round < 6; round += 1) {
    const data = Buffer.from(seededRandom(round).bytes(MIB));
    const writing = initiator.write(round * MIB, data);
    gone.refuse();
    await writing;
    data.copy(content, round * MIB);
    gone.resume();
    gone = gone === first ? second : first;
  }
  const read = Buffer.alloc(content.length);
  await initiator.read(0, read);
  assert.ok(read.equals(content));
  assert.ok(second.accepted > 0 && initiator.statistics.reconnects > 0);
});
