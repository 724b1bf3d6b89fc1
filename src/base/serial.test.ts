import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Serial, SerialByKey, SharedRuns } from './serial.ts';

test('one after the other, also behind one that failed; idle waits for all of them', async () => {
  const serial = new Serial();
  const events: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = serial.run(async () => {
    events.push('first begins');
    await gate.promise;
    events.push('first fails');
    throw new Error('first');
  });
  const second = serial.run(async () => {
    events.push('second');
    return 2;
  });
  const idle = serial.idle().then(() => events.push('idle'));
  await Promise.resolve();
  await Promise.resolve();
  assert.deepEqual(events, ['first begins']);
  gate.resolve();
  await assert.rejects(first, /first/);
  assert.equal(await second, 2);
  await idle;
  assert.deepEqual(events, ['first begins', 'first fails', 'second', 'idle']);
});

test('keys go side by side, and one with nothing to do is forgotten', async () => {
  const serial = new SerialByKey();
  const gate = Promise.withResolvers<void>();
  const events: string[] = [];
  const held = serial.run('a', () => gate.promise);
  const behind = serial.run('a', async () => void events.push('a'));
  await serial.run('b', async () => void events.push('b'));
  assert.deepEqual(events, ['b']);
  assert.equal(serial.size, 1);
  gate.resolve();
  await Promise.all([held, behind]);
  assert.deepEqual(events, ['b', 'a']);
  assert.equal(serial.size, 0);
  await assert.rejects(
    serial.run('a', async () => {
      throw new Error('no');
    }),
    /no/,
  );
  assert.equal(serial.size, 0);
});

test('who asks while a shared run is on has the next, with all others, also behind one that failed', async () => {
  const runs = new SharedRuns();
  const gates: PromiseWithResolvers<void>[] = [];
  const work = () => {
    gates.push(Promise.withResolvers<void>());
    return gates.at(-1)!.promise;
  };
  const first = runs.run(work);
  const others = [runs.run(work), runs.run(work)];
  assert.equal(gates.length, 1);
  gates[0]!.reject(new Error('first'));
  await assert.rejects(first, /first/);
  while (gates.length < 2) await Promise.resolve();
  const later = runs.run(work);
  gates[1]!.resolve();
  await Promise.all(others);
  while (gates.length < 3) await Promise.resolve();
  gates[2]!.resolve();
  await later;
  assert.equal(gates.length, 3);
  assert.equal(runs.running, false);
});
