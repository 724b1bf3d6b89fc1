import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from './clock.ts';
import { LookOut } from './look-out.ts';

function isLooking(): boolean {
  return process.getActiveResourcesInfo().includes('Immediate');
}

async function untilItSleeps(): Promise<void> {
  while (isLooking()) await systemClock.sleep(1);
}

test('it looks for a moment, then sleeps; after looks in vain it sits some requests out', async () => {
  const lookOut = new LookOut();
  for (let look = 0; look < 4; look += 1) {
    lookOut.seen();
    assert.ok(isLooking());
    await untilItSleeps();
  }
  for (let request = 0; request < 64; request += 1) {
    lookOut.seen();
    assert.ok(!isLooking());
  }
  lookOut.seen();
  assert.ok(isLooking());
  await untilItSleeps();
});
