import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { patient, until } from '../../test/support/patience.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import type { OpeningSpec } from '../opening/spec.ts';
import { VolumeSupervisor } from './volume-supervisor.ts';

/** Is ready at once, answers everything with its pid, and to `flush` with a line that has no end. */
const SERVER = `
process.stdin.once('data', () => {
  console.log(JSON.stringify({ event: 'ready', data: {} }));
  process.stdin.on('data', (bytes) => {
    for (const line of String(bytes).split('\\n').filter(Boolean)) {
      const { id, op } = JSON.parse(line);
      if (op === 'flush') process.stdout.write('x'.repeat(6 * 2 ** 20));
      else console.log(JSON.stringify({ id, ok: true, result: { pid: process.pid } }));
    }
  });
});`;

function supervised(t: TestContext, change: Partial<ConstructorParameters<typeof VolumeSupervisor>[0]> = {}) {
  const spec: OpeningSpec = {
    ...{ kind: 'own', volumeId: 'v_1', generation: 1, lengthBytes: 4096, volumeDir: '/nowhere' },
    access: 'standby',
  };
  const supervisor = new VolumeSupervisor({
    command: [process.execPath, '-e', SERVER],
    spec,
    fuseFd: null,
    logPath: join(scratchDir(t), 'server.log'),
    clock: systemClock,
    logger: silentLogger,
    ...change,
  });
  t.after(() => supervisor.stop());
  return supervisor;
}

test('a server whose log cannot be opened serves without one', async (t) => {
  const supervisor = supervised(t, { logPath: '/proc/no/such/server.log' });
  await supervisor.start();
  assert.equal(supervisor.state.ready, true);
});

test('a server that can not be spoken to any more is replaced, and who asked is answered by the next one', async (t) => {
  // A server that ends by itself is given some time for that.
  const timer = (ms: number, callback: () => void) => systemClock.timer(Math.min(ms, 200), callback);
  const supervisor = supervised(t, { clock: { ...systemClock, timer } });
  await supervisor.start();
  const before = supervisor.state.serverPid;
  const flushed = supervisor.call('flush', {}, patient(120_000)).catch(() => {});
  await until('another server', () => supervisor.state.restarts > 0 && supervisor.state.serverPid, {
    patienceMs: 60_000,
  });
  assert.notEqual(supervisor.state.serverPid, before);
  await supervisor.stop();
  await flushed;
});
