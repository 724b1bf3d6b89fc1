import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { systemClock } from '../../src/base/clock.ts';
import { messageOf } from '../../src/base/errors.ts';
import { seededRandom } from '../../src/base/random.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { startInitiator, startTarget, TARGET_IQN } from '../support/iscsi-pair.ts';
import { findProgram, requires } from '../support/requires.ts';
import { scratchDir } from '../support/scratch.ts';

/* Our target against other people's initiators, and our initiator against another target. */

const MIB = 1024 * 1024;
const LIBISCSI = 'iqn.2007-10.com.github:sahlberg:libiscsi:';
const QEMU_ISCSI = '/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so';
const CHAP = { user: 'worker-2', secret: 'correct-horse' };

async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(findProgram(program) ?? program, args, {
    timeout: 60_000,
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
    grant: { initiatorIqn: 'iqn.2008-11.org.linux-kvm', chap: CHAP },
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

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as import('node:net').AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Debian's tgtd with one unit of `lengthBytes` and CHAP, gone after the test. */
async function startTgt(t: TestContext, file: string): Promise<number> {
  const port = await freePort();
  // Control sockets are numbered and global to the host; the port makes ours unlikely to be anybody else's.
  const control = String(port & 0x7fff);
  const daemon: ChildProcess = spawn(
    findProgram('tgtd')!,
    ['-f', '-C', control, '--iscsi', `portal=127.0.0.1:${port}`],
    {
      stdio: 'ignore',
    },
  );
  t.after(async () => {
    daemon.kill('SIGKILL');
    if (daemon.exitCode === null && daemon.signalCode === null) await once(daemon, 'exit');
  });
  const admin = (...args: string[]): Promise<string> =>
    run('tgtadm', '-C', control, '--lld', 'iscsi', ...args);
  for (let attempt = 0; ; attempt += 1) {
    try {
      await admin('--op', 'new', '--mode', 'target', '--tid', '1', '-T', TARGET_IQN);
      break;
    } catch (error) {
      if (attempt === 50) throw new Error(`tgtd does not come up: ${messageOf(error)}`);
      await systemClock.sleep(100);
    }
  }
  await admin('--op', 'new', '--mode', 'logicalunit', '--tid', '1', '--lun', '1', '-b', file);
  await admin('--op', 'bind', '--mode', 'target', '--tid', '1', '-I', 'ALL');
  await admin('--op', 'new', '--mode', 'account', '--user', CHAP.user, '--password', CHAP.secret);
  await admin('--op', 'bind', '--mode', 'account', '--tid', '1', '--user', CHAP.user);
  return port;
}

for (const digests of [false, true]) {
  test(`our initiator against tgt with CHAP, digests ${digests ? 'on' : 'off'}`, {
    skip: requires('tgtd', 'tgtadm', 'root'),
  }, async (t) => {
    const file = join(scratchDir(t), 'unit.raw');
    const content = Buffer.from(seededRandom(12).bytes(16 * MIB));
    writeFileSync(file, content);
    const port = await startTgt(t, file);
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
