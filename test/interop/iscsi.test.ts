import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { seededRandom } from '../../src/base/random.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { startInitiator, startTarget, TARGET_IQN } from '../support/iscsi-pair.ts';
import { patient } from '../support/patience.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';
import { startTgt } from '../support/tgt.ts';

/* Our target against other people's initiators, and our initiator against another target. */

const MIB = 1024 * 1024;
const LIBISCSI = 'iqn.2007-10.com.github:sahlberg:libiscsi:';
const QEMU_ISCSI = '/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so';
const QEMU_INITIATOR = 'iqn.2008-11.org.linux-kvm';
const CHAP = { user: 'worker-2', secret: 'correct-horse' };

async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program) ?? program, args, {
    timeout: patient(60_000),
    maxBuffer: 64 * MIB,
  });
  return stdout;
}

function url(port: number, user = ''): string {
  return `iscsi://${user}127.0.0.1:${port}/${TARGET_IQN}/0`;
}

test('iscsi-ls lists the export and its size', { skip: requires('iscsi-ls') }, async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: 64 * MIB }), {
    grant: { initiatorIqn: `${LIBISCSI}iscsi-ls`, chap: null },
  });
  const out = await run('iscsi-ls', '-s', `iscsi://127.0.0.1:${target.port}`);
  assert.match(out, new RegExp(`Target:${TARGET_IQN} Portal:127.0.0.1:${target.port},1`));
  assert.match(out, /Lun:0 +Type:DIRECT_ACCESS/);
});

test('iscsi-inq reads the standard data and every page', { skip: requires('iscsi-inq') }, async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: 64 * MIB }), {
    grant: { initiatorIqn: `${LIBISCSI}iscsi-inq`, chap: null },
  });
  assert.match(await run('iscsi-inq', url(target.port)), /Vendor:GODWIT/);
  const page = (code: string): Promise<string> => run('iscsi-inq', '-e', '1', '-c', code, url(target.port));
  assert.match(await page('128'), /volume-1/);
  assert.match(await page('131'), /GODWIT +volume-1/);
  assert.match(await page('176'), /maximum transfer length:8192/i);
  assert.match(await page('177'), /Medium Rotation Rate:1/);
  assert.match(await page('178'), /provisioning type:2/i);
});

test('iscsi-readcapacity16 sees a thin unit', { skip: requires('iscsi-readcapacity16') }, async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: 64 * MIB }), {
    grant: { initiatorIqn: `${LIBISCSI}iscsi-readcapacity16`, chap: null },
  });
  const out = await run('iscsi-readcapacity16', url(target.port));
  assert.match(out, /Total size:67108864/);
  assert.match(out, /LBPME:1 LBPRZ:1/);
});

test('qemu-img reads, compares and writes over iscsi:// with CHAP', {
  skip: requires('qemu-img', QEMU_ISCSI),
}, async (t) => {
  const dir = scratchDir(t);
  const file = join(dir, 'source.raw');
  const copy = join(dir, 'copy.raw');
  const content = Buffer.alloc(24 * MIB);
  content.set(seededRandom(9).bytes(4 * MIB), 3 * MIB + 512);
  writeFileSync(file, content);
  const device = await FileDevice.open({ file, lengthBytes: content.length });
  t.after(() => device.close());
  const { target } = await startTarget(t, device, {
    grant: { initiatorIqn: QEMU_INITIATOR, chap: CHAP },
  });
  const login = `${CHAP.user}%${CHAP.secret}@`;
  const from = url(target.port, login);
  const info = JSON.parse(await run('qemu-img', 'info', '--output=json', from));
  assert.equal(info['virtual-size'], content.length);
  await run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', from, copy);
  assert.match(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', copy, from), /identical/);
  const other = join(dir, 'other.raw');
  writeFileSync(other, seededRandom(10).bytes(24 * MIB));
  await run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', other, from);
  assert.match(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', other, file), /identical/);
  await assert.rejects(
    run('qemu-img', 'info', url(target.port, `${CHAP.user}%wrong-secret@`)),
    /Failed to log in|authentication/i,
  );
});

test('iscsi-swp sets and clears software write protect', {
  skip: requires('iscsi-swp', 'qemu-io'),
}, async (t) => {
  const { target, share } = await startTarget(t, new MemoryDevice({ lengthBytes: MIB }), {
    grant: { initiatorIqn: `${LIBISCSI}iscsi-swp`, chap: null },
  });
  share.grant({ initiatorIqn: QEMU_INITIATOR, chap: null, generation: 3 });
  const write = (): Promise<string> => run('qemu-io', '-f', 'raw', '-c', 'write 0 4k', url(target.port));
  await run('iscsi-swp', '-s', 'on', url(target.port));
  assert.match(await run('iscsi-swp', url(target.port)), /SWP:1/);
  await assert.rejects(write(), /write.protected|read.only/i);
  await run('iscsi-swp', '-s', 'off', url(target.port));
  assert.match(await run('iscsi-swp', url(target.port)), /SWP:0/);
  assert.match(await write(), /wrote 4096/);
});

test('qemu-io writes, zeroes and discards, and reads its patterns back', {
  skip: requires('qemu-io', QEMU_ISCSI),
}, async (t) => {
  const device = new MemoryDevice({ lengthBytes: 32 * MIB });
  const { target } = await startTarget(t, device, { grant: { initiatorIqn: QEMU_INITIATOR, chap: null } });
  const commands = [
    'write -P 0x11 0 4M',
    'write -P 0x22 1M 512',
    'aio_write -P 0x33 2M 1M',
    'aio_write -P 0x44 8M 4M',
    'aio_flush',
    'flush',
    'write -z 3M 64k',
    'write -z -u 9M 1M',
    'discard 10M 1M',
    'writev -P 0x55 20M 4k 60k 1M',
    'read -P 0x11 0 1M',
    'read -P 0x22 1M 512',
    'read -P 0x11 1049088 1047552',
    'read -P 0x33 2M 1M',
    'read -P 0 3M 64k',
    'read -P 0x44 8M 1M',
    'read -P 0 9M 2M',
    'read -P 0x44 11M 1M',
    'read -P 0x55 20M 1088k',
    'read -P 0 22M 10M',
  ];
  const out = await run(
    'qemu-io',
    ...['-f', 'raw', '-d', 'unmap'],
    ...commands.flatMap((command) => ['-c', command]),
    url(target.port),
  );
  assert.doesNotMatch(out, /Pattern verification failed|error|failed/i);
  assert.equal(out.match(/^read /gm)?.length, 10);
  const block = Buffer.alloc(512);
  await device.read(MIB, block);
  assert.ok(block.every((byte) => byte === 0x22));
});

test('qemu-img bench reads and writes at depth', { skip: requires('qemu-img', QEMU_ISCSI) }, async (t) => {
  const { target } = await startTarget(t, new MemoryDevice({ lengthBytes: 32 * MIB }), {
    grant: { initiatorIqn: QEMU_INITIATOR, chap: null },
  });
  const bench = (...args: string[]): Promise<string> =>
    run('qemu-img', 'bench', '-f', 'raw', '-t', 'none', ...args, url(target.port));
  assert.match(await bench('-c', '2000', '-d', '16', '-s', '4096'), /Run completed/);
  assert.match(await bench('-w', '-c', '2000', '-d', '64', '-s', '4096'), /Run completed/);
  assert.match(await bench('-w', '-c', '64', '-d', '8', '-s', '1048576', '-S', '1048576'), /Run completed/);
});

for (const digests of [false, true]) {
  test(`our initiator against tgt with CHAP, digests ${digests ? 'on' : 'off'}`, {
    skip: requires('tgtd', 'tgtadm', 'root'),
  }, async (t) => {
    const file = join(scratchDir(t), 'unit.raw');
    const content = Buffer.from(seededRandom(12).bytes(16 * MIB));
    writeFileSync(file, content);
    const { port, close } = await startTgt({ file, chap: CHAP });
    t.after(close);
    // tgt knows MD5 under its number; it takes 7 for SHA-1, where IANA and everybody else mean SHA-256.
    const chap = { ...CHAP, algorithms: ['md5' as const] };
    const initiator = await startInitiator(t, port, { chap, lun: 1, digests });
    assert.equal(initiator.lengthBytes, content.length);
    const read = Buffer.alloc(content.length);
    await initiator.read(0, read);
    assert.ok(read.equals(content));
    const data = Buffer.from(seededRandom(13).bytes(3 * MIB + 512));
    await initiator.write(MIB, data);
    await initiator.flush();
    data.copy(content, MIB);
    await initiator.discard(8 * MIB, MIB);
    content.fill(0, 8 * MIB, 9 * MIB);
    await initiator.writeZeroes(10 * MIB, 8192);
    content.fill(0, 10 * MIB, 10 * MIB + 8192);
    await initiator.read(0, read);
    assert.ok(read.equals(content));
    const extents = await initiator.extents(0, content.length, 100);
    assert.equal(
      extents.reduce((sum, extent) => sum + extent.lengthBytes, 0),
      content.length,
    );
    await assert.rejects(
      startInitiator(t, port, { chap: { ...chap, secret: 'wrong-secret!' }, lun: 1 }),
      (error) => (error as { code?: string }).code === 'ISCSI_LOGIN_REFUSED',
    );
  });
}
