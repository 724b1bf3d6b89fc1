import { closeSync, openSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { requires } from '../../test/support/requires.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { attachLoop, detachLoop } from './losetup.ts';
import { systemTools, type Tools } from './tools.ts';

test('a losetup that takes long takes nothing of the time that a device has to go', {
  skip: requires('root', '/dev/loop-control', 'losetup'),
}, async (t) => {
  const filePath = join(scratchDir(t), 'image');
  writeFileSync(filePath, '');
  truncateSync(filePath, 2 ** 20);
  const device = await attachLoop({ filePath });
  let user: number | null = openSync(device, 'r');
  const goOn = () => {
    if (user !== null) closeSync(user);
    user = null;
  };
  class ShortClock extends FakeClock {
    override async sleep(): Promise<void> {
      goOn();
    }
  }
  const clock = new ShortClock();
  const tools: Tools = {
    async run(argv, options) {
      const ended = await systemTools().run(argv, options);
      clock.advance(60_000);
      return ended;
    },
  };
  try {
    await detachLoop(device, { clock, tools });
  } finally {
    goOn();
    await detachLoop(device, { clock: systemClock });
  }
});
