import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import type { VolumeServerStatus } from '../opening/status.ts';
import { StatusReporter } from './status-reporter.ts';

test('who does not read is told nothing more, and then how it is, once', async () => {
  const clock = new FakeClock();
  const told: string[] = [];
  let heard = false;
  let reads = 0;
  const status = () => ({ residentBytes: 1, guest: { reads }, noRoom: reads > 5 ? {} : undefined });
  const reporter = new StatusReporter({
    status: status as unknown as () => VolumeServerStatus,
    emit: (event) => told.push(event),
    isHeard: () => heard,
    clock,
  });
  reporter.start();
  for (; reads < 10; reads++) await clock.advance(500);
  assert.deepEqual(told, []);
  heard = true;
  await clock.advance(500);
  await clock.advance(500);
  assert.deepEqual(told, ['progress', 'no-room']);
  reporter.stop();
});
