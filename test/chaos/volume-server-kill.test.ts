import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { attachedVolume } from '../support/attached-volume.ts';
import { requires } from '../support/requires.ts';

const skip = requires('root', '/dev/fuse', '/dev/loop-control', 'losetup', 'fio');
const KILLS = 10;

test('the volume server is killed ten times under fio --verify: no I/O error, every block right', {
  skip,
  timeout: 120_000,
}, async (t) => {
  const volume = await attachedVolume(t, { lengthBytes: 256 * 1024 * 1024 });
  const fio = promisify(execFile)(
    'fio',
    [
      '--name=verify',
      `--filename=${volume.loop}`,
      '--ioengine=libaio',
      '--direct=1',
      '--rw=randwrite',
      '--bs=4k',
      '--iodepth=16',
      // Slow enough that all kills hit it while it writes: 64 MiB at 8 MiB/s, then everything is read and checked.
      '--rate=8m',
      '--io_size=64m',
      '--verify=crc32c',
      '--do_verify=1',
      '--verify_fatal=1',
      '--randseed=1',
    ],
    { timeout: 90_000 },
  );
  let running = true;
  const done = fio.finally(() => {
    running = false;
  });
  done.catch(() => {});
  const pids = new Set<number>();
  for (let kill = 0; kill < KILLS; kill++) {
    await sleep(500);
    assert.ok(running, 'fio is still at work');
    const pid = volume.supervisor.state.serverPid;
    assert.ok(pid !== null);
    pids.add(pid);
    process.kill(pid, 'SIGKILL');
    await volume.supervisor.call('status', {}, 20_000);
  }
  const { stdout, stderr } = await done;
  assert.equal(stderr, '');
  assert.match(stdout, /err= 0/);
  assert.equal(pids.size, KILLS, 'each kill hit another server');
  assert.equal(volume.supervisor.state.restarts, KILLS);
  assert.equal(volume.supervisor.state.lastError?.values.signal, 'SIGKILL');
});
