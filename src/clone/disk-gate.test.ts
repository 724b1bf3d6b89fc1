import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import { DiskGate } from './disk-gate.ts';
import type { GuestWaits } from './disk-window.ts';

const MIB = 2 ** 20;
const WAITS = { waits: true };
const flushing: GuestWaits = {
  flush: { count: 1, totalMs: 10 },
  read: { count: 0, totalMs: 0 },
  write: { count: 0, totalMs: 0 },
  oldestFlushMs: 0,
};

test('what does not fit waits in order; misses go at once and count', async () => {
  const gate = new DiskGate(new FakeClock(), 2 * MIB);
  const order: string[] = [];
  const first = gate.enter(MIB, WAITS);
  const miss = gate.enter(MIB, { waits: false });
  assert.deepEqual([first.turn, miss.turn], [null, null]);
  const second = gate.enter(MIB, WAITS);
  const third = gate.enter(1, WAITS);
  void second.turn!.then(() => order.push('second'));
  void third.turn!.then(() => order.push('third'));
  first.ended(true);
  await second.turn;
  assert.deepEqual(order, ['second'], 'two are on their way, and the window is full');
  miss.ended(false);
  await third.turn;
  // One that is larger than the window goes alone.
  const large = gate.enter(8 * MIB, WAITS);
  second.ended(true);
  third.ended(true);
  await large.turn;
  // Who gives up waiting goes, and the others come to their turn all the same.
  const late = gate.enter(MIB, WAITS);
  const later = gate.enter(MIB, WAITS);
  late.goNow();
  late.goNow();
  await late.turn;
  large.ended(true);
  late.ended(false);
  await later.turn;
  later.ended(true);
});

test('while the guest is listened to, nothing goes; then as the window says', async () => {
  const gate = new DiskGate(new FakeClock(), 8 * MIB);
  let waits = flushing;
  gate.watch(() => waits);
  gate.tick(0);
  const held = gate.enter(64 * 1024, WAITS);
  assert.notEqual(held.turn, null);
  waits = { ...flushing, flush: { count: 0, totalMs: 0 } };
  for (let nowMs = 50; nowMs <= 1_100; nowMs += 50) gate.tick(nowMs);
  await held.turn;
  held.ended(true);
  assert.equal(gate.enter(8 * MIB, WAITS).turn, null);
});

test('nothing begins its way while the guest flushes, for as long as what is there may take', async () => {
  const clock = new FakeClock();
  const gate = new DiskGate(clock, 8 * MIB);
  const ended = gate.flushing();
  const waits = gate.enter(MIB, WAITS);
  assert.notEqual(waits.turn, null);
  assert.equal(gate.enter(MIB, { waits: false }).turn, null, 'what the guest waits for itself does');
  ended();
  await waits.turn;
  // A flush that takes longer than that does not hold it up for ever; its end is no second one.
  const long = gate.flushing();
  const late = gate.enter(MIB, WAITS);
  assert.notEqual(late.turn, null);
  clock.advance(100);
  await late.turn;
  const second = gate.flushing();
  long();
  assert.notEqual(gate.enter(MIB, WAITS).turn, null);
  second();
});
