import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { constants, copyFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { attachLoop, detachLoop } from '../host/losetup.ts';
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
