import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isGodwitError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import type { IscsiInitiator } from '../../src/iscsi/index.ts';
import { TlsIdentity } from '../../src/sys/tls-identity.ts';
import { startInitiator } from '../support/iscsi-pair.ts';
import { until } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { TestAuthority } from '../support/test-authority.ts';

/*
 * Targets that know the protocol and not our code (test/fixtures/iscsi_target.py), and do what they must not:
 * the initiator's data stays right, and it says what is wrong: in the clear and over TLS.
 */

const TARGET_PROGRAM = join(import.meta.dirname, '../fixtures/iscsi_target.py');
const MIB = 2 ** 20;
const failed = (error: unknown): boolean => isGodwitError(error, 'ISCSI_COMMAND_FAILED');
const changed = (error: unknown) => isGodwitError(error, 'ISCSI_TARGET_CHANGED');

async function connectTo(
  t: TestContext,
  transport: string,
  mode: string,
): Promise<{ disk: IscsiInitiator; seen: string[] }> {
  const words = [TARGET_PROGRAM, mode];
  let identity: TlsIdentity | null = null;
  if (transport === 'TLS') {
    const authority = new TestAuthority(join(scratchDir(t), 'ca'));
    const target = authority.issue('target');
    words.push(target.certFile, target.keyFile, target.caFile);
    identity = new TlsIdentity(authority.issue('initiator'), silentLogger);
  }
  const child = spawn('python3', words, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const lines = createInterface(child.stdout);
  const [port] = (await once(lines, 'line')) as [string];
  const seen: string[] = [];
  lines.on('line', (line) => seen.push(line));
  const portal = { host: '127.0.0.1', port: Number(port), ...(identity !== null && { tls: identity }) };
  return { disk: await startInitiator(t, 0, { portals: [portal], chap: null }), seen };
}

for (const transport of ['the clear', 'TLS']) {
  const skip = requires('python3', ...(transport === 'TLS' ? ['openssl'] : []));
  const over = transport === 'TLS' ? 'over TLS: ' : '';
  const connect = (t: TestContext, mode: string) => connectTo(t, transport, mode);

  for (const mode of [
    'acknowledges_half',
    'acknowledges_half_with_residual',
    'acknowledges_all_with_residual',
  ]) {
    test(`${over}a target that ${mode.replaceAll('_', ' ')} of a write: it does not resolve`, {
      skip,
    }, async (t) => {
      const { disk } = await connect(t, mode);
      const bytes = mode === 'acknowledges_all_with_residual' ? 4096 : MIB;
      await assert.rejects(disk.write(0, Buffer.alloc(bytes, 1)), failed);
    });
  }

  test(`${over}a buffer is its caller’s again when the kernel has taken all of it, however early the target answers`, {
    skip,
  }, async (t) => {
    const { disk, seen } = await connect(t, 'answers_early');
    const buffer = Buffer.alloc(MIB, 'w');
    for (let round = 0; round < 4; round += 1) {
      buffer.fill('w');
      await disk.write(0, buffer);
      buffer.fill('x');
    }
    while (seen.length < 16) await sleep(20);
    assert.deepEqual([...new Set(seen)], ['{"dataOut": ["w"]}']);
  });

  test(`${over}what the target recovered is data, of a read and of a write`, { skip }, async (t) => {
    const { disk } = await connect(t, 'recovers');
    const into = Buffer.alloc(8192);
    await disk.read(0, into);
    assert.ok(into.equals(Buffer.alloc(8192, 'A')));
    await disk.write(0, into);
  });

  for (const mode of ['busy', 'task_set_full']) {
    test(`${over}a target that is ${mode.replaceAll('_', ' ')}: it is waited for, and it is said why`, {
      skip,
    }, async (t) => {
      const { disk } = await connect(t, mode);
      const reading = disk.read(0, Buffer.alloc(4096));
      while (disk.trouble === null) await sleep(5);
      assert.equal(disk.trouble.code, 'ISCSI_TARGET_BUSY');
      assert.match(disk.trouble.message, mode === 'busy' ? /busy/ : /taskSetFull/);
      assert.equal(disk.state, 'connected');
      assert.ok(disk.statistics.oldestWaitMs > 0);
      await reading;
      assert.equal(disk.trouble, null);
    });
  }

  for (const mode of ['is_not_available_at_first', 'is_busy_at_first']) {
    test(`${over}a target that ${mode.replaceAll('_', ' ')} is waited for by whoever connects`, {
      skip,
    }, async (t) => {
      const { disk } = await connect(t, mode);
      await disk.read(0, Buffer.alloc(4096));
      if (mode === 'is_busy_at_first') assert.equal(disk.lastError?.code, 'ISCSI_TARGET_BUSY');
    });
  }

  test(`${over}a read for which the target always ends the connection fails by name, and the others do not`, {
    skip,
  }, async (t) => {
    const { disk } = await connect(t, 'poison');
    const reads = Array.from({ length: 64 }, async (_, index) => {
      const into = Buffer.alloc(4096);
      await disk.read(index * 4096, into);
      assert.ok(into.equals(Buffer.alloc(4096, 'A')));
    });
    const outcomes = await Promise.allSettled(reads);
    const rejected = outcomes.flatMap((outcome, index) => (outcome.status === 'rejected' ? [index] : []));
    assert.deepEqual(rejected, [8]);
    const { reason } = outcomes[8] as PromiseRejectedResult;
    assert.ok(failed(reason), String(reason));
    assert.equal(reason.values.lba, 64);
    await disk.read(0, Buffer.alloc(4096));
  });

  test(`${over}a disk that became another in silence: what was read since the last look is not vouched for`, {
    skip,
  }, async (t) => {
    const { disk } = await connect(t, 'swaps_in_silence');
    const into = Buffer.alloc(4096);
    await disk.read(0, into);
    await disk.vouch();
    await Promise.all([disk.vouch(), disk.vouch()]);
    await disk.read(0, into);
    await disk.read(0, into);
    await disk.read(0, into);
    assert.equal(into[0], 0x42, 'the other one answers');
    await assert.rejects(disk.vouch(), changed);
    assert.equal(disk.state, 'failed');
    await assert.rejects(disk.read(0, into), changed);
  });

  test(`${over}a unit that comes back able to do less is asked for no more than that`, {
    skip,
  }, async (t) => {
    const { disk, seen } = await connect(t, 'comes_back_weaker');
    const lengthBytes = MIB;
    const hole = { offsetBytes: 0, lengthBytes, kind: 'hole' };
    assert.deepEqual(await disk.extents(0, lengthBytes, 4), [hole]);
    // The first of these ends the session.
    await Promise.all([disk.write(0, Buffer.alloc(lengthBytes)), disk.discard(lengthBytes, 4096)]);
    assert.deepEqual(await disk.extents(0, lengthBytes, 4), [{ ...hole, kind: 'data' }]);
    await disk.discard(2 * lengthBytes, 4096);
    const expected = [
      ...['{"asked": "holes"}', '{"wrote": 4096}', '{"wroteSame": 0}'],
      ...Array.from({ length: 16 }, () => '{"wrote": 65536}'),
    ];
    await until('what it says', () => seen.length >= expected.length);
    await disk.read(0, Buffer.alloc(4096));
    assert.deepEqual(seen.sort(), expected.sort());
  });

  test(`${over}a unit that comes back write-protected refuses by name`, { skip }, async (t) => {
    const { disk } = await connect(t, 'comes_back_protected');
    const readOnly = (error: unknown): boolean => isGodwitError(error, 'BLOCK_READ_ONLY');
    await assert.rejects(disk.write(0, Buffer.alloc(4096)), readOnly);
    assert.equal(disk.writable, false);
    await assert.rejects(
      disk.flush().then(() => disk.write(0, Buffer.alloc(4096))),
      readOnly,
    );
    await disk.read(0, Buffer.alloc(4096));
  });

  test(`${over}a unit that says no longer that its holes are zeros: no hole is vouched for`, {
    skip,
  }, async (t) => {
    const { disk } = await connect(t, 'forgets_zeros');
    const holes = await disk.extents(0, MIB, 4);
    assert.deepEqual(holes, [{ offsetBytes: 0, lengthBytes: MIB, kind: 'hole' }]);
    await assert.rejects(disk.vouch(), (error) => changed(error) && error.values.missing === 'LBPRZ');
  });

  for (const [code, name] of [
    ['29_00', 'power on or reset'],
    ['29_03', 'a reset of the unit'],
    ['3f_03', 'inquiry data changed'],
    ['3f_0e', 'reported units changed'],
    ['25_00', 'no such unit'],
  ] as const) {
    test(`${over}a disk that became another, and the target says ${name}: nothing of it is read`, {
      skip,
    }, async (t) => {
      const { disk } = await connect(t, `swaps_and_says_${code}`);
      const into = Buffer.alloc(4096);
      await disk.read(0, into);
      await disk.read(0, into);
      await assert.rejects(disk.read(0, into), changed);
      assert.equal(into[0], 0x41);
    });
  }
}
