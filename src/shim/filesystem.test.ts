import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants, copyFileSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { withMountsOf } from '../../test/support/mount-copy.ts';
import { letPass, until } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { readDeviceCounters } from '../host/device-pace.ts';
import { attachLoop, detachLoop } from '../host/losetup.ts';
import { mountAt } from '../host/mount-table.ts';
import { Filesystem } from './filesystem.ts';

const needs = requires('root', '/dev/loop-control', 'losetup', 'mkfs.xfs');

test('two XFS of one uuid, as two imports of one image are, are mounted beside each other', {
  skip: needs,
}, async (t) => {
  const dir = scratchDir(t);
  const images = ['one', 'two'].map((name) => join(dir, `${name}.img`));
  writeFileSync(images[0]!, '');
  truncateSync(images[0]!, 320 * 2 ** 20);
  execFileSync('mkfs.xfs', ['-q', '-K', images[0]!]);
  copyFileSync(images[0]!, images[1]!, constants.COPYFILE_FICLONE);
  const opened: { filesystem: Filesystem; device: string }[] = [];
  try {
    for (const [index, filePath] of images.entries()) {
      const device = await attachLoop({ filePath });
      const filesystem = new Filesystem(join(dir, `fs-${index}`), systemClock);
      opened.push({ filesystem, device });
      await filesystem.mount(device, 'xfs');
    }
    assert.deepEqual(
      opened.map(({ filesystem }) => filesystem.mounted),
      [true, true],
    );
    writeFileSync(join(dir, 'fs-0', 'who'), 'one');
    writeFileSync(join(dir, 'fs-1', 'who'), 'two');
  } finally {
    for (const { filesystem, device } of opened) {
      await filesystem.unmount();
      await detachLoop(device, { clock: systemClock });
    }
  }
});

test('a place is no filesystem yet; a sync has ended when all is on the device, and an unmount when nobody has it', {
  skip: requires('root', '/dev/loop-control', 'losetup', 'mkfs.ext4'),
}, async (t) => {
  const dir = scratchDir(t);
  const filePath = join(dir, 'disk.img');
  writeFileSync(filePath, '');
  truncateSync(filePath, 64 * 2 ** 20);
  execFileSync('mkfs.ext4', ['-q', filePath]);
  const device = await attachLoop({ filePath });
  const filesystem = new Filesystem(join(dir, 'fs'), systemClock);
  const exclusively = () =>
    open(device, constants.O_RDONLY | constants.O_EXCL).then((handle) => handle.close());
  let keeper: ReturnType<typeof spawn> | undefined;
  try {
    await filesystem.makePlace();
    assert.equal(mountAt(filesystem.directory)?.shared, true);
    assert.equal(filesystem.mounted, false, 'a machine must not begin on the place itself');
    await filesystem.mount(device, 'ext4');
    assert.equal(mountAt(filesystem.directory)?.source, device);
    assert.equal(filesystem.mounted, true);

    const marker = 'what the machine has written last';
    writeFileSync(join(filesystem.directory, 'file'), marker.repeat(1000));
    const before = readDeviceCounters(device);
    await filesystem.sync();
    assert.notEqual(readDeviceCounters(device), before);
    assert.ok(readFileSync(filePath).includes(marker));

    // As a process that has ended does, for which the kernel lets go in its own time: here it has all of it.
    const standing = { ...systemClock, monotonicMs: () => 0 };
    const waiting = new Filesystem(filesystem.directory, standing);
    keeper = spawn('sh', ['-c', `exec 9<${filesystem.directory}/file; exec sleep 600`], { stdio: 'ignore' });
    await until('an open file', () => readdirSync(`/proc/${keeper!.pid}/fd`).includes('9'));
    const letGo = waiting.unmount();
    await sleep(letPass(50));
    assert.equal(filesystem.mounted, true);
    keeper.kill('SIGKILL');
    await letGo;
    assert.equal(filesystem.mounted, false);
    await filesystem.mount(device, 'ext4');

    // As a machine that is just starting does, for a moment.
    const [program, ...args] = withMountsOf(filesystem.directory);
    keeper = spawn(program, [...args, 'sleep', '600'], { stdio: 'ignore' });
    const table = () => readFileSync(`/proc/${keeper!.pid}/mountinfo`, 'utf8');
    await until('a copy of the mount', () => readFileSync(`/proc/${keeper!.pid}/comm`, 'utf8') === 'sleep\n');
    assert.ok(table().includes(filesystem.directory));
    let isOver = false;
    const unmounting = filesystem.unmount().then(() => {
      isOver = true;
    });
    await until('no mount here', () => !filesystem.mounted);
    await sleep(letPass(100));
    await assert.rejects(exclusively(), { code: 'EBUSY' });
    assert.equal(isOver, false, 'what the kernel has not written yet would be missing in the seal');
    keeper.kill('SIGKILL');
    await once(keeper, 'exit');
    await unmounting;
    await exclusively();
    await filesystem.removePlace();
    assert.equal(mountAt(filesystem.directory), undefined);
  } finally {
    keeper?.kill('SIGKILL');
    await filesystem.unmount().catch(() => {});
    await filesystem.removePlace();
    await detachLoop(device, { clock: systemClock });
  }
});
