import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { attachedVolume } from '../support/attached-volume.ts';
import { assertSameContent, moveRawVolume, Running } from '../support/raw-clone.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

const skip = requires('root', '/dev/fuse', '/dev/loop-control', 'losetup', 'fio');
const KILLS = 10;
const MIB = 2 ** 20;

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
      '--verify_state_save=0',
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

test('the same on a clone that hydrates, while another reads what is still at the source', {
  skip: requires(...LAB_NEEDS, 'fio'),
  timeout: 300_000,
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 256 * MIB,
    content: { offsetBytes: 0, lengthBytes: 192 * MIB },
    paused: true,
    via: async (source) => {
      const relay = new TcpRelay(source);
      // Far enough away that the reader meets several servers.
      relay.delayMs = 3;
      await relay.listen();
      lab.onClose(() => relay.close());
      return { host: '127.0.0.1', port: relay.port };
    },
  });
  const { target } = move;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 4 * MIB });
  const writtenBytes = 64 * MIB;
  const fio = new Running(
    lab,
    'fio',
    ...['--name=verify', `--filename=${target.loop}`, '--ioengine=libaio', '--direct=1', '--rw=randwrite'],
    // All of it, on blocks that are here, on their way, or missing.
    ...['--bs=4k', '--iodepth=16', '--rate=6m', `--size=${writtenBytes}`, '--randseed=1'],
    ...['--verify=crc32c', '--verify_state_save=0', '--do_verify=1', '--verify_fatal=1'],
  );
  const readAt = 80 * MIB;
  const reads = ['bs=64k', `skip=${readAt / 65_536}`, `count=${(96 * MIB) / 65_536}`, 'status=none'];
  const readPath = join(lab.dir, 'read');
  const reading = new Running(lab, 'dd', `if=${target.loop}`, `of=${readPath}`, 'iflag=direct', ...reads);
  const pids = new Set<number | null>();
  for (let kill = 0; kill < KILLS; kill++) {
    await sleep(300);
    if (kill === 0) assert.ok(!reading.over, 'reads of blocks that are not here are under way');
    const before = await target.hydration();
    assert.ok(!fio.over && before.state === 'running', 'fio is still at work, and so is the copy');
    pids.add(target.server.state.serverPid);
    await target.killServer();
    await target.status();
  }
  assert.equal(pids.size, KILLS, 'each kill hit another server');
  assert.equal(target.server.state.restarts, KILLS);
  await fio.ended;
  assert.match(fio.stdout, /err= 0/);
  await reading.ended;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  assert.equal(target.server.state.restarts, KILLS);

  await tool('dd', `if=${expectedPath}`, `of=${readPath}.expected`, ...reads);
  await tool('cmp', readPath, `${readPath}.expected`);
  // What fio wrote it has checked itself; everything else is as at the source.
  await tool(
    'dd',
    `if=${target.loop}`,
    `of=${expectedPath}`,
    'bs=1M',
    `count=${writtenBytes / MIB}`,
    'conv=notrunc',
  );
  await assertSameContent(target.loop, expectedPath);
});
