import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, read, readFileSync, statSync, write } from 'node:fs';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { attachedVolume } from '../../test/support/attached-volume.ts';
import { patient, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { isGodwitError } from '../base/errors.ts';
import { NodeXts } from '../crypt/xts.ts';
import { attachLoop, findLoops } from '../host/losetup.ts';
import { mustRun, systemTools } from '../host/tools.ts';

const skip = requires('root', '/dev/fuse', '/dev/loop-control', 'losetup', 'mkfs.ext4', 'fstrim');
const MiB = 1024 * 1024;

async function tool(program: string, ...argv: string[]): Promise<string> {
  return (await mustRun(systemTools(), [program, ...argv], { deadlineMs: patient(30_000) })).trim();
}

test('a filesystem on the loop device: files, trim, unmount; the file below is the disk', {
  skip,
}, async (t) => {
  const volume = await attachedVolume(t, { lengthBytes: 256 * MiB });
  const { loop, mountPoint, filePath } = volume;
  assert.deepEqual(findLoops(volume.mount.filePath), [loop]);
  await tool('mkfs.ext4', '-q', '-b', '4096', '-E', 'nodiscard', loop);
  await tool('mount', loop, mountPoint);
  const script = `dd if=/dev/urandom of=${mountPoint}/keep bs=64k count=64 2>/dev/null
    dd if=/dev/urandom of=${mountPoint}/drop bs=1M count=64 2>/dev/null
    sync ${mountPoint}/keep ${mountPoint}/drop; sha256sum < ${mountPoint}/keep`;
  const sum = await tool('sh', '-ec', script);
  const before = statSync(filePath).blocks * 512;
  assert.ok(before > 68 * MiB);
  await tool('sh', '-ec', `rm ${mountPoint}/drop; sync -f ${mountPoint}; fstrim ${mountPoint}`);
  assert.ok(statSync(filePath).blocks * 512 < before - 60 * MiB, 'the trimmed file gave its space back');
  await tool('umount', mountPoint);
  // Mounted again with a cold cache of the filesystem: everything comes from the file.
  await tool('mount', loop, mountPoint);
  assert.equal(await tool('sh', '-ec', `sha256sum < ${mountPoint}/keep`), sum);
  await tool('umount', mountPoint);
  await tool('e2fsck', '-fn', loop);
  const status = (await volume.supervisor.call('status')) as unknown as {
    guest: { writes: number };
    hotRequests: number;
  };
  assert.ok(status.guest.writes > 0);
  assert.ok(status.hotRequests > 0, 'the hot path was used');
});

test('an encrypted volume: plaintext on the loop device, ciphertext of LUKS2 in the file, on the hot path and beside it', {
  skip,
}, async (t) => {
  const lengthBytes = 16 * MiB;
  const key = randomBytes(64);
  const volume = await attachedVolume(t, {
    lengthBytes,
    sectorBytes: 4096,
    env: { PLAIN_VOLUME_KEY: key.toString('hex') },
  });
  const { loop, filePath, beforeDetach } = volume;
  const fd = openSync(loop, 'rs+');
  beforeDetach(() => closeSync(fd));
  const expected = Buffer.alloc(lengthBytes);
  for (const [offset, length] of [
    [0, 4096],
    [3 * 4096, 8192],
    [MiB + 4096, 3 * MiB],
    [16 * MiB - 4096, 4096],
  ] as const) {
    const bytes = randomBytes(length);
    bytes.copy(expected, offset);
    await promisify(write)(fd, bytes, 0, length, offset);
  }
  await tool('blkdiscard', '--offset', `${2 * MiB}`, '--length', `${MiB}`, loop);
  expected.fill(0, 2 * MiB, 3 * MiB);
  await tool('blockdev', '--flushbufs', loop);
  const got = Buffer.alloc(lengthBytes);
  for (let done = 0; done < lengthBytes; ) {
    const { bytesRead } = await promisify(read)(fd, got, done, lengthBytes - done, done);
    assert.ok(bytesRead > 0);
    done += bytesRead;
  }
  assert.ok(got.equals(expected), 'what the guest reads');
  const status = (await volume.supervisor.call('status')) as unknown as { hotRequests: number };
  assert.ok(status.hotRequests > 0, 'the hot path was used');

  // By the other implementation: what is a hole stays zeros, all else is ciphertext at its place.
  const file = readFileSync(filePath);
  const cipher = new NodeXts(key, 4096);
  const zeros = Buffer.alloc(4096);
  for (let at = 0; at < lengthBytes; at += 4096) {
    const sector = file.subarray(at, at + 4096);
    if (!sector.equals(zeros)) cipher.decrypt(sector, sector, at / 512);
  }
  assert.ok(file.equals(expected), 'what the file holds');
});

test('large, small, unaligned to 4 KiB and last: what is written is read back', { skip }, async (t) => {
  const lengthBytes = 16 * MiB + 512;
  const { loop, filePath, beforeDetach } = await attachedVolume(t, { lengthBytes });
  // 512-byte sectors; the loop device is as long as the file.
  const fd = openSync(loop, 'rs+');
  beforeDetach(() => closeSync(fd));
  const expected = Buffer.alloc(lengthBytes);
  for (const [offset, length] of [
    [0, 4096],
    [512, 512],
    [4608, 8192 - 512],
    [MiB, 3 * MiB],
    [16 * MiB - 4096, 4096 + 512],
  ] as const) {
    const bytes = randomBytes(length);
    bytes.copy(expected, offset);
    await promisify(write)(fd, bytes, 0, length, offset);
  }
  await tool('blockdev', '--flushbufs', loop);
  const got = Buffer.alloc(lengthBytes);
  for (let done = 0; done < lengthBytes; ) {
    const { bytesRead } = await promisify(read)(fd, got, done, lengthBytes - done, done);
    assert.ok(bytesRead > 0);
    done += bytesRead;
  }
  assert.ok(got.equals(expected));
  assert.ok(readFileSync(filePath).equals(expected));
});

test('standby holds requests, sealed refuses writes and still reads', { skip }, async (t) => {
  const { loop, supervisor, filePath } = await attachedVolume(t, {
    lengthBytes: 16 * MiB,
    access: 'standby',
  });
  let held = true;
  const pending = tool('dd', `of=${loop}`, 'if=/dev/urandom', 'bs=4096', 'count=16', 'oflag=direct').finally(
    () => {
      held = false;
    },
  );
  await sleep(300);
  assert.ok(held, 'the write waits');
  assert.equal(statSync(filePath).blocks, 0);
  await supervisor.call('activate', { access: 'writable' });
  await pending;
  assert.equal(readFileSync(filePath).subarray(0, 65536).indexOf(Buffer.alloc(4096)), -1);
  await supervisor.call('seal');
  const before = readFileSync(filePath);
  const refused = await systemTools().run(
    ['dd', `of=${loop}`, 'if=/dev/zero', 'bs=4096', 'count=16', 'oflag=direct'],
    {
      deadlineMs: patient(10_000),
    },
  );
  assert.equal(refused.exitCode, 1);
  await tool('dd', `if=${loop}`, 'of=/dev/null', 'bs=4096', 'iflag=direct');
  assert.ok(readFileSync(filePath).equals(before), 'nothing changed after the seal');
  assert.equal(supervisor.spec.access, 'readonly');
});

test('under constant writes, the seal is a line: no write reaches the file after it', { skip }, async (t) => {
  const { loop, supervisor, filePath, beforeDetach } = await attachedVolume(t, {
    lengthBytes: 16 * MiB,
  });
  const fd = openSync(loop, 'rs+');
  beforeDetach(() => closeSync(fd));
  let refused = 0;
  let written = 0;
  const writers = Array.from({ length: 3 }, async (_, writer) => {
    for (let round = 0; refused === 0; round++) {
      const bytes = randomBytes(4096);
      try {
        await promisify(write)(fd, bytes, 0, 4096, (writer * 512 + (round % 512)) * 4096);
        written++;
      } catch {
        refused++;
      }
    }
  });
  await until('writes', () => written > 50);
  await supervisor.call('seal');
  const atSeal = readFileSync(filePath);
  await Promise.all(writers);
  assert.ok(written > 0 && refused > 0);
  await sleep(50);
  assert.ok(readFileSync(filePath).equals(atSeal));
});

test('a file that is not there is a typed error', { skip }, async () => {
  await assert.rejects(attachLoop({ filePath: '/nonexistent/disk' }), (error) =>
    isGodwitError(error, 'HOST_LOOP_FAILED'),
  );
});
